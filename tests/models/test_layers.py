"""Pooling, stems and shortcuts against the NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError, Shortcut
from resnet_jax import numpy_reference as reference
from resnet_jax.models.pooling import avg_pool, global_avg_pool, max_pool


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
@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (1, 7, 9, 2), (2, 1, 5, 1)])
def test_pooling_values_and_gradients(ours, theirs, shape, rng):
    # Few distinct values: the maximum has ties, and its gradient must go to the first.
    x = rng.integers(0, 4, shape).astype(np.float32) - 2
    y, pullback = jax.vjp(ours, x)
    expected, backward = theirs(np.float64(x))
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    dy = rng.normal(size=y.shape).astype(np.float32)
    np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], backward(np.float64(dy)), rtol=1e-5, atol=1e-6)


def test_max_pool_ignores_its_padding():
    np.testing.assert_array_equal(max_pool(jnp.full((1, 2, 2, 1), -5.0)), np.full((1, 1, 1, 1), -5.0))


def test_option_a_puts_the_zeros_on_both_sides():
    x = jnp.ones((1, 4, 4, 2))
    y, variables = Shortcut(6, 2, 'A').init_with_output(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(y[0, 0, 0], [0, 0, 1, 1, 0, 0])
    assert y.shape == (1, 2, 2, 6)
    assert variables == {}


@pytest.mark.parametrize(
    ('kind', 'has_projection'), [('identity', False), ('A', False), ('B', False), ('C', True), ('D', False)]
)
def test_only_option_c_projects_where_nothing_changes(kind, has_projection, rng):
    x = rng.normal(size=(2, 4, 4, 8)).astype(np.float32)
    y, variables = Shortcut(8, 1, kind).init_with_output(jax.random.key(0), x, train=False)
    assert bool(variables) == has_projection
    assert np.array_equal(y, x) != has_projection


def test_mistakes_name_the_way_out():
    def shortcut(features, stride, kind):
        Shortcut(features, stride, kind).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), train=False)

    with pytest.raises(InputError, match=r'8 channels to 16 at stride 2: use shortcut A'):
        shortcut(16, 2, 'identity')
    with pytest.raises(InputError, match=r'to fewer \(4\)'):
        shortcut(4, 1, 'A')
    with pytest.raises(InputError, match=r"unknown shortcut 'Z'; known: identity, A, B, C, D"):
        shortcut(16, 2, 'Z')
