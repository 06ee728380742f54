"""Normalization with batch statistics: each platform's form against the NumPy reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import numpy_reference as reference
from resnet_jax.models import batch_norm

EPSILON = 1e-5


def problem(rng, shape=(4, 5, 6, 7)):
    """Arguments of ``normalize``, and a gradient of its result; channels have different means."""
    channels = shape[-1]
    x = 2 * rng.normal(size=shape) + rng.normal(size=channels) * 3
    scale, bias = rng.uniform(0.5, 2, channels), rng.normal(size=channels)
    shortcut, dy = rng.normal(size=(2, *shape))
    return [np.float32(value) for value in (x, scale, bias, shortcut, dy)]


def expected(x, scale, bias, shortcut, dy, relu):
    """Result, mean, variance and gradients of ``x``, scale, bias and shortcut, in float64."""
    x, scale, bias, dy = (np.float64(value) for value in (x, scale, bias, dy))
    channels = x.shape[-1]
    y, _, backward = reference.batch_norm(x, scale, bias, np.zeros(channels), np.ones(channels), train=True)
    y = y if shortcut is None else y + np.float64(shortcut)
    dz = dy * (y > 0) if relu else dy
    dx, dscale, dbias = backward(dz)
    moments = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return np.maximum(y, 0) if relu else y, *moments, dx, dscale, dbias, dz


def assert_close(found, wanted, tolerance):
    """Compares arrays, relative to the largest value of each."""
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        ours = np.float64(ours)
        assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), 1e-30), index


def run(x, scale, bias, shortcut, dy, relu):
    """What ``expected`` returns, as the platform computes it."""

    @jax.jit
    def values_and_gradients(*operands):
        *operands, dy = operands

        def function(x, scale, bias, shortcut):
            shift = jnp.full_like(bias, 0.5)
            y, *moments = batch_norm.normalize_vjp(x, scale, bias, shift, shortcut, EPSILON, relu)
            return y, moments

        y, pullback, moments = jax.vjp(function, *operands, has_aux=True)
        dx, dscale, dbias, dz = pullback(dy)
        return y, *moments, dx, dscale, dbias, *([] if dz is None else [dz])

    return values_and_gradients(x, scale, bias, shortcut, dy)


def check(rng, relu, with_shortcut, shape=(4, 5, 6, 7)):
    x, scale, bias, shortcut, dy = problem(rng, shape)
    shortcut = shortcut if with_shortcut else None
    found = run(x, scale, bias, shortcut, dy, relu)
    assert_close(found, expected(x, scale, bias, shortcut, dy, relu)[: len(found)], 2e-5)


@pytest.mark.parametrize('with_shortcut', [True, False])
@pytest.mark.parametrize('relu', [True, False])
def test_values_and_gradients(rng, relu, with_shortcut):
    check(rng, relu, with_shortcut)


@pytest.mark.parametrize('shape', [(4, 5, 6, 7), (3, 1, 1, 1), (1, 2, 3, 2048)])
@pytest.mark.parametrize('with_shortcut', [True, False])
@pytest.mark.parametrize('relu', [True, False])
def test_values_and_gradients_of_the_form_for_gpus(rng, relu, with_shortcut, shape, forms_for_gpus):
    check(rng, relu, with_shortcut, shape)


@pytest.mark.parametrize('with_shortcut', [True, False])
def test_both_gradients_are_equal_in_bfloat16(rng, with_shortcut):
    """Up to the rounding of the results: the mask from ``x`` is that from ``y``, which is rounded."""
    x, scale, bias, shortcut, dy = problem(rng)
    x, shortcut, dy = (jnp.asarray(value, jnp.bfloat16) for value in (x, shortcut, dy))
    y, mean, var = batch_norm.normalize(x, scale, bias, bias, shortcut if with_shortcut else None, EPSILON, True)
    options = {'epsilon': EPSILON, 'relu': True, 'has_shortcut': with_shortcut}
    forms = batch_norm.gradients_from_result, batch_norm.gradients_on_gpu
    found = [jax.jit(functools.partial(form, **options))(x, y, mean, var, scale, bias, dy) for form in forms]
    *ours, dz = found[1]
    *theirs, other_dz = found[0]
    assert_close(ours, [np.float64(value) for value in theirs], 0.01)
    assert (dz is None) == (not with_shortcut)
    if with_shortcut:
        np.testing.assert_array_equal(np.float32(dz), np.float32(other_dz))  # dy or zero


@pytest.mark.parametrize('mean', [0, 3, -1e4])
def test_moments_in_one_pass_equal_those_in_two(mean, rng):
    """As on a TPU: if deviations are from about the mean, the squares do not cancel even for a large mean."""
    x = jnp.asarray(mean + rng.normal(size=(8, 6, 6, 5)), jnp.float32)
    shift = jnp.full(5, mean + 0.5, jnp.float32)
    ours, theirs = batch_norm.moments_in_one_pass(x, shift, None), batch_norm.moments_in_two_passes(x, shift, None)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_variance_of_one_pass_is_never_negative():
    x = jnp.full((2, 3, 3, 4), 1e4 + 1 / 3, jnp.float32)
    _, var = batch_norm.moments_in_one_pass(x, jnp.zeros(4), None)
    assert float(var.min()) >= 0
