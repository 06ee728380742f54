"""Contents of the pictures of test results."""

import types

import numpy as np
import pytest
from matplotlib import colors, rc_context
from matplotlib.figure import Figure

from resnet_jax.tasks.base import Task
from resnet_jax.tasks.drawing import TEST_COLOUR, readable
from resnet_jax.tasks.kinds import TASKS
from resnet_jax.training.report import TRAIN_COLOUR


def drawn(task, names, **result):
    axes = Figure().subplots()
    found = types.SimpleNamespace(**({'total': {}, 'outputs': None, 'targets': None} | result))
    task.draw(axes, found, names)
    return axes


def test_a_confusion_matrix_shows_counts():
    axes = drawn(TASKS['multiclass'](), ('ant', 'bee'), total={'confusion': np.array([[3, 1], [0, 7]])})
    assert [text.get_text() for text in axes.texts] == ['3', '1', '7']
    assert [label.get_text() for label in axes.get_xticklabels()] == ['ant', 'bee']
    many = drawn(TASKS['multiclass'](), [str(k) for k in range(21)], total={'confusion': np.eye(21, dtype=int)})
    assert not many.texts


def test_roc_curve_label_bars_and_scatter_plot(rng):
    targets = np.array([0, 1, 1, 0])
    outputs = np.array([[-1.0], [2.0], [1.0], [0.5]], np.float32)
    axes = drawn(TASKS['binary'](), ('no', 'yes'), outputs=outputs, targets=targets)
    assert axes.get_title() == 'ROC curve of "yes"'
    assert axes.get_legend().get_texts()[0].get_text() == 'ROC AUC 1.0000'
    labels = np.stack([targets, 1 - targets], axis=1)
    axes = drawn(TASKS['multilabel'](), ('a', 'b'), outputs=rng.normal(size=(4, 2)), targets=labels)
    assert len(axes.patches) == 6
    values = rng.normal(size=(4, 2)).astype(np.float32)
    axes = drawn(TASKS['regression'](), ('a', 'b'), outputs=values, targets=values)
    np.testing.assert_allclose(axes.lines[1].get_xydata(), np.stack([values[:, 0]] * 2, axis=1), rtol=1e-6)


def test_a_task_may_have_no_picture():
    assert not drawn(Task(), ()).axison


@pytest.mark.parametrize('name', TASKS)
def test_picture_names(name):
    assert (TASKS[name].picture or name) in ('confusion', 'binary', 'multilabel', 'regression')


@pytest.mark.parametrize('background', ['white', '#14181e'])
def test_drawings_stand_out_from_the_background_of_the_style(background):
    """Contrast as of WCAG 2.1, section 1.4.11: at least 3 to 1 for what must be seen."""

    def luminance(color):
        levels = np.array(colors.to_rgb(color))
        return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    with rc_context({'figure.facecolor': background, 'axes.facecolor': background}):
        for color in (TEST_COLOUR, TRAIN_COLOUR, '#1f5f8b'):
            darker, lighter = sorted((luminance(readable(color)), luminance(background)))
            assert (lighter + 0.05) / (darker + 0.05) >= 3
        axes = drawn(TASKS['multiclass'](), ('ant', 'bee'), total={'confusion': np.array([[9, 1], [0, 7]])})
        shading = axes.images[0].cmap
        for text, share in zip(axes.texts, (0.9, 0.1, 1.0), strict=True):
            darker, lighter = sorted((luminance(text.get_color()), luminance(shading(share))))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5
