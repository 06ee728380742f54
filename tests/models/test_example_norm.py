"""Normalizations by each example's own statistics against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax.models import example_norm


def group_norm(x, p, groups, relu, shortcut, epsilon=1e-5):
    """Wu and He 2018, Eq. 1 and 7, in a loop over examples and groups."""
    y, size = np.empty_like(x), x.shape[-1] // groups
    for n, g in np.ndindex(x.shape[0], groups):
        at = (n, slice(None), slice(None), slice(g * size, (g + 1) * size))
        y[at] = (x[at] - x[at].mean()) / np.sqrt(x[at].var() + epsilon)
    y = y * p['scale'] + p['bias'] + shortcut
    return np.maximum(y, 0) if relu else y


def evo_norm(x, p, groups, relu, shortcut, epsilon=1e-5):
    """Liu et al. 2020, EvoNorm-S0; only scale and bias without activation, or with a shortcut."""
    if not relu or np.any(shortcut):
        y = x * p['scale'] + p['bias'] + shortcut
        return np.maximum(y, 0) if relu else y
    y, size = np.empty_like(x), x.shape[-1] // groups
    swish = x / (1 + np.exp(-p['v'] * x))
    for n, g in np.ndindex(x.shape[0], groups):
        at = (n, slice(None), slice(None), slice(g * size, (g + 1) * size))
        y[at] = swish[at] / np.sqrt(x[at].var() + epsilon)
    return y * p['scale'] + p['bias']


def filter_response_norm(x, p, groups, relu, shortcut, epsilon=1e-5):
    """Singh and Krishnan 2019, Eq. 1 to 3: divides by the rms of each example's channel; with a learned threshold."""
    y = np.empty_like(x)
    for n, c in np.ndindex(x.shape[0], x.shape[3]):
        y[n, :, :, c] = x[n, :, :, c] / np.sqrt(np.square(x[n, :, :, c]).mean() + epsilon)
    y = y * p['scale'] + p['bias']
    if np.any(shortcut):
        y = y + shortcut
        return np.maximum(y, 0) if relu else y
    return np.maximum(y, p['tau']) if relu else y


EXAMPLE_NORMS = {
    'group': (example_norm.GroupNorm, {'groups': 3}, group_norm),
    'evo': (example_norm.EvoNormS0, {'groups': 2}, evo_norm),
    'filter response': (example_norm.FilterResponseNorm, {}, filter_response_norm),
}


@pytest.mark.parametrize('name', EXAMPLE_NORMS)
@pytest.mark.parametrize(('relu', 'has_shortcut'), [(True, False), (False, False), (True, True), (False, True)])
def test_per_example_norms_equal_their_formulas(name, relu, has_shortcut, rng, numeric_gradient, variables_of):
    """Values and input gradients; training and evaluation are the same."""
    kind, options, theirs = EXAMPLE_NORMS[name]
    layer = kind(relu=relu, **options)
    x = (1 + 2 * rng.normal(size=(2, 3, 4, 6))).astype(np.float32)
    shortcut = rng.normal(size=x.shape).astype(np.float32) if has_shortcut else None
    variables = variables_of(layer.clone(relu=relu and not has_shortcut), x.shape, train=False)
    params = jax.tree.map(np.float64, variables['params'])

    def by_loops(x):
        return theirs(x, params, options.get('groups'), relu, np.float64(shortcut) if has_shortcut else 0.0)

    y, pullback = jax.vjp(jax.jit(lambda x: layer.apply(variables, x, shortcut, train=True)), x)
    np.testing.assert_allclose(y, by_loops(np.float64(x)), rtol=1e-4, atol=1e-5)
    evaluation = jax.jit(functools.partial(layer.apply, train=False))(variables, x, shortcut)
    np.testing.assert_allclose(y, evaluation, rtol=1e-5, atol=1e-6)
    dy = rng.normal(size=x.shape).astype(np.float32)
    slope = numeric_gradient(by_loops, np.float64(x), dy)
    np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('kind', 'relu', 'names'),
    [
        (example_norm.GroupNorm, True, {'scale', 'bias'}),
        (example_norm.EvoNormS0, True, {'scale', 'bias', 'v'}),
        (example_norm.EvoNormS0, False, {'scale', 'bias'}),
        (example_norm.FilterResponseNorm, True, {'scale', 'bias', 'tau'}),
        (example_norm.FilterResponseNorm, False, {'scale', 'bias'}),
    ],
)
def test_per_example_norms_have_no_running_statistics(kind, relu, names):
    x = jax.ShapeDtypeStruct((1, 1, 1, 32), jnp.bfloat16)
    layer = kind(relu=relu, dtype=jnp.bfloat16)
    y, variables = jax.eval_shape(lambda key, x: layer.init_with_output(key, x, train=True), jax.random.key(0), x)
    assert set(variables) == {'params'}
    assert set(variables['params']) == names
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('kind', [example_norm.GroupNorm, example_norm.EvoNormS0, example_norm.FilterResponseNorm])
def test_per_example_norms_are_finite_for_a_single_pixel(kind):
    """Its variance is 0, but epsilon keeps values and gradients finite."""
    layer = kind(relu=True)
    for value in (0.0, 5.0):
        x = jnp.full((2, 1, 1, 32), value)
        variables = layer.init(jax.random.key(0), x, train=True)
        y, gradient = jax.jit(jax.value_and_grad(lambda x, v=variables: layer.apply(v, x, train=True).sum()))(x)
        assert np.isfinite(y)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize('kind', [example_norm.GroupNorm, example_norm.EvoNormS0])
def test_groups_of_a_norm_must_divide_the_channels(kind):
    with pytest.raises(InputError, match=r'the channels must be a multiple of 32 .*, found 48'):
        kind(relu=True).init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)), train=False)
