"""Losses against NumPy."""

import numpy as np
import pytest

from resnet_jax import numpy_reference as reference
from resnet_jax.training.losses import absolute_error, sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from resnet_jax.training.tasks import MultiClass


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_equals_the_reference(smoothing, rng):
    logits, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    expected, _ = reference.softmax_cross_entropy(logits, labels, smoothing)
    losses = softmax_cross_entropy(np.float32(logits), labels, smoothing)
    assert losses.shape == (6,)
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-5)


def test_a_label_out_of_range_spoils_the_loss_rather_than_vanish():
    losses = softmax_cross_entropy(np.zeros((3, 4), np.float32), np.array([0, 4, -1]))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True])


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_sigmoid_cross_entropy_by_its_definition(smoothing, rng):
    logits, targets = rng.normal(size=(6, 5)), rng.integers(0, 2, (6, 5))
    shares, smooth = 1 / (1 + np.exp(-logits)), (1 - smoothing) * targets + smoothing / 2
    expected = -(smooth * np.log(shares) + (1 - smooth) * np.log(1 - shares)).mean(1)
    np.testing.assert_allclose(sigmoid_cross_entropy(np.float32(logits), targets, smoothing), expected, rtol=1e-5)
    extreme = sigmoid_cross_entropy(np.array([[1000.0, -1000.0]], np.float32), np.array([[1, 0]]))
    np.testing.assert_array_equal(extreme, [0])


def test_errors_by_hand():
    outputs, targets = np.array([[1.0, 2.0], [0.0, -1.0]], np.float32), np.array([[0.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(squared_error(outputs, targets), [2.5, 0.5])
    np.testing.assert_allclose(absolute_error(outputs, targets), [1.5, 0.5])


def test_a_target_out_of_range_spoils_the_sigmoids_too():
    losses = sigmoid_cross_entropy(np.zeros((3, 1), np.float32), np.array([[1], [5], [-1]]))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True])
    classes = MultiClass('sigmoid_cross_entropy').losses(np.zeros((3, 4), np.float32), np.array([0, 4, -1]))
    np.testing.assert_array_equal(np.isnan(classes), [False, True, True])
