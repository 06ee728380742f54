"""Winograd convolution against the NumPy reference."""

import jax
import numpy as np
import pytest

from resnet_jax import numpy_reference as reference
from resnet_jax.models import winograd


@pytest.mark.parametrize(('height', 'width', 'channels', 'features'), [(5, 6, 3, 4), (1, 1, 2, 2), (8, 7, 4, 3)])
def test_values_and_gradients(height, width, channels, features, rng):
    x = rng.normal(size=(2, height, width, channels))
    kernel = rng.normal(size=(3, 3, channels, features))
    dy = rng.normal(size=(2, height, width, features))
    y, backward = reference.convolution(x, kernel)
    dx, dkernel = backward(dy)
    narrow = [value.astype(np.float32) for value in (x, kernel, dy)]

    @jax.jit
    def ours(x, kernel, dy):
        return (
            winograd.convolution(x, kernel),
            winograd.convolution(dy, kernel, transposed=True),
            winograd.kernel_gradient(x, dy),
        )

    our_y, our_dx, our_dkernel = ours(*narrow)
    np.testing.assert_allclose(our_y, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(our_dx, dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(our_dkernel, dkernel, rtol=1e-4, atol=1e-4)
