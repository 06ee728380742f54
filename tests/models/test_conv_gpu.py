"""The convolution for GPUs, computed on a CPU."""

import jax
import numpy as np
import pytest

from resnet_jax.models import conv_gpu
from resnet_jax.models.conv_common import plain


@pytest.mark.parametrize(
    ('shape', 'size'),
    [
        ((2, 8, 6, 3), 7),
        ((1, 2, 2, 3), 7),
        ((2, 8, 6, 3), 3),
        ((2, 8, 6, 1), 3),
        ((2, 8, 6, 4), 7),
    ],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_values_and_gradients_equal_those_of_xla(shape, size, dtype, rng):
    x = rng.normal(size=shape).astype(dtype)
    kernel = rng.normal(size=(size, size, shape[3], 6)).astype(dtype)

    def run(form):
        def function(x, kernel):
            return form(x, kernel, 2, 1, 1)

        y, pullback = jax.vjp(function, x, kernel)
        return y, *pullback(y)

    compute = jax.jit(run, static_argnums=0)
    assert conv_gpu.packs(x, kernel, 2, 1, 1)
    tolerance = 1e-5 if dtype == 'float32' else 0.02
    for ours, theirs in zip(compute(conv_gpu.forward), compute(plain), strict=True):
        ours, theirs = np.float32(ours), np.float32(theirs)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize(
    ('shape', 'size', 'options'),
    [
        ((2, 8, 6, 5), 7, (2, 1, 1)),  # too many channels
        ((2, 7, 6, 3), 7, (2, 1, 1)),  # odd sizes
        ((2, 6, 7, 3), 7, (2, 1, 1)),
        ((2, 8, 6, 3), 5, (2, 1, 1)),  # the first tap is an even pixel
        ((2, 8, 6, 3), (7, 3), (2, 1, 1)),  # not square
        ((2, 8, 6, 3), (3, 1), (2, 1, 1)),
        ((2, 8, 6, 3), 3, (1, 1, 1)),
        ((2, 8, 6, 3), 3, (2, 2, 1)),
        ((2, 8, 6, 3), 3, (2, 1, 3)),
    ],
)
def test_other_convolutions_are_not_packed(shape, size, options):
    sides = (size, size) if isinstance(size, int) else size
    kernel = np.zeros((*sides, shape[3] // options[2], 6))
    assert not conv_gpu.packs(np.zeros(shape), kernel, *options)
