"""Normalization of a 1x1 convolution by the Gram matrix of its input, computed on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BottleneckBlock, Compute
from resnet_jax import numpy_reference as reference
from resnet_jax.models import gram_norm
from resnet_jax.models.conv import BoundConvolution

EPSILON = 1e-5
# Widths from few channels to those of the last stage of ResNet-50.
SHAPES = [((4, 5, 6, 3), 7), ((2, 3, 2, 2), 3), ((3, 2, 2, 16), 2048), ((2, 2, 2, 2), 512)]


def problem(rng, shape, features):
    """Arguments of ``normalize_convolution`` and a gradient of its result; ``u`` follows a ReLU, as in a network."""
    u = np.maximum(rng.normal(size=shape) + 0.3, 0)
    kernel = rng.normal(size=(1, 1, shape[-1], features)) * 0.5
    scale, bias = rng.uniform(0.5, 2, features), rng.normal(size=features)
    shortcut, dy = rng.normal(size=(2, *shape[:-1], features))
    return [np.float32(value) for value in (u, kernel, scale, bias, shortcut, dy)]


def expected(u, kernel, scale, bias, shortcut, dy, relu):
    """Result, mean, variance and gradients of all operands by the plain form in float64."""
    u, kernel, scale, bias, dy = (np.float64(value) for value in (u, kernel, scale, bias, dy))
    x, through_conv = reference.convolution(u, kernel)
    zeros, ones = np.zeros(len(scale)), np.ones(len(scale))
    y, _, through_norm = reference.batch_norm(x, scale, bias, zeros, ones, train=True)
    y = y if shortcut is None else y + np.float64(shortcut)
    dz = dy * (y > 0) if relu else dy
    dx, dscale, dbias = through_norm(dz)
    du, dkernel = through_conv(dx)
    y = np.maximum(y, 0) if relu else y
    return y, x.mean((0, 1, 2)), x.var((0, 1, 2)), du, dkernel, dscale, dbias, dz


def run(u, kernel, scale, bias, shortcut, dy, relu):
    """What ``expected`` returns, as the platform computes it."""

    @jax.jit
    def values_and_gradients(*operands):
        *operands, dy = operands

        def function(u, kernel, scale, bias, shortcut):
            shift = jnp.zeros_like(bias)
            y, *moments = gram_norm.normalize_convolution(u, scale, bias, shift, shortcut, kernel, EPSILON, relu)
            return y, moments

        y, pullback, moments = jax.vjp(function, *operands, has_aux=True)
        du, dkernel, dscale, dbias, dz = pullback(dy)
        return y, *moments, du, dkernel, dscale, dbias, *([] if dz is None else [dz])

    return values_and_gradients(u, kernel, scale, bias, shortcut, dy)


def errors(found, wanted):
    """The largest error of each array, relative to its largest value."""
    pairs = zip(found, wanted, strict=False)
    return [np.abs(np.float64(ours) - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs]


def check(rng, shape, features, relu, with_shortcut):
    *operands, shortcut, dy = problem(rng, shape, features)
    operands = [*operands, shortcut if with_shortcut else None, dy]
    found = run(*operands, relu)
    assert len(found) == 7 + with_shortcut
    assert max(errors(found, expected(*operands, relu))) < 1e-4


@pytest.mark.parametrize(('shape', 'features'), SHAPES)
@pytest.mark.parametrize(('relu', 'with_shortcut'), [(True, True), (True, False), (False, True), (False, False)])
def test_values_and_gradients(rng, shape, features, relu, with_shortcut, forms_for_gpus):
    check(rng, shape, features, relu, with_shortcut)


def test_values_and_gradients_of_the_plain_form(rng):
    check(rng, *SHAPES[0], relu=True, with_shortcut=True)


def test_the_form_for_gpus_computes_no_map_before_the_normalization(rng, forms_for_gpus):
    """The forward pass has one convolution and its gradient two of the input's size: none for ``x`` or ``dx``."""
    u, kernel, scale, bias, shortcut, dy = problem(rng, (2, 4, 4, 8), 32)
    normalize = functools.partial(gram_norm.normalize_convolution, epsilon=EPSILON, relu=True)
    program = jax.make_jaxpr(lambda *a: jax.vjp(normalize, *a)[1]((dy, bias, bias)))(
        u, scale, bias, bias, shortcut, kernel
    )
    convolutions = [line for line in str(program).splitlines() if 'conv_general_dilated[' in line]
    assert len(convolutions) == 3
    assert sum('f32[2,4,4,32]' in line.split('=')[0] for line in convolutions) == 1


