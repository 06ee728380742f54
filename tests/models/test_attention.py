"""Channel attention against NumPy: values in both modes, running statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import Compute, InputError
from resnet_jax.models.attention import (
    EfficientChannelAttention,
    SelectiveKernel,
    SplitAttention,
    SqueezeExcite,
    make_divisible,
)

SHAPE = (3, 5, 4, 8)


@pytest.mark.parametrize(
    ('value', 'divisor', 'least', 'expected'),
    [
        (4, 8, None, 8),  # at least one divisor
        (11.9, 8, None, 8),
        (12, 8, None, 16),  # ties are rounded up
        (32, 8, 32, 32),
        (16, 8, 32, 32),  # at least ``least``
        (50, 16, None, 48),
    ],
)
def test_make_divisible_rounds_to_the_nearest_multiple(value, divisor, least, expected):
    assert make_divisible(value, divisor, least) == expected


def check_gate(module, theirs, rng, variables_of, numeric_gradient):
    """Checks values and the input gradient of a module without normalization."""
    x = rng.normal(size=(2, 3, 2, 8)).astype(np.float32)
    variables = variables_of(module, x.shape)
    y, pullback = jax.vjp(lambda x: module.apply(variables, x), x)
    params = jax.tree.map(np.float64, variables['params'])
    np.testing.assert_allclose(y, theirs(np.float64(x), params), rtol=1e-4, atol=1e-5)
    dy = rng.normal(size=x.shape).astype(np.float32)
    slope = numeric_gradient(lambda x: theirs(x, params), np.float64(x), dy)
    np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], slope, rtol=1e-3, atol=1e-5)


def test_squeeze_excite_equals_its_formula(rng, variables_of, numeric_gradient, by_hand):
    check_gate(SqueezeExcite(3), by_hand.squeeze_excite, rng, variables_of, numeric_gradient)


@pytest.mark.parametrize('channels', [8, 512])
def test_efficient_channel_attention_equals_its_formula(channels, rng, variables_of, numeric_gradient, by_hand):
    """The kernel size depends on ``channels``, not on the input, as pruned networks need it."""
    module = EfficientChannelAttention(channels)
    check_gate(module, lambda x, p: by_hand.channel_attention(x, p['kernel']), rng, variables_of, numeric_gradient)


@pytest.mark.parametrize(('channels', 'taps'), [(2, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)])
def test_the_kernel_size_of_channel_attention(channels, taps):
    """Wang et al. 2020, Eq. 12 with gamma 2 and b 1, rounded up to an odd number as in the authors' code."""
    module = EfficientChannelAttention(channels)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 2, 8), jnp.float32))
    assert shapes['params']['kernel'].shape == (taps, 1, 1)


@pytest.mark.parametrize('module', [SqueezeExcite(2, jnp.bfloat16), EfficientChannelAttention(8, jnp.bfloat16)])
def test_gates_in_bfloat16_have_float32_parameters(module):
    x = jax.ShapeDtypeStruct((1, 2, 2, 8), jnp.bfloat16)
    y, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def check_branches(module, theirs, train, rng, variables_of, by_hand):
    x = rng.normal(size=SHAPE).astype(np.float32)
    variables = variables_of(module, x.shape, train=False)
    run = jax.jit(lambda v, x: module.apply(v, x, train=train, mutable=['batch_stats']))
    y, updates = run(variables, x)
    layers = by_hand(variables, train=train)
    expected = theirs(layers, np.float64(x))
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    assert set(layers.new_stats) == set(updates['batch_stats'])
    for name, stats in layers.new_stats.items():
        for key, value in stats.items():
            np.testing.assert_allclose(updates['batch_stats'][name][key], value, rtol=1e-3, atol=1e-4)


def split_attention(module, layers, x):
    """Zhang et al. 2020, section 3.1, in loops over groups and branches."""
    radix, groups, features = module.radix, module.groups, module.features
    options = {'stride': module.stride, 'dilation': module.dilation, 'groups': groups * radix}
    h = layers.conv_norm_relu('conv', 'norm0', x, **options)
    branches = [h[..., r * features : (r + 1) * features] for r in range(radix)]
    mean = sum(branches).mean((1, 2), keepdims=True)
    hidden = layers.conv_norm_relu('fc1', 'norm1', mean, groups=groups)
    logits = layers.conv('fc2', hidden, groups=groups)[:, 0, 0]
    out, size = np.zeros_like(branches[0]), features // groups
    for group in range(groups):
        own = logits[:, group * radix * size : (group + 1) * radix * size].reshape(-1, radix, size)
        weights = np.exp(own) / np.exp(own).sum(1, keepdims=True) if radix > 1 else layers.sigmoid(own)
        at = slice(group * size, (group + 1) * size)
        for r in range(radix):
            out[..., at] += branches[r][..., at] * weights[:, r, None, None]
    return out


@pytest.mark.parametrize(
    ('options', 'train'),
    [
        ({'radix': 2, 'groups': 2}, False),
        ({'radix': 2, 'groups': 2}, True),
        ({'radix': 4, 'groups': 1, 'stride': 2}, True),
        ({'radix': 1, 'groups': 2, 'dilation': 2}, False),
    ],
    ids=str,
)
def test_split_attention_equals_its_formula(options, train, rng, variables_of, by_hand):
    module = SplitAttention(8, **options, compute=Compute(implementation='xla'))
    check_branches(module, lambda layers, x: split_attention(module, layers, x), train, rng, variables_of, by_hand)


def selective_kernel(module, layers, x):
    """Li et al. 2019, section 3.1: split, fuse, select."""
    channels = x.shape[-1]
    parts = (x[..., : channels // 2], x[..., channels // 2 :]) if module.split_input else (x, x)
    paths = [
        layers.conv_norm_relu(
            f'path{index}_conv',
            f'path{index}_norm',
            part,
            stride=module.stride,
            dilation=index * module.dilation,
            groups=module.groups,
        )
        for index, part in enumerate(parts, 1)
    ]
    mean = (paths[0] + paths[1]).mean((1, 2), keepdims=True)
    logits = layers.conv('fc_select', layers.conv_norm_relu('fc_reduce', 'fc_norm', mean))
    first, second = np.exp(logits[..., : module.features]), np.exp(logits[..., module.features :])
    return (paths[0] * first + paths[1] * second) / (first + second)


@pytest.mark.parametrize(
    ('options', 'train'),
    [
        ({'split_input': True}, True),
        ({'split_input': True, 'stride': 2, 'groups': 2}, False),
        ({'split_input': False, 'stride': 2, 'dilation': 2}, True),
    ],
    ids=str,
)
def test_selective_kernel_equals_its_formula(options, train, rng, variables_of, by_hand):
    module = SelectiveKernel(6, **options, divisor=4, compute=Compute(implementation='xla'))
    check_branches(module, lambda layers, x: selective_kernel(module, layers, x), train, rng, variables_of, by_hand)


def test_invalid_channels_raise():
    def init(module, channels):
        x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
        jax.eval_shape(lambda key, x: module.init(key, x, train=False), jax.random.key(0), x)

    with pytest.raises(InputError, match='split_input=True requires an even number of channels, found 7'):
        init(SelectiveKernel(8), 7)
    with pytest.raises(InputError, match=r'groups=6 must divide the input channels \(8\)'):
        init(SplitAttention(6, groups=3), 8)
    with pytest.raises(InputError, match=r'groups=3 must divide .* output channels \(32\)'):
        init(SplitAttention(9, groups=3, radix=1), 9)
