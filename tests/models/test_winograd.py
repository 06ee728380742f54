"""Winograd's convolution against the NumPy reference."""

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
    np.testing.assert_allclose(winograd.convolution(narrow[0], narrow[1]), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(winograd.convolution(narrow[2], narrow[1], transposed=True), dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(winograd.kernel_gradient(narrow[0], narrow[2]), dkernel, rtol=1e-4, atol=1e-4)
