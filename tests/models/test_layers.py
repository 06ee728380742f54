"""Stems and shortcuts against NumPy, stochastic depth, DropBlock."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import Compute, Conv, InputError, Shortcut
from resnet_jax import numpy_reference as reference
from resnet_jax.models.compute import Mode
from resnet_jax.models.layers import Dropout, Stem, drop_block, drop_path, make_normalization


def test_option_a_pads_channels_on_both_sides():
    x = jnp.ones((1, 4, 4, 2))
    y, variables = Shortcut(6, 2, 'A').init_with_output(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(y[0, 0, 0], [0, 0, 1, 1, 0, 0])
    assert y.shape == (1, 2, 2, 6)
    assert variables == {}


@pytest.mark.parametrize(
    ('kind', 'has_projection'), [('identity', False), ('A', False), ('B', False), ('C', True), ('D', False)]
)
def test_only_option_c_projects_if_the_shape_does_not_change(kind, has_projection, rng):
    x = rng.normal(size=(2, 4, 4, 8)).astype(np.float32)
    y, variables = Shortcut(8, 1, kind).init_with_output(jax.random.key(0), x, train=False)
    assert bool(variables) == has_projection
    assert np.array_equal(y, x) != has_projection


def test_invalid_shortcuts_raise():
    def shortcut(features, stride, kind):
        Shortcut(features, stride, kind).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), train=False)

    with pytest.raises(InputError, match=r'cannot map 8 channels to 16 at stride 2; use shortcut A'):
        shortcut(16, 2, 'identity')
    with pytest.raises(InputError, match='shortcut A cannot reduce 8 channels to 4; use shortcut B'):
        shortcut(4, 1, 'A')
    with pytest.raises(InputError, match=r"unknown shortcut 'Z'; known: identity, A, B, C, D"):
        shortcut(16, 2, 'Z')


def normalized(layers, name, h, relu=True):
    return np.maximum(layers.norm(name, h), 0) if relu else h


def stem_by_hand(stem, layers, x):
    if stem.kind in ('imagenet', 'cifar'):
        h = layers.conv('conv', x, stride=2 if stem.kind == 'imagenet' else 1)
        h = normalized(layers, 'norm', h, stem.activate)
    else:
        h = layers.conv_norm_relu('conv1', 'norm1', x, stride=2)
        h = layers.conv_norm_relu('conv2', 'norm2', h)
        h = normalized(layers, 'norm3', layers.conv('conv3', h), stem.activate)
    if stem.kind == 'cifar':
        return h
    if stem.pool == 'conv':
        h = layers.conv('pool_conv', h, stride=2 if stem.antialias == 'none' else 1)
        h = layers.binomial_3x3(h, 2) if stem.antialias == 'blur' else h
        return normalized(layers, 'pool_norm', h)
    if stem.antialias == 'blur':
        return layers.binomial_3x3(reference.max_pool(h, stride=1)[0], 2)
    if stem.antialias == 'average':
        return reference.avg_pool(h)[0][:, : h.shape[1] // 2, : h.shape[2] // 2]  # without windows beyond the edge
    if stem.pool == 'max_zero_padded':
        return reference.max_pool(np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))), padding=0)[0]
    if stem.pool == 'max_ceil_mode':
        below, right = (1 - size % 2 for size in h.shape[1:3])  # where the last 3x3 window extends beyond the edge
        padded = np.pad(h, ((0, 0), (0, below), (0, right), (0, 0)), constant_values=-np.inf)
        return reference.max_pool(padded, padding=0)[0]
    return reference.max_pool(h)[0]


STEMS_TO_TEST = [
    (Stem('imagenet', 8), True),
    (Stem('deep', 8), True),
    (Stem('deep', 8, pool='conv'), True),
    (Stem('tiered', 16, activate=False), False),
    (Stem('imagenet', 4, activate=False, pool='max_zero_padded'), False),
    (Stem('imagenet', 4, pool='max_ceil_mode'), False),
    (Stem('imagenet', 4, antialias='blur'), False),
    (Stem('imagenet', 4, antialias='average'), False),
    (Stem('imagenet', 4, pool='conv', antialias='blur'), False),
    (Stem('cifar', 4), False),
]


@pytest.mark.parametrize(
    ('stem', 'train'),
    STEMS_TO_TEST,
    ids=[f'{s.kind}-{s.pool}-{s.antialias}-{s.activate}-{t}' for s, t in STEMS_TO_TEST],
)
def test_a_stem_equals_its_layers_in_numpy(stem, train, rng, variables_of, by_hand):
    """The pool's input has an even height and an odd width, 8x7."""
    stem = stem.clone(compute=Compute(implementation='xla'))
    x = rng.normal(size=(2, 16, 13, 3)).astype(np.float32)
    variables = variables_of(stem, x.shape, train=False)
    y, updates = jax.jit(lambda v, x: stem.apply(v, x, train=train, mutable=['batch_stats']))(variables, x)
    layers = by_hand(variables, train=train)
    expected = stem_by_hand(stem, layers, np.float64(x))
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    for name, stats in layers.new_stats.items():
        for key, value in stats.items():
            np.testing.assert_allclose(updates['batch_stats'][name][key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'kind': 'wide'}, "unknown stem 'wide'; known: imagenet, deep, tiered, cifar"),
        ({'pool': 'mean'}, "unknown stem_pool 'mean'; known: max, max_zero_padded, max_ceil_mode, conv"),
        ({'antialias': 'sinc'}, "unknown antialias 'sinc'; known: none, blur, average"),
    ],
)
def test_a_stem_names_what_it_knows(options, message):
    stem = Stem(**{'kind': 'imagenet', 'features': 4} | options)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: stem.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))