def test_errors_in_bfloat16_are_those_of_rounding(rng, monkeypatch, request):
    """At most twice the errors of the plain form: the folded kernel is rounded once more."""
    u, kernel, scale, bias, shortcut, dy = problem(rng, (8, 7, 7, 64), 256)
    half = [jnp.asarray(value, jnp.bfloat16) for value in (u, shortcut, dy)]
    operands = half[0], kernel, scale, bias, *half[1:]
    exact = expected(*(np.float64(value) for value in operands), relu=True)
    plain = run(*operands, relu=True)
    request.getfixturevalue('forms_for_gpus')
    ours = run(*operands, relu=True)
    assert ours[0].dtype == ours[3].dtype == ours[7].dtype == jnp.bfloat16
    assert ours[4].dtype == jnp.float32
    root_mean_square = [
        [np.sqrt(np.mean(np.square(np.float64(a) - b))) for a, b in zip(found, exact, strict=True)]
        for found in (ours, plain)
    ]
    for index, (a, b) in enumerate(zip(*root_mean_square, strict=True)):
        assert a <= 2 * b + 1e-6, (index, a, b)


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
def test_the_shortcut_may_have_another_dtype(rng, platform, request):
    if platform == 'cuda':
        request.getfixturevalue('forms_for_gpus')
    u, kernel, scale, bias, shortcut, _ = problem(rng, *SHAPES[0])
    u = jnp.asarray(u, jnp.bfloat16)
    normalize = jax.jit(functools.partial(gram_norm.normalize_convolution, epsilon=EPSILON, relu=False))
    found, *_ = normalize(u, scale, bias, bias, shortcut, kernel)
    assert found.dtype == jnp.bfloat16
    expected, *_ = normalize(u, scale, bias, bias, jnp.asarray(shortcut, jnp.bfloat16), kernel)
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=0.02, atol=0.02)


def test_a_channel_with_scale_zero_and_one_that_is_constant(rng, forms_for_gpus):
    """Gradients stay finite: neither the scale nor the standard deviation is divided by."""
    u, kernel, scale, bias, _, dy = problem(rng, (4, 3, 3, 5), 6)
    scale[0], kernel[..., 1] = 0, 0
    operands = u, kernel, scale, bias, None, dy
    found, wanted = run(*operands, relu=True), expected(*operands, relu=True)
    for index in (0, 3, 5, 6):
        np.testing.assert_allclose(found[index], wanted[index], rtol=2e-3, atol=2e-3 * np.abs(wanted[index]).max())
    assert all(np.isfinite(leaf).all() for leaf in found)


def test_the_variance_is_never_negative(forms_for_gpus):
    u = jnp.full((2, 3, 3, 4), 1e3 + 1 / 3, jnp.float32)
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 4, 8)), jnp.float32)
    ones = jnp.ones(8)
    _, _, var = gram_norm.normalize_convolution(u, ones, ones, ones, None, kernel, EPSILON, False)
    assert float(var.min()) >= 0


@pytest.mark.parametrize(
    ('shape', 'kernel', 'stride', 'groups', 'suits'),
    [
        ((256, 56, 56, 64), (1, 1, 64, 256), 1, 1, True),
        ((256, 7, 7, 512), (1, 1, 512, 2048), 1, 1, True),
        ((256, 56, 56, 256), (1, 1, 256, 512), 2, 1, True),
        ((128, 7, 7, 512), (1, 1, 512, 2048), 1, 1, False),  # 13 million elements
        ((512, 32, 32, 64), (1, 1, 64, 128), 2, 1, False),  # the first projection of resnet18_cifar
        ((256, 56, 56, 256), (1, 1, 256, 256), 1, 1, False),  # does not widen
        ((256, 56, 56, 64), (3, 3, 64, 256), 1, 1, False),
        ((256, 56, 56, 64), (1, 1, 32, 256), 1, 2, False),
        ((*jax.export.symbolic_shape('n, h, w'), 64), (1, 1, 64, 256), 1, 1, False),
    ],
)
def test_it_suits_large_maps_after_a_convolution_1x1_that_widens(shape, kernel, stride, groups, suits):
    x, kernel = (jax.ShapeDtypeStruct(sizes, jnp.float32) for sizes in (shape, kernel))
    assert gram_norm.suits(x, BoundConvolution(kernel, stride, 1, groups, 'auto')) == suits


def test_batch_norm_uses_it_for_global_statistics(monkeypatch, small_maps_use_gram):
    normalize, kernels = gram_norm.normalize_convolution, []

    def spy(*operands, kernel, **options):
        kernels.append(kernel.shape)
        return normalize(*operands, kernel=kernel, **options)

    monkeypatch.setattr(gram_norm, 'normalize_convolution', spy)
    x = jnp.ones((4, 6, 6, 32))
    for statistics in ('global', 2, 'frozen'):
        block = BottleneckBlock(8, compute=Compute(statistics=statistics))
        variables = jax.eval_shape(lambda block=block: block.init(jax.random.key(0), x, train=False))
        jax.eval_shape(lambda v, block=block: block.apply(v, x, train=True, mutable=['batch_stats']), variables)
    assert kernels == [(1, 1, 8, 32)]
