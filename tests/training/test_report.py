"""Pictures of a run."""

import os

import numpy as np
import pytest

from resnet_jax import get_config, make_spec
from resnet_jax.training import report
from resnet_jax.training.result import differences_of_training

DRAW = report.draw_report  # before the no_reports fixture replaces it


def test_records_without_a_metric_or_learning_rate_are_drawn(tmp_path):
    """Such records come from custom losses and optimizers with their own learning rate."""
    records = [
        {'split': 'train', 'step': 2, 'epoch': 0.5, 'loss': 2.0},
        {'split': 'train', 'step': 4, 'epoch': 1.0, 'loss': 1.5, 'skipped_steps': 1},
        {'split': 'test', 'step': 4, 'epoch': 1.0, 'loss': 1.8, 'accuracy': 0.5},
    ]
    panels = []
    for some in (records, records[:2], []):
        path = tmp_path / f'{len(some)}.png'
        DRAW(path, 'title', some, 'accuracy', panels.append)
        assert path.read_bytes()[:4] == b'\x89PNG'
    loss, score, rate = ([len(axes.lines) for axes in panel.figure.axes[:3]] for panel in panels)
    assert (loss, score, rate) == ([2, 1, 0], [1, 0, 0], [0, 0, 0])


def drawn(tmp_path, records, *more, title='title', metric='accuracy'):
    """The axes of a report: loss, score, learning rate."""
    panels = []
    DRAW(tmp_path / 'report.png', title, records, metric, panels.append, *more)
    return panels[0].figure.axes[:3]


def records_of(scores, per_epoch=1):
    """Records of both splits, whose loss falls from 2 by a factor of 2 per epoch."""
    records = []
    for step, score in enumerate(scores, start=1):
        epoch = step / per_epoch
        records += [
            {'split': split, 'epoch': epoch, 'loss': 2.0 ** (1 - epoch), 'accuracy': score, 'learning_rate': 0.1}
            for split in ('train', 'test')
        ]
    return records


def test_the_legend_says_how_training_differs(tmp_path):
    axes = drawn(tmp_path, records_of([0.5, 0.6]), (['label smoothing 0.1', 'augmented'], ['augmented']))
    legends = [[text.get_text().replace('\n', ' ') for text in one.get_legend().get_texts()] for one in axes[:2]]
    assert legends == [['training (label smoothing 0.1, augmented)', 'test'], ['training (augmented)', 'test']]
    axes = drawn(tmp_path, records_of([0.5, 0.6]))
    assert axes[0].get_legend().get_texts()[0].get_text() == 'training'


def test_differences_between_training_and_testing():
    spec = make_spec('basic', (1,), (8,), (1,), 'cifar', 8)
    config = get_config('digits_quick', label_smoothing=0.0, crop_padding=0)
    assert differences_of_training(config, spec) == ([], [])
    smooth = config.replace(label_smoothing=0.1, augmentation_repeats=2)
    assert differences_of_training(smooth, spec) == (['label smoothing 0.1'], [])
    mixed = config.replace(mixup=0.2, horizontal_flip=True)
    assert differences_of_training(mixed, spec) == (2 * (['augmented', 'mixup 0.2'],))
    taught = config.replace(distill_from='RUN', loss='sigmoid_cross_entropy', target_threshold=0.2)
    dropping = make_spec('basic', (1,), (8,), (1,), 'cifar', 8, drop_path_rate=0.1)
    loss, both = differences_of_training(taught, dropping)
    assert loss == ['target threshold 0.2', 'distillation 0.5', 'dropout']
    assert both == ['dropout']
    own = config.replace(loss=lambda outputs, batch: outputs.sum(-1))
    assert differences_of_training(own, spec) == (['custom loss'], [])


@pytest.mark.parametrize(('epochs', 'per_epoch'), [(1, 1), (1, 4), (3, 2), (5, 1), (90, 1)])
def test_epochs_are_integers(epochs, per_epoch, tmp_path):
    for axes in drawn(tmp_path, records_of(np.linspace(0.2, 0.9, epochs * per_epoch), per_epoch)):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert 2 <= len(ticks) <= 12
        assert all(tick == round(tick) for tick in ticks)
        assert low <= 0 < epochs <= high


def test_the_end_of_the_curves_is_not_flat(tmp_path):
    scores = [0.1, 0.5, 0.9, 0.95, 0.96, 0.97, 0.96, 0.98, 0.97, 0.99]
    _, axes, _ = drawn(tmp_path, records_of(scores))
    low, high = axes.get_ylim()
    assert 0.8 < low < 0.96
    assert 0.99 < high < 1.01
    _, axes, _ = drawn(tmp_path, records_of([0.2, 0.4, 0.6, 0.8]))
    assert axes.get_ylim()[0] < 0.2


def test_losses_have_plain_numbers(tmp_path):
    axes, _, _ = drawn(tmp_path, records_of(8 * [0.5]))
    labels = {text.get_text() for text in axes.get_yticklabels()}
    assert {'0.02', '0.1', '0.5', '1'} <= labels
    axes, _, _ = drawn(tmp_path, records_of([0.5]))
    assert axes.get_yscale() == 'linear'


def test_any_title_is_drawn(tmp_path):
    axes = drawn(tmp_path, records_of([0.5]), title=os.fsdecode(b'resnet20 on folder:$0_$9 \xe9'))
    assert axes[0].figure.get_suptitle() == 'resnet20 on folder:$0_$9 \\xe9'
