"""Evaluation counts every example once, for any batch size and number of devices."""

import jax
import numpy as np
import pytest

from resnet_jax import ResNet, TrainConfig, init_variables, make_spec
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.tasks.kinds import Binary, MultiClass, Regression
from resnet_jax.training.evaluation import Evaluator
from resnet_jax.training.plan import objective_task

SPEC = make_spec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=2)


@pytest.fixture(scope='module')
def split():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (7, 6, 6, 1), np.uint8), rng.normal(size=(7, 2)).astype(np.float32))


def test_outputs_agree_with_the_network(split):
    model = ResNet(SPEC)
    variables = init_variables(model, jax.random.key(0), (6, 6, 1))
    task = objective_task(
        TrainConfig().replace(task='regression', label_smoothing=0.0), {'mean': (0.0, 1.0), 'std': (1.0, 2.0)}
    )
    found = Evaluator(model, split, (0.5,), (0.25,), task=task)(variables)
    expected = model.apply(variables, np.float32((split.images / 255 - 0.5) / 0.25), train=False)
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)
    assert found.total['count'] == 7
    errors = np.abs(found.outputs * [1, 2] + [0, 1] - split.labels)
    assert found.summary['mae'] == pytest.approx(errors.mean(), rel=1e-4)


def test_outputs_are_kept_on_request(split):
    model = ResNet(SPEC)
    variables = init_variables(model, jax.random.key(0), (6, 6, 1))
    labelled = Split(split.images, np.array([0, 1, 0, 1, 0, 1, 0], np.int32))
    assert Evaluator(model, labelled, (0.5,), (0.25,))(variables).outputs is None
    kept = Evaluator(model, labelled, (0.5,), (0.25,), keep_outputs=True)(variables)
    assert kept.summary['accuracy'] == np.mean(kept.outputs.argmax(1) == labelled.labels)


def test_a_diverged_network_has_no_ranking_scores(split):
    model = ResNet(make_spec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=1))
    variables = jax.tree.map(lambda leaf: leaf * np.nan, init_variables(model, jax.random.key(0), (6, 6, 1)))
    labelled = Split(split.images, np.array([0, 1, 0, 1, 0, 1, 0], np.int32))
    found = Evaluator(model, labelled, (0.5,), (0.25,), task=Binary())(variables)
    assert np.isnan(found.summary['loss'])
    assert 'roc_auc' not in found.summary


def test_target_statistics(split):
    constant = np.stack([split.labels[:, 0], np.full(7, 3.0)], axis=1).astype(np.float32)
    train = Split(split.images, constant)
    dataset = Dataset('x', train, split, ('a', 'b'), (0.5,), (0.25,), 'regression')
    statistics = dataset.target_statistics()
    np.testing.assert_allclose(statistics['mean'], [constant[:, 0].mean(), 3], rtol=1e-6)
    np.testing.assert_allclose(
        statistics['std'], [constant[:, 0].std(), 1], rtol=1e-6
    )  # std is 1 for a constant target
    task = objective_task(
        TrainConfig().replace(task='regression', label_smoothing=0.0, loss='absolute_error'), statistics
    )
    assert task == Regression('absolute_error', **statistics)
    assert objective_task(TrainConfig().replace(label_smoothing=0.1), {}) == MultiClass(label_smoothing=0.1)
