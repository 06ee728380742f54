"""The convolutions for TPUs, computed on a CPU."""

import jax
import numpy as np
import pytest

from resnet_jax import convolution
from resnet_jax.models import conv_tpu
from resnet_jax.models.conv_common import plain


def run(form, x, kernel, dy, *options):
    @jax.jit
    def values_and_gradients(x, kernel, dy):
        y, pullback = jax.vjp(lambda x, kernel: form(x, kernel, *options), x, kernel)
        return y, *pullback(dy)

    return values_and_gradients(x, kernel, dy)


@pytest.mark.parametrize(
    ('shape', 'features', 'size', 'stride', 'dilation', 'groups'),
    [
        ((2, 7, 6, 8), 8, 3, 1, 1, 4),  # one dense convolution
        ((2, 7, 6, 8), 16, 3, 2, 1, 2),
        ((2, 7, 6, 8), 4, 5, 1, 2, 4),
        ((1, 9, 8, 384), 64, 3, 1, 1, 32),  # tiles of 8 groups of 12 channels
        ((1, 9, 8, 768), 64, 3, 2, 1, 32),
        ((1, 9, 8, 512), 64, 3, 1, 1, 2),  # a group wider than a tile
        ((1, 5, 4, 384), 64, 3, 1, 1, 32),  # a small map
        ((1, 5, 4, 8), 16, 3, 1, 1, 8),  # depthwise
        ((2, 5, 4, 6), 4, 1, 2, 1, 2),
        ((2, 5, 4, 6), 4, 3, 1, 1, 1),
    ],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_values_and_gradients_equal_those_of_xla(shape, features, size, stride, dilation, groups, dtype, rng):
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


@pytest.mark.parametrize(
    ('size', 'channels', 'stride', 'groups', 'convolutions'),
    [(56, 128, 1, 32, 1), (56, 256, 2, 32, 1), (28, 512, 2, 32, 1), (14, 512, 1, 32, 4), (7, 1024, 1, 32, 1)],
)
def test_convolutions_of_resnext50(size, channels, stride, groups, convolutions):
    x = jax.ShapeDtypeStruct((2, size, size, channels), 'bfloat16')
    kernel = jax.ShapeDtypeStruct((3, 3, channels // groups, channels), 'bfloat16')
    program = str(jax.make_jaxpr(lambda x, kernel: conv_tpu.forward(x, kernel, stride, 1, groups))(x, kernel))
    assert program.count('= conv_general_dilated[') == convolutions
    assert ('feature_group_count=32' in program) == (size == 7)


def test_the_program_for_a_tpu_has_no_groups():
    """Convolution and both gradients, lowered for the platform without compiling."""

    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: convolution(x, kernel, groups=4).sum(), (0, 1))(x, kernel)

    arrays = [jax.ShapeDtypeStruct((2, 8, 8, 16), 'float32'), jax.ShapeDtypeStruct((3, 3, 4, 16), 'float32')]
    text = jax.jit(gradients).trace(*arrays).lower(lowering_platforms=('tpu',)).as_text()
    assert 'stablehlo.convolution' in text
    assert 'feature_group_count = 4' not in text
    assert 'batch_group_count = 4' not in text
