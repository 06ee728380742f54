"""Contents of the pictures of test results."""

import io
import os
import types

import numpy as np
import pytest
from matplotlib import colors, rc_context
from matplotlib.figure import Figure

from resnet_jax.tasks.base import Task
from resnet_jax.tasks.drawing import TEST_COLOUR, draw_text_literally, label, labels, readable
from resnet_jax.tasks.kinds import TASKS
from resnet_jax.training.report import TRAIN_COLOUR

# A name, and how it is drawn in Matplotlib's default font.
NAMES = {
    '$0_$9': '$0_$9',
    os.fsdecode(b'caf\xe9'): 'caf\\xe9',
    'a\nb\x1b[0m': 'a\\x0ab\\x1b[0m',
    '猫': '\\u732b',
    '犬': '\\u72ac',
    '\u202eabc': '\\u202eabc',
    100 * 'x' + 155 * 'y': 12 * 'x' + '…' + 11 * 'y',
    100 * 'x' + 154 * 'y': 12 * 'x' + '…' + 11 * 'y' + ' (2)',
    '_under': '_under',
    'çığ {0} %s': 'çığ {0} %s',
}


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


def texts_of(found):
    return [text.get_text() for text in found]


def test_escapes_count_towards_the_length_of_a_name():
    assert label(80 * '猫') == '\\u732b\\u732b…\\u732b'
    assert all(len(label(80 * '猫', length)) <= length for length in range(1, 40))


def test_names_are_drawn_as_they_are(rng):
    """No mathematics, no missing characters, no name left out, and different names look different."""
    names, expected = list(NAMES), list(NAMES.values())
    count = len(names)
    confusion = drawn(TASKS['multiclass'](), names, total={'confusion': np.eye(count, dtype=int)})
    assert texts_of(confusion.get_xticklabels()) == texts_of(confusion.get_yticklabels()) == expected
    outputs, targets = rng.normal(size=(20, count)).astype(np.float32), rng.integers(0, 2, (20, count))
    bars = drawn(TASKS['multilabel'](), names, outputs=outputs, targets=targets)
    assert texts_of(bars.get_yticklabels()) == expected
    values = drawn(TASKS['regression'](), names, outputs=outputs, targets=outputs)
    assert texts_of(values.get_legend().get_texts()) == expected
    roc = drawn(TASKS['binary'](), ('no', '$0_$9'), outputs=outputs[:, :1], targets=targets[:, 0])
    for axes in (confusion, bars, values, roc):
        draw_text_literally(axes.figure)
        axes.figure.savefig(io.BytesIO())  # warnings are errors


def test_custom_drawings_are_literal_but_numbers_keep_their_powers():
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1e6], [1, 1e6])
    axes.set(yscale='log', title='$0_$9 猫\n$0_$9', xlabel=os.fsdecode(b'\xe9'))
    axes.set_xticks([1, 1e6], ['$0_$9', '$_$'])
    draw_text_literally(figure)
    figure.savefig(io.BytesIO())
    assert axes.get_title() == '$0_$9 \\u732b\n$0_$9'
    assert axes.get_xlabel() == '\\xe9'
    assert texts_of(axes.get_xticklabels()) == ['$0_$9', '$_$']
    assert not any(text.get_parse_math() for text in (axes.title, *axes.get_xticklabels()))
    assert all(text.get_parse_math() for text in axes.get_yticklabels())


def test_large_numbers_of_classes_are_readable(rng):
    confusion = np.diag(np.arange(1, 301))
    confusion[299, 0] = 10_000
    axes = drawn(TASKS['multiclass'](), [str(k) for k in range(300)], total={'confusion': confusion})
    cells = axes.images[0].get_array()
    assert cells.shape == (100, 100)
    assert cells[99, 0] == pytest.approx(10_000 / 10_300)
    assert (np.diag(cells) == 1).all()
    assert tuple(axes.images[0].get_extent()) == (-0.5, 299.5, 299.5, -0.5)
    values = rng.normal(size=(5, 30)).astype(np.float32)
    axes = drawn(TASKS['regression'](), [str(k) for k in range(30)], outputs=values, targets=values)
    assert axes.get_title() == '30 values'
    assert axes.get_legend() is None


def test_labels_are_distinct():
    assert label('a' * 30, 9) == 'aaaa…aaaa'
    assert labels(['a' * 30, 'a' * 31], 9) == ['aaaa…aaaa', 'aaaa…aaaa (2)']


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
