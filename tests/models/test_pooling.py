"""Pools and anti-aliasing against the NumPy reference and loops over windows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax import numpy_reference as reference
from resnet_jax.models.pooling import (
    antialias,
    avg_pool,
    avg_pool_3x3,
    avg_pool_in_place,
    blur,
    global_avg_pool,
    max_pool,
    max_pool_ceil_mode,
    max_pool_zero_padded,
)

SHAPES = [(2, 8, 8, 3), (1, 7, 9, 2), (2, 1, 5, 1)]


def value_and_pullback(function, x):
    """As ``jax.vjp``, but value and pullback are compiled programs."""
    pullback = jax.jit(lambda x, dy: jax.vjp(function, x)[1](dy))  # as a constant, x would be folded
    return jax.jit(function)(x), functools.partial(pullback, x)


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (max_pool, reference.max_pool),
        (avg_pool, reference.avg_pool),
        (lambda x: avg_pool(x, 3), lambda x: reference.avg_pool(x, stride=3)),
        (global_avg_pool, reference.global_avg_pool),
    ],
    ids=['max', 'average', 'average stride 3', 'global'],
)
@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_gradients(ours, theirs, shape, rng):
    # Few distinct values, for ties: the gradient must go to the first maximum.
    x = rng.integers(0, 4, shape).astype(np.float32) - 2
    y, pullback = value_and_pullback(ours, x)
    expected, backward = theirs(np.float64(x))
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    dy = rng.normal(size=y.shape).astype(np.float32)
    np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], backward(np.float64(dy)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_max_pool_in_the_form_for_gpus(shape, dtype, rng, forms_for_gpus):
    x = jnp.asarray(rng.integers(0, 4, shape) - 2, dtype)
    y, pullback = value_and_pullback(max_pool, x)
    expected, backward = reference.max_pool(np.float64(x))
    np.testing.assert_array_equal(np.float32(y), expected)
    dy = jnp.asarray(rng.integers(-4, 4, y.shape), dtype)
    np.testing.assert_array_equal(np.float32(pullback(dy)[0]), backward(np.float64(dy)))


def test_max_pool_ignores_its_padding():
    np.testing.assert_array_equal(max_pool(jnp.full((1, 2, 2, 1), -5.0)), np.full((1, 1, 1, 1), -5.0))


def over_windows(reduce, x, size, stride, before, counts, outside):
    """Applies ``reduce`` to ``counts`` windows along H and W, the first of which starts ``before`` pixels outside."""
    n, height, width, channels = x.shape
    y = np.empty((n, *counts, channels))
    for i, j in np.ndindex(*counts):
        pixels = []
        for r in range(i * stride - before, i * stride - before + size):
            for c in range(j * stride - before, j * stride - before + size):
                inside = 0 <= r < height and 0 <= c < width
                pixels.append(x[:, r, c] if inside else np.full((n, channels), outside))
        y[:, i, j] = reduce(np.stack(pixels), axis=0)
    return y


def halves_rounded_up(x):
    return [-(-size // 2) for size in x.shape[1:3]]


# our function, and the same in loops
POOLS = {
    'max, zero padding': (max_pool_zero_padded, lambda x: over_windows(np.max, x, 3, 2, 1, halves_rounded_up(x), 0.0)),
    'max, ceil mode': (
        max_pool_ceil_mode,
        lambda x: over_windows(np.max, x, 3, 2, 0, [max(size // 2, 1) for size in x.shape[1:3]], -np.inf),
    ),
    'average 3x3': (lambda x: avg_pool_3x3(x, 1), lambda x: over_windows(np.mean, x, 3, 1, 1, x.shape[1:3], 0.0)),
    'average 3x3 stride 2': (
        lambda x: avg_pool_3x3(x, 2),
        lambda x: over_windows(np.mean, x, 3, 2, 1, halves_rounded_up(x), 0.0),
    ),
    'average in place': (avg_pool_in_place, lambda x: over_windows(np.mean, x, 2, 1, 0, x.shape[1:3], 0.0)),
}


@pytest.mark.parametrize('name', POOLS)
@pytest.mark.parametrize('shape', [(2, 6, 4, 2), (1, 5, 7, 2), (1, 3, 2, 1), (2, 1, 5, 1)])
def test_pools_equal_loops_over_windows(name, shape, rng, numeric_gradient):
    """Values are around -1, mostly negative, so that padding with zeros, with -inf and no padding differ."""
    ours, theirs = POOLS[name]
    x = (rng.normal(size=shape) - 1).astype(np.float32)
    y, pullback = value_and_pullback(ours, x)
    expected = theirs(np.float64(x))
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    dy = rng.normal(size=y.shape).astype(np.float32)
    slope = numeric_gradient(theirs, np.float64(x), dy)
    np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('shape', [(2, 6, 4, 2), (1, 5, 7, 3), (1, 1, 3, 1), (1, 1, 1, 2)])
def test_blur_is_a_binomial_filter_on_mirrored_edges(stride, shape, rng, by_hand, numeric_gradient):
    def theirs(x):
        return by_hand.binomial_3x3(x, stride)

    x = rng.normal(size=shape).astype(np.float32)
    y, pullback = value_and_pullback(lambda x: blur(x, stride), x)
    np.testing.assert_allclose(y, theirs(np.float64(x)), rtol=1e-5, atol=1e-6)
    dy = rng.normal(size=y.shape).astype(np.float32)
    slope = numeric_gradient(theirs, np.float64(x), dy)
    np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], slope, rtol=1e-4, atol=1e-6)


def test_blur_removes_the_highest_frequency(rng):
    """A constant is not changed."""
    stripes = jnp.asarray(np.indices((1, 6, 6, 1)).sum(0) % 2, jnp.float32)
    np.testing.assert_allclose(blur(stripes), np.full((1, 3, 3, 1), 0.5), rtol=1e-6)
    np.testing.assert_allclose(blur(jnp.full((1, 6, 5, 1), 3.0)), np.full((1, 3, 3, 1), 3.0), rtol=1e-6)


def test_antialias_by_averages_drops_windows_beyond_the_edge(rng):
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    expected = over_windows(np.mean, np.float64(x), 2, 2, 0, (2, 3), np.nan)
    np.testing.assert_allclose(antialias(x, 'average', 2), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(antialias(x, 'average', 1), x)
    np.testing.assert_array_equal(antialias(x, 'blur', 2), blur(x, 2))


def test_a_map_smaller_than_a_window_raises():
    with pytest.raises(InputError, match=r"antialias='average': height and width must be at least 2 .*, found 1x4"):
        antialias(jnp.zeros((1, 1, 4, 2)), 'average', 2)


@pytest.mark.parametrize('pool', [max_pool_zero_padded, max_pool_ceil_mode, avg_pool_in_place, blur])
def test_pools_keep_bfloat16(pool):
    assert pool(jnp.zeros((1, 4, 4, 2), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize('shape', [(3, 1, 4, 1024), (3, 4, 1, 1024), (32, 1, 1, 512)])
def test_average_of_large_maps_one_pixel_high_or_wide(rng, shape):
    """For which the CPU's window sum of jaxlib 0.10.2 is two or four times too large."""
    x = rng.normal(size=shape)
    expected, _ = reference.avg_pool(x)
    np.testing.assert_allclose(avg_pool(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-6)
