"""The forms for TPUs, computed on a CPU."""

import jax
import numpy as np
import pytest

from resnet_jax.models import conv_tpu
from resnet_jax.models.conv_common import plain


def run(form, x, kernel, dy, *options):
    y, pullback = jax.vjp(lambda x, kernel: form(x, kernel, *options), x, kernel)
    return y, *pullback(dy)


@pytest.mark.parametrize(
    ('shape', 'features', 'size', 'stride', 'dilation', 'groups'),
    [
        ((2, 7, 6, 8), 8, 3, 1, 1, 4),  # one dense convolution
        ((2, 7, 6, 8), 16, 3, 2, 1, 2),
        ((2, 7, 6, 8), 4, 5, 1, 2, 4),
        ((1, 5, 4, 384), 384, 3, 1, 1, 32),  # tiles of 8 groups of 12 channels: 96
        ((1, 5, 4, 768), 768, 3, 2, 1, 32),
        ((1, 5, 4, 512), 256, 3, 1, 1, 2),  # a group wider than a tile
        ((1, 5, 4, 8), 16, 3, 1, 1, 8),  # depthwise
        ((2, 5, 4, 6), 4, 1, 2, 1, 2),
        ((2, 5, 4, 6), 4, 3, 1, 1, 1),
    ],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_values_and_gradients_are_those_of_xla(shape, features, size, stride, dilation, groups, dtype, rng):
    x = rng.normal(size=shape).astype(dtype)
    kernel = rng.normal(size=(size, size, shape[3] // groups, features)).astype(dtype)
    options = (stride, dilation, groups)
    y = jax.eval_shape(lambda: plain(x, kernel, *options))
    dy = rng.normal(size=y.shape).astype(dtype)
    tolerance = 1e-5 if dtype == 'float32' else 0.02
    for ours, theirs in zip(
        run(conv_tpu.forward, x, kernel, dy, *options), run(plain, x, kernel, dy, *options), strict=True
    ):
        ours, theirs = np.float32(ours), np.float32(theirs)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
