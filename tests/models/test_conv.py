"""Convolution against the NumPy reference: values and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import Conv, InputError, convolution
from resnet_jax import numpy_reference as reference

CASES = [
    # height, width, kernel, stride, dilation, groups
    (8, 9, 3, 1, 1, 1),
    (9, 8, 3, 2, 1, 1),
    (7, 7, 3, 2, 2, 2),
    (6, 5, 3, 3, 1, 4),
    (5, 6, 1, 2, 1, 1),
    (8, 8, 1, 1, 1, 2),
    (15, 16, 7, 2, 1, 1),
    (1, 1, 3, 1, 1, 4),
]


@pytest.mark.parametrize(('height', 'width', 'size', 'stride', 'dilation', 'groups'), CASES)
def test_values_and_gradients(height, width, size, stride, dilation, groups, rng):
    x = rng.normal(size=(2, height, width, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 4 // groups, 8)).astype(np.float32)
    y, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, dilation, groups), x, kernel)
    expected, backward = reference.convolution(
        np.float64(x), np.float64(kernel), stride=stride, dilation=dilation, groups=groups
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    dy = rng.normal(size=y.shape).astype(np.float32)
    for ours, theirs in zip(pullback(jnp.asarray(dy)), backward(np.float64(dy)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4)


def test_padding_is_symmetric():
    """SAME would pad an even image at stride 2 on the far side only, and shift the result by a pixel."""
    x = np.arange(4.0, dtype=np.float32).reshape(1, 4, 1, 1)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 1] = 1  # takes the pixel above
    np.testing.assert_array_equal(convolution(x, kernel, stride=2)[0, :, 0, 0], [0, 1])


def test_initialization_is_he_normal_by_fan_out():
    kernel = Conv(64, 3, groups=2).init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))['params']['kernel']
    assert kernel.shape == (3, 3, 16, 64)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.03)


def test_groups_must_divide_the_channels():
    with pytest.raises(InputError, match=r'groups=3 must divide the input channels \(4\)'):
        Conv(6, groups=3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
