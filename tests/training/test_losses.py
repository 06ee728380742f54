"""Losses against NumPy."""

import numpy as np
import pytest

from resnet_jax import numpy_reference as reference
from resnet_jax.training.losses import softmax_cross_entropy


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
