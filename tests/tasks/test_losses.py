"""Losses against NumPy."""

import jax
import numpy as np
import pytest

from resnet_jax import numpy_reference as reference
from resnet_jax.tasks.losses import (
    absolute_error,
    sigmoid_cross_entropy,
    sigmoid_distillation,
    softmax_cross_entropy,
    softmax_distillation,
    squared_error,
)
from resnet_jax.tasks.multiclass import MultiClass


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_equals_the_reference(smoothing, rng):
    logits, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    expected, _ = reference.softmax_cross_entropy(logits, labels, smoothing)
    losses = softmax_cross_entropy(np.float32(logits), labels, smoothing)
    assert losses.shape == (6,)
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-5)


def test_a_label_out_of_range_makes_the_loss_nan():
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


def test_squared_and_absolute_error_by_hand():
    outputs, targets = np.array([[1.0, 2.0], [0.0, -1.0]], np.float32), np.array([[0.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(squared_error(outputs, targets), [2.5, 0.5])
    np.testing.assert_allclose(absolute_error(outputs, targets), [1.5, 0.5])


def test_a_target_out_of_range_makes_sigmoid_losses_nan():
    losses = sigmoid_cross_entropy(np.zeros((3, 1), np.float32), np.array([[1], [5], [-1]]))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True])
    classes = MultiClass('sigmoid_cross_entropy').losses(np.zeros((3, 4), np.float32), np.array([0, 4, -1]))
    np.testing.assert_array_equal(np.isnan(classes), [False, True, True])


@pytest.mark.parametrize('sigmoids', [False, True])
def test_distillation_is_the_kl_divergence_at_a_temperature(sigmoids, rng):
    student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
    temperature, distillation = 3.0, sigmoid_distillation if sigmoids else softmax_distillation

    def shares(logits):
        wide = np.float64(logits) / temperature
        if sigmoids:
            yes = 1 / (1 + np.exp(-wide))
            return np.stack([yes, 1 - yes], -1)
        return np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)

    p, q = shares(teacher), shares(student)
    expected = (p * np.log(p / q)).sum(-1)
    expected = 9 * (expected.mean(-1) if sigmoids else expected)
    found = distillation(student, teacher, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(distillation(teacher, teacher, temperature), 0, atol=1e-5)
    gradient = jax.grad(lambda taught: distillation(student, taught, temperature).sum())(teacher)
    np.testing.assert_array_equal(gradient, 0)
