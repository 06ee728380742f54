"""Pooling, stems and shortcuts against the NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError, Shortcut


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
