"""Regression metrics against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from resnet_jax.tasks.regression import Regression
from tests.tasks.sums import totals


@pytest.mark.parametrize('values', [1, 3])
def test_against_scikit_learn(values, rng):
    targets = (rng.normal(size=(50, values)) * 20 + 300).astype(np.float32)
    mean, std = tuple(targets.mean(0).tolist()), tuple(targets.std(0).tolist())
    task = Regression(mean=mean, std=std)
    outputs = ((targets - mean) / std + 0.3 * rng.normal(size=targets.shape)).astype(np.float32)
    predicted = task.predictions(outputs)
    found = task.summarize(totals(task, outputs, targets))
    assert found['r2'] == pytest.approx(sklearn.r2_score(targets, predicted), abs=1e-5)
    assert found['mae'] == pytest.approx(sklearn.mean_absolute_error(targets, predicted), rel=1e-5)
    roots = [sklearn.root_mean_squared_error(targets[:, d], predicted[:, d]) for d in range(values)]
    assert found['rmse'] == pytest.approx(np.mean(roots), rel=1e-5)
    assert found['loss'] == pytest.approx(np.mean(((targets - predicted) / std) ** 2), rel=1e-4)
    absolute = Regression('absolute_error', mean=mean, std=std)
    expected = np.mean(np.abs(targets - predicted) / std)
    assert absolute.summarize(totals(absolute, outputs, targets))['loss'] == pytest.approx(expected, rel=1e-4)


def test_r2_of_a_constant_target_is_that_of_scikit_learn():
    constant = np.full((4, 1), 2.0, np.float32)
    for outputs in (constant, constant + 1):
        expected = sklearn.r2_score(constant, outputs)
        assert Regression().summarize(totals(Regression(), outputs, constant))['r2'] == expected


def test_statistics(rng):
    values = rng.normal(3, 2, (9, 1)).astype(np.float32)
    found = Regression().statistics(np.concatenate([values, np.full((9, 1), 3)], axis=1))
    np.testing.assert_allclose(found['mean'], [values.mean(), 3], rtol=1e-6)
    np.testing.assert_allclose(found['std'], [values.std(), 1], rtol=1e-6)  # std is 1 for a constant target


def test_predictions_in_words():
    assert Regression().in_words(np.array([[1.5, -2.0]]), ('a', 'b')) == [(1.5, -2.0)]
    assert Regression().ranked(np.array([[1.5, -2.0]]), ('a', 'b'), 1) == [[('a', 1.5), ('b', -2.0)]]
