"""Muon's update direction against a singular value decomposition."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.training.muon import orthogonalized
from tests.training.arrays import newton_schulz, random_arrays


@pytest.mark.parametrize('shape', [(5, 3), (3, 5), (4, 4), (9, 1)])
def test_orthogonalized_matrices(shape):
    matrix = random_arrays(1, {'x': shape})['x']
    found = np.asarray(orthogonalized(jnp.asarray(matrix)))
    np.testing.assert_allclose(found, newton_schulz(matrix), atol=2e-5)
    assert np.all(np.abs(np.linalg.svd(found, compute_uv=False) - 0.95) < 0.3)
    assert np.all(np.asarray(orthogonalized(jnp.zeros(shape))) == 0)
