"""Baseline probabilities by hand; test_baselines.py in tests/experiments tests whole baselines."""

import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.baselines import class_shares

PIXELS, LABELS = np.array([[0.0], [0.1], [0.9], [1.0]]), np.array([0, 0, 2, 2])


def test_the_constant_baseline_predicts_class_frequencies():
    shares = class_shares('constant', PIXELS, np.array([0, 2, 2, 2]), np.zeros((3, 1)), 4)
    np.testing.assert_allclose(shares, [[0.25, 0, 0.75, 0]] * 3, atol=1e-9)
    assert (shares > 0).all()


def test_the_linear_baseline_uses_the_pixels():
    shares = class_shares('linear', PIXELS, LABELS, np.array([[0.0], [1.0]]), 3)
    np.testing.assert_array_equal(shares.argmax(1), [0, 2])
    np.testing.assert_allclose(class_shares('linear', PIXELS, LABELS * 0 + 1, PIXELS[:1], 3), [[0, 1, 0]], atol=1e-9)


def test_a_task_without_baseline_raises():
    with pytest.raises(InputError, match='task=task has no linear baseline'):
        Task().baseline_outputs('linear', PIXELS, LABELS, PIXELS, 3)