def average_in_place(x):
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return (padded[:, :-1, :-1] + padded[:, 1:, :-1] + padded[:, :-1, 1:] + padded[:, 1:, 1:]) / 4


@pytest.mark.parametrize(
    ('kind', 'widths'), [('deep', [(3, 32), (32, 32), (32, 64)]), ('tiered', [(3, 24), (24, 32), (32, 64)])]
)
def test_widths_of_stems_with_three_convolutions(kind, widths, variables_of):
    params = variables_of(Stem(kind, 64), (1, 8, 8, 3), train=False)['params']
    assert [params[f'conv{index}']['kernel'].shape[2:] for index in (1, 2, 3)] == widths


# options of a shortcut, and its layers before the normalization
PROJECTIONS = {
    'D with dilation, pool with stride 1': (
        {'kind': 'D', 'dilation': 2},
        lambda layers, x: layers.conv('conv', average_in_place(x)),
    ),
    'D at stride 2': ({'kind': 'D', 'stride': 2}, lambda layers, x: layers.conv('conv', reference.avg_pool(x)[0])),
    'D without stride and dilation': ({'kind': 'D'}, lambda layers, x: layers.conv('conv', x)),
    '3x3 at stride 2': (
        {'kind': 'B', 'kernel_size': 3, 'stride': 2},
        lambda layers, x: layers.conv('conv', x, stride=2),
    ),
    '3x3, dilated as the first convolution': (
        {'kind': 'B', 'kernel_size': 3, 'dilation': 4, 'first_dilation': 2},
        lambda layers, x: layers.conv('conv', x, dilation=2),
    ),
    '1x1 without stride and dilation': (
        {'kind': 'C', 'kernel_size': 3},
        lambda layers, x: layers.conv('conv', x),
    ),
}


@pytest.mark.parametrize('name', PROJECTIONS)
@pytest.mark.parametrize('train', [False, True])
def test_a_projection_equals_its_layers_in_numpy(name, train, rng, variables_of, by_hand):
    options, before = PROJECTIONS[name]
    module = Shortcut(6, **options, compute=Compute(implementation='xla'))
    x = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    variables = variables_of(module, x.shape, train=False)
    layers = by_hand(variables, train=train)
    y, updates = module.apply(variables, x, train=train, mutable=['batch_stats'])
    expected = layers.norm('norm', before(layers, np.float64(x)))
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    for key, value in layers.new_stats['norm'].items():
        np.testing.assert_allclose(updates['batch_stats']['norm'][key], value, rtol=1e-3, atol=1e-5)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    """All pixels and channels of an example are multiplied by 0 or by 1 / (1 - rate)."""
    y = np.asarray(jax.jit(drop_path)(jnp.ones((4000, 2, 3, 2)), 0.25, jax.random.key(0)))
    each = y.reshape(len(y), -1)
    np.testing.assert_array_equal(each.min(1), each.max(1))
    np.testing.assert_allclose(np.unique(each), [0, 1 / 0.75], rtol=1e-6)
    kept = each[:, 0] > 0
    assert abs(kept.mean() - 0.75) < 0.03  # four standard deviations
    assert abs(np.corrcoef(kept[:-1], kept[1:])[0, 1]) < 0.07  # consecutive examples are independent


