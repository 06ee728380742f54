"""Normalizations against the NumPy reference and formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BatchNorm, InputError
from resnet_jax import numpy_reference as reference


@pytest.fixture
def problem(rng):
    x = (3 + 2 * rng.normal(size=(4, 5, 6, 7))).astype(np.float32)
    params = {'scale': rng.uniform(0.5, 2, 7).astype(np.float32), 'bias': rng.normal(size=7).astype(np.float32)}
    stats = {'mean': rng.normal(size=7).astype(np.float32), 'var': rng.uniform(0.5, 2, 7).astype(np.float32)}
    return x, params, stats


def reference_norm(x, params, stats, train):
    wide = [np.float64(value) for value in (x, params['scale'], params['bias'], stats['mean'], stats['var'])]
    return reference.batch_norm(*wide, train=train)


@pytest.mark.parametrize('train', [True, False])
def test_values_gradients_and_running_statistics(problem, train, rng):
    x, params, stats = problem

    def run(x, params):
        return BatchNorm().apply({'params': params, 'batch_stats': stats}, x, train=train, mutable=['batch_stats'])

    y, pullback, updates = jax.vjp(jax.jit(run), x, params, has_aux=True)
    expected, (mean, var), backward = reference_norm(x, params, stats, train)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates['batch_stats']['mean'], mean, rtol=1e-5)
    np.testing.assert_allclose(updates['batch_stats']['var'], var, rtol=1e-5)
    dy = rng.normal(size=y.shape).astype(np.float32)
    dx, grads = pullback(jnp.asarray(dy))
    expected_dx, dscale, dbias = backward(np.float64(dy))
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(grads['scale'], dscale, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads['bias'], dbias, rtol=1e-4, atol=1e-4)


def test_running_statistics_by_hand():
    """Decay 0.9 from mean 0 and variance 1, twice, on values 1 and 3: mean 2, unbiased variance 2."""
    x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    variables = BatchNorm().init(jax.random.key(0), x, train=True)
    assert float(variables['batch_stats']['mean'][0]) == 0  # initialization does not update the statistics
    for mean, var in ((0.2, 1.1), (0.38, 1.19)):
        _, updates = BatchNorm().apply(variables, x, train=True, mutable=['batch_stats'])
        variables = variables | updates
        np.testing.assert_allclose(variables['batch_stats']['mean'], [mean], rtol=1e-6)
        np.testing.assert_allclose(variables['batch_stats']['var'], [var], rtol=1e-6)


def test_bfloat16_has_float32_statistics(problem):
    x, params, stats = problem
    half = jnp.asarray(x, jnp.bfloat16)
    y, updates = BatchNorm(dtype=jnp.bfloat16).apply(
        {'params': params, 'batch_stats': stats}, half, train=True, mutable=['batch_stats']
    )
    assert y.dtype == jnp.bfloat16
    _, (mean, var), _ = reference_norm(np.float64(half), params, stats, True)
    np.testing.assert_allclose(updates['batch_stats']['mean'], mean, rtol=1e-5)
    np.testing.assert_allclose(updates['batch_stats']['var'], var, rtol=1e-5)


def test_the_variance_is_accurate_for_a_large_mean():
    x = 1000 + jnp.array([-0.5, 0.5]).reshape(2, 1, 1, 1)
    y, _ = BatchNorm().init_with_output(jax.random.key(0), x, train=True)
    np.testing.assert_allclose(y.ravel(), [-1, 1], rtol=1e-3)


def test_zero_init():
    variables = BatchNorm(zero_init=True).init(jax.random.key(0), jnp.ones((1, 2, 2, 3)), train=False)
    np.testing.assert_array_equal(variables['params']['scale'], np.zeros(3))


@pytest.mark.parametrize('implementation', ['auto', 'xla'])
def test_ghost_batches_are_normalized_independently(problem, implementation, rng):
    """Values, gradients and running statistics equal those of the individual parts."""
    x, params, stats = problem
    dy, shortcut = rng.normal(size=(2, *x.shape)).astype(np.float32)
    options = {'relu': True, 'implementation': implementation}

    def run(x, params, shortcut, **more):
        norm = BatchNorm(**options, **more)
        variables = {'params': params, 'batch_stats': stats}
        return norm.apply(variables, x, shortcut, train=True, mutable=['batch_stats'])

    y, pullback, updates = jax.vjp(jax.jit(functools.partial(run, statistics=2)), x, params, shortcut, has_aux=True)
    dx, dparams, dshortcut = pullback(jnp.asarray(dy))
    parts = [slice(0, 2), slice(2, 4)]
    whole = jax.jit(run)
    expected = [jax.vjp(whole, x[part], params, shortcut[part], has_aux=True) for part in parts]
    np.testing.assert_allclose(y, jnp.concatenate([part[0] for part in expected]), rtol=1e-5, atol=1e-5)
    gradients = [pull(jnp.asarray(dy[part])) for part, (_, pull, _) in zip(parts, expected, strict=True)]
    np.testing.assert_allclose(dx, jnp.concatenate([g[0] for g in gradients]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dshortcut, jnp.concatenate([g[2] for g in gradients]), rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(dparams[name], sum(g[1][name] for g in gradients), rtol=1e-4, atol=1e-4)
    for name in stats:
        means = sum(part[2]['batch_stats'][name] for part in expected) / 2
        np.testing.assert_allclose(updates['batch_stats'][name], means, rtol=1e-5)


def test_ghost_batches_must_divide_the_batch(problem):
    x, params, stats = problem
    with pytest.raises(
        InputError, match=r'the batch size must be a multiple of statistics=3 \(the ghost batch\), found 4'
    ):
        BatchNorm(statistics=3).apply({'params': params, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])


def test_frozen_statistics_are_used_and_not_updated(problem):
    x, params, stats = problem
    variables = {'params': params, 'batch_stats': stats}
    frozen = BatchNorm(statistics='frozen')
    y, updates = frozen.apply(variables, x, train=True, mutable=['batch_stats'])
    np.testing.assert_array_equal(y, BatchNorm().apply(variables, x, train=False))
    jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], stats)
    with pytest.raises(InputError, match='update_stats=True requires'):
        frozen.apply(variables, x, train=True, update_stats=True, mutable=['batch_stats'])


def test_an_unbound_axis_name_raises():
    layer, x = BatchNorm(axis_name='data'), jnp.ones((2, 3, 3, 4))
    variables = layer.init(jax.random.key(0), x, train=True)  # without the axis
    with pytest.raises(InputError, match=r"axis_name='data' is not bound; call the network inside jax.shard_map, jax"):
        layer.apply(variables, x, train=True, mutable=['batch_stats'])
    assert layer.apply(variables, x, train=False).shape == x.shape


@pytest.mark.parametrize(('batch', 'statistics'), [(1, 'global'), (4, 1)])
def test_a_single_value_per_channel_raises(batch, statistics):
    """Its normalized value is 0 whatever it is: the layer would ignore its input."""
    layer = BatchNorm(statistics=statistics)
    x = jnp.ones((batch, 1, 1, 2))
    variables = layer.init(jax.random.key(0), x, train=True)
    with pytest.raises(InputError, match=r'more than one value per channel in training, found \[\d, 1, 1, 2\] with'):
        layer.apply(variables, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(
        layer.apply(variables, x, train=False), np.full(x.shape, 1 / np.sqrt(1 + 1e-5)), rtol=1e-6
    )
