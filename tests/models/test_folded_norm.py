"""Normalization with running statistics after a convolution: each platform's form against the NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import numpy_reference as reference
from resnet_jax.models import folded_norm
from resnet_jax.models.conv import BoundConvolution

EPSILON = 1e-5


def problem(rng, features=6):
    """Operands of ``normalize`` for a strided convolution with two groups."""
    x = rng.normal(size=(2, 6, 5, 4))
    kernel = rng.normal(size=(3, 3, 2, features))
    mean, bias = rng.normal(size=(2, features))
    var, scale = rng.uniform(0.2, 3, (2, features))
    shortcut, dy = rng.normal(size=(2, 2, 3, 3, features))
    return [np.float32(value) for value in (x, kernel, mean, var, scale, bias, shortcut, dy)]


def run(x, kernel, mean, var, scale, bias, shortcut, dy, relu, implementation='auto'):
    """The result and the gradients of image, kernel, scale and bias."""

    def function(x, kernel, scale, bias):
        conv = BoundConvolution(kernel, 2, 1, 2, implementation)
        return folded_norm.normalize(x, conv, mean, var, scale, bias, shortcut, EPSILON, relu)

    @jax.jit
    def compute(*operands):
        y, pullback = jax.vjp(function, *operands)
        return y, *pullback(dy.astype(y.dtype))

    return compute(x, kernel, scale, bias)


def expected(x, kernel, mean, var, scale, bias, shortcut, dy, relu):
    """The same in float64."""
    x, kernel, mean, var, scale, bias, dy = map(np.float64, (x, kernel, mean, var, scale, bias, dy))
    h, through_conv = reference.convolution(x, kernel, stride=2, groups=2)
    y, _, through_norm = reference.batch_norm(h, scale, bias, mean, var, train=False)
    y = y if shortcut is None else y + np.float64(shortcut)
    dh, dscale, dbias = through_norm(dy * (y > 0) if relu else dy)
    return np.maximum(y, 0) if relu else y, *through_conv(dh), dscale, dbias


def assert_close(found, wanted, tolerance):
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.abs(np.float64(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


def check(rng, relu, with_shortcut, implementation='auto'):
    *operands, shortcut, dy = problem(rng)
    operands = [*operands, shortcut if with_shortcut else None, dy]
    assert_close(run(*operands, relu, implementation), expected(*operands, relu), 1e-5)


@pytest.mark.parametrize('implementation', ['auto', 'xla'])
@pytest.mark.parametrize(('relu', 'with_shortcut'), [(True, True), (False, False)])
def test_values_and_gradients(rng, relu, with_shortcut, implementation):
    check(rng, relu, with_shortcut, implementation)


@pytest.mark.parametrize(('relu', 'with_shortcut'), [(True, True), (True, False), (False, True), (False, False)])
def test_values_and_gradients_of_the_form_for_gpus(rng, relu, with_shortcut, forms_for_gpus):
    check(rng, relu, with_shortcut)


def test_the_form_for_gpus_in_bfloat16(rng, forms_for_gpus):
    x, kernel, mean, var, scale, bias, shortcut, dy = problem(rng)
    x, shortcut, dy = (jnp.asarray(value, jnp.bfloat16) for value in (x, shortcut, dy))
    operands = x, kernel, mean, var, scale, bias, shortcut, dy
    y, *_ = run(*operands, relu=True)
    assert y.dtype == jnp.bfloat16
    assert_close([y], expected(*map(np.float64, operands), relu=True)[:1], 0.02)


def test_without_a_convolution(rng):
    _, _, mean, var, scale, bias, shortcut, _ = problem(rng)
    x = np.float32(rng.normal(size=shortcut.shape))
    y = folded_norm.normalize(x, None, mean, var, scale, bias, shortcut, EPSILON, True)
    wide = map(np.float64, (x, scale, bias, mean, var))
    wanted, _, _ = reference.batch_norm(*wide, train=False)
    assert_close([y], [np.maximum(wanted + shortcut, 0)], 1e-5)