def test_drop_path_depends_on_key_and_rate():
    x = jnp.ones((64, 1, 1, 1))
    first, again, other = (drop_path(x, 0.5, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(drop_path(x, 0.0, jax.random.key(0)), x)
    assert drop_path(x.astype(jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def test_the_gradient_of_drop_path_is_its_mask():
    x = jnp.ones((32, 1, 2, 1))
    y, pullback = jax.vjp(lambda x: drop_path(x, 0.5, jax.random.key(0)), x)
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0], y)


def covered_by_squares(dropped, rows, columns):
    """Whether each dropped pixel belongs to a completely dropped rectangle of this size."""
    covered = np.zeros_like(dropped)
    for i in range(dropped.shape[0] - rows + 1):
        for j in range(dropped.shape[1] - columns + 1):
            if dropped[i : i + rows, j : j + columns].all():
                covered[i : i + rows, j : j + columns] = True
    return np.array_equal(covered, dropped)


@pytest.mark.parametrize(('shape', 'size'), [((8, 9), 3), ((8, 9), 2), ((6, 5), 1), ((2, 7), 3), ((2, 2), 5)], ids=str)
def test_drop_block_drops_whole_squares(shape, size):
    """The same in all channels, inside of the map, clipped to its size, and rescaled to preserve the mean."""
    y = np.asarray(drop_block(jnp.ones((256, *shape, 2)), 0.1, size, 1.0, jax.random.key(0)))
    np.testing.assert_array_equal(y[..., 0], y[..., 1])
    dropped = y[..., 0] == 0
    rows, columns = min(size, shape[0]), min(size, shape[1])
    assert all(covered_by_squares(each, rows, columns) for each in dropped)
    np.testing.assert_allclose(y[~dropped], 1 / (1 - dropped.mean()), rtol=1e-5)
    np.testing.assert_allclose(y.mean(), 1, rtol=1e-4)
    assert 0 < dropped.any((1, 2)).mean() < 1  # some examples have a square, some have none


@pytest.mark.parametrize(('rate', 'scale'), [(0.1, 1.0), (0.4, 0.25)])
def test_drop_block_drops_about_the_given_fraction(rate, scale):
    """Ghiasi et al. 2018, Eq. 1: slightly less than the rate, because squares overlap."""
    y = np.asarray(drop_block(jnp.ones((2000, 14, 14, 1)), rate, 5, scale, jax.random.key(1)))
    assert 0.85 * rate * scale < (y == 0).mean() < rate * scale


def test_drop_block_depends_on_key_and_rate():
    x = jnp.ones((8, 6, 6, 1))
    first, again, other = (drop_block(x, 0.3, 3, 1.0, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(np.asarray(first).reshape(8, -1), axis=0)) > 4  # examples differ
    np.testing.assert_array_equal(drop_block(x, 0.0, 3, 1.0, jax.random.key(0)), x)
    assert np.isfinite(drop_block(x, 0.99, 6, 1.0, jax.random.key(0))).all()


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_dropout_equals_flax(dtype):
    x = jax.random.normal(jax.random.key(1), (64, 9)).astype(dtype)

    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dropout(0.3)(x)

    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * nn.Dropout(0.3, deterministic=False)(jnp.ones(x.shape, x.dtype))

    rngs = {'dropout': jax.random.key(2)}
    ours, theirs = (module().apply({}, x, rngs=rngs) for module in (Ours, Theirs))
    assert ours.dtype == theirs.dtype == dtype
    np.testing.assert_array_equal(ours, theirs)


def test_what_is_dropped_does_not_depend_on_the_default_dtypes(under):
    key, x = jax.random.key(3), np.ones((32, 6, 5, 2), np.float32)

    def dropped():
        rates = drop_path(x, 0.5, key), drop_block(x, 0.3, 2, 1.0, key)
        return *rates, Dropout(0.3).apply({}, jnp.asarray(x), rngs={'dropout': key})

    plain, wide = (under(dropped, jax_enable_x64=value) for value in (False, True))
    for one, other in zip(plain, wide, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one == 0, other == 0)
        assert 0 < np.mean(one == 0) < 1


class Doubled(Conv):
    """A convolution that is not that of ``Conv``."""

    @nn.compact
    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize(
    'conv',
    [
        functools.partial(Doubled, 8, 1, dtype=jnp.bfloat16),
        functools.partial(Conv, 8, 1, dtype=jnp.float32),
        functools.partial(Conv, 8, 1, dtype=jnp.bfloat16, implementation='xla'),
        functools.partial(Conv, 8, 1, dtype=jnp.bfloat16, use_bias=True),
        functools.partial(nn.Conv, 8, (1, 1), use_bias=False, dtype=jnp.bfloat16),
    ],
    ids=['subclass', 'dtype', 'implementation', 'bias', 'flax'],
)
@pytest.mark.parametrize('train', [True, False])
def test_a_normalization_after_another_convolution_equals_both_in_sequence(conv, train, rng, variables_of):
    class Layers(nn.Module):
        jointly: bool

        @nn.compact
        def __call__(self, x):
            layer = conv(name='conv')
            norm = make_normalization(Compute(dtype=jnp.bfloat16), 'norm', Mode(train, update_stats=False), relu=True)
            return norm.after(layer, x) if self.jointly else norm(layer(x))

    x = np.float32(rng.normal(size=(2, 4, 4, 3)))
    variables = variables_of(Layers(True), x.shape)
    found, expected = (jax.jit(Layers(jointly).apply)(variables, x) for jointly in (True, False))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(found), np.float32(expected))
