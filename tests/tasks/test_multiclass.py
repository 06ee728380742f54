"""Multiclass metrics and losses against scikit-learn and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn

from resnet_jax.tasks.multiclass import MultiClass
from tests.tasks.sums import totals


def test_against_scikit_learn(rng):
    targets = rng.integers(0, 5, 60).astype(np.int32)
    outputs = rng.normal(size=(60, 6)).astype(np.float32) + 2 * np.eye(6, dtype=np.float32)[targets]
    predicted = outputs.argmax(1)
    found = MultiClass().summarize(totals(MultiClass(), outputs, targets))
    assert found['accuracy'] == pytest.approx(sklearn.accuracy_score(targets, predicted))
    assert found['top5_accuracy'] == pytest.approx(sklearn.top_k_accuracy_score(targets, outputs, k=5, labels=range(6)))
    assert found['loss'] == pytest.approx(sklearn.log_loss(targets, jax.nn.softmax(outputs), labels=range(6)), rel=1e-5)
    for name in ('precision', 'recall', 'f1'):
        expected = getattr(sklearn, f'{name}_score')(targets, predicted, average='macro', zero_division=0)
        assert found[name] == pytest.approx(expected), name


def test_sigmoids_for_classes():
    outputs, targets = np.array([[2.0, -1.0, 0.5]], np.float32), np.array([2], np.int32)
    task = MultiClass('sigmoid_cross_entropy')
    shares = 1 / (1 + np.exp(-outputs))
    expected = -np.mean([np.log(1 - shares[0, 0]), np.log(1 - shares[0, 1]), np.log(shares[0, 2])])
    np.testing.assert_allclose(task.losses(outputs, targets), [expected], rtol=1e-5)
    np.testing.assert_allclose(task.predictions(outputs), shares, rtol=1e-5)
    np.testing.assert_allclose(MultiClass().predictions(outputs).sum(1), 1, rtol=1e-6)


def test_mixed_classes_by_hand():
    """Half class 0, half class 1, smoothed by 0.3 over three classes: 0.45, 0.45, 0.1."""
    outputs, dense = jnp.array([[2.0, -1.0, 0.5]]), jnp.array([[0.5, 0.5, 0.0]])
    smooth = np.array([0.45, 0.45, 0.1])
    log_shares = np.asarray(jax.nn.log_softmax(outputs))[0]
    np.testing.assert_allclose(
        MultiClass(label_smoothing=0.3).training_loss()(outputs, dense), [-(smooth * log_shares).sum()], rtol=1e-5
    )
    log_yes, log_no = np.asarray(jax.nn.log_sigmoid(outputs))[0], np.asarray(jax.nn.log_sigmoid(-outputs))[0]
    sigmoids = MultiClass('sigmoid_cross_entropy', label_smoothing=0.3)
    expected = -(smooth * log_yes + (1 - smooth) * log_no).mean()
    np.testing.assert_allclose(sigmoids.training_loss()(outputs, dense), [expected], rtol=1e-5)
    cut = MultiClass('sigmoid_cross_entropy', label_smoothing=0.3, target_threshold=0.2)
    expected = -(log_yes[0] + log_yes[1] + log_no[2]) / 3
    np.testing.assert_allclose(cut.training_loss()(outputs, dense), [expected], rtol=1e-5)


def test_predictions_in_words():
    shares, names = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]], np.float32), ('a', 'b', 'c')
    assert MultiClass().in_words(shares, names) == ['b', 'a']
    ranked = MultiClass().ranked(shares, names, 2)
    assert [[name for name, _ in row] for row in ranked] == [['b', 'c'], ['a', 'c']]
    assert ranked[0][0][1] == pytest.approx(0.5)
