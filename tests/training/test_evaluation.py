"""Scores of a split: every example once, whatever the batch and the number of devices."""

import jax
import numpy as np
import pytest

from resnet_jax import ResNet, ResNetSpec, TrainConfig, init_variables
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.training.evaluation import Evaluator, make_task, target_statistics
from resnet_jax.training.tasks import Binary, MultiClass, Regression

SPEC = ResNetSpec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=2)


@pytest.fixture(scope='module')
def split():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (7, 6, 6, 1), np.uint8), rng.normal(size=(7, 2)).astype(np.float32))


def test_outputs_are_those_of_the_network(split):
    model = ResNet(SPEC)
    variables = init_variables(model, jax.random.key(0), (6, 6, 1))
    task = make_task(TrainConfig(task='regression', label_smoothing=0.0), (0.0, 1.0), (1.0, 2.0))
    found = Evaluator(model, split, (0.5,), (0.25,), task=task)(variables)
    expected = model.apply(variables, np.float32((split.images / 255 - 0.5) / 0.25), train=False)
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)
    assert found.total['count'] == 7
    errors = np.abs(found.outputs * [1, 2] + [0, 1] - split.labels)
    assert found.summary['mae'] == pytest.approx(errors.mean(), rel=1e-4)


def test_outputs_of_classes_come_when_asked_for(split):
    model = ResNet(SPEC)
    variables = init_variables(model, jax.random.key(0), (6, 6, 1))
    labelled = Split(split.images, np.array([0, 1, 0, 1, 0, 1, 0], np.int32))
    assert Evaluator(model, labelled, (0.5,), (0.25,))(variables).outputs is None
    kept = Evaluator(model, labelled, (0.5,), (0.25,), keep_outputs=True)(variables)
    assert kept.summary['accuracy'] == np.mean(kept.outputs.argmax(1) == labelled.labels)


def test_a_network_that_diverged_has_sums_but_no_ranking(split):
    model = ResNet(ResNetSpec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=1))
    variables = jax.tree.map(lambda leaf: leaf * np.nan, init_variables(model, jax.random.key(0), (6, 6, 1)))
    labelled = Split(split.images, np.array([0, 1, 0, 1, 0, 1, 0], np.int32))
    found = Evaluator(model, labelled, (0.5,), (0.25,), task=Binary())(variables)
    assert np.isnan(found.summary['loss'])
    assert 'roc_auc' not in found.summary


def test_statistics_of_the_targets(split):
    constant = np.stack([split.labels[:, 0], np.full(7, 3.0)], axis=1).astype(np.float32)
    train = Split(split.images, constant)
    dataset = Dataset('x', train, split, ('a', 'b'), (0.5,), (0.25,), 'regression')
    mean, std = target_statistics(dataset)
    np.testing.assert_allclose(mean, [constant[:, 0].mean(), 3], rtol=1e-6)
    np.testing.assert_allclose(std, [constant[:, 0].std(), 1], rtol=1e-6)  # a value that never changes keeps its unit
    task = make_task(TrainConfig(task='regression', label_smoothing=0.0, loss='absolute_error'), mean, std)
    assert task == Regression('absolute_error', mean=mean, std=std)
    assert make_task(TrainConfig(label_smoothing=0.1), (), ()) == MultiClass(label_smoothing=0.1)
