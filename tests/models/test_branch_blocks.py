"""Blocks with several branches against NumPy: values and running statistics in both modes, gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import Compute, InputError
from resnet_jax.models.branch_blocks import (
    BLOCKS,
    Res2NetBlock,
    SelectiveKernelBasicBlock,
    SelectiveKernelBottleneckBlock,
    SplitAttentionBlock,
)

SHAPE = (3, 5, 6, 8)


class Inner:
    """The layers of a submodule, which the block's layers have as ``conv2/conv``."""

    def __init__(self, layers, prefix):
        self.layers, self.prefix = layers, prefix

    def conv(self, name, x, **options):
        return self.layers.conv(f'{self.prefix}/{name}', x, **options)

    def conv_norm_relu(self, conv, norm, x, **options):
        return self.layers.conv_norm_relu(f'{self.prefix}/{conv}', f'{self.prefix}/{norm}', x, **options)


def add_shortcut(layers, h, x, stride):
    if 'shortcut' in layers.params:
        x = layers.norm('shortcut/norm', layers.conv('shortcut/conv', x, stride=stride))
    return np.maximum(h + x, 0)


def softmax(logits, axis):
    exp = np.exp(logits)
    return exp / exp.sum(axis, keepdims=True)


def split_attention_block(block, layers, x):
    """Zhang et al. 2020, for cardinality 1, where the softmax is over ``[radix, features]`` without a permutation."""
    inner, width, radix = Inner(layers, 'conv2'), block.inner_width, block.radix
    h = layers.conv_norm_relu('conv1', 'norm1', x)
    h = layers.average_3x3(h, block.stride) if block.stride > 1 and block.pool_first else h
    options = {'groups': radix, 'dilation': block.first_dilation or block.dilation}
    h = inner.conv_norm_relu('conv', 'norm0', h, **options)
    branches = h.reshape(*h.shape[:3], radix, width)
    mean = branches.sum(3).mean((1, 2), keepdims=True)
    logits = inner.conv('fc2', inner.conv_norm_relu('fc1', 'norm1', mean)).reshape(-1, 1, 1, radix, width)
    h = (branches * softmax(logits, 3)).sum(3)
    h = layers.average_3x3(h, block.stride) if block.stride > 1 and not block.pool_first else h
    return add_shortcut(layers, layers.norm('norm3', layers.conv('conv3', h)), x, block.stride)


def selective_kernel(block, inner, x, features, groups):
    half = x.shape[-1] // 2
    parts = (x[..., :half], x[..., half:]) if block.split_input else (x, x)
    dilation = block.first_dilation or block.dilation
    paths = [
        inner.conv_norm_relu(
            f'path{i}_conv', f'path{i}_norm', part, stride=block.stride, dilation=i * dilation, groups=groups
        )
        for i, part in enumerate(parts, 1)
    ]
    mean = sum(paths).mean((1, 2), keepdims=True)
    logits = inner.conv('fc_select', inner.conv_norm_relu('fc_reduce', 'fc_norm', mean))
    weights = softmax(logits.reshape(-1, 1, 1, 2, features), 3)
    return sum(path * weights[:, :, :, i] for i, path in enumerate(paths))


def selective_kernel_basic_block(block, layers, x):
    h = selective_kernel(block, Inner(layers, 'conv1'), x, block.features, 1)
    h = layers.norm('norm2', layers.conv('conv2', h, dilation=block.dilation))
    return add_shortcut(layers, h, x, block.stride)


def selective_kernel_bottleneck_block(block, layers, x):
    h = layers.conv_norm_relu('conv1', 'norm1', x)
    h = selective_kernel(block, Inner(layers, 'conv2'), h, block.inner_width, block.cardinality)
    return add_shortcut(layers, layers.norm('norm3', layers.conv('conv3', h)), x, block.stride)


def scale_block(block, layers, x):
    """Gao et al. 2019, Eq. 1; the first block of a stage has a projection, and its steps do not add."""
    width, first = block.inner_width, 'shortcut' in layers.params
    h = layers.conv_norm_relu('conv1', 'norm1', x)
    results = []
    for i in range(block.scale):
        share = h[..., i * width : (i + 1) * width]
        if i == block.scale - 1:
            results.append(layers.average_3x3(share, block.stride) if first else share)
            continue
        share = share if first or i == 0 else share + results[-1]
        options = {'stride': block.stride, 'dilation': block.first_dilation or block.dilation}
        options['groups'] = block.cardinality
        results.append(layers.conv_norm_relu(f'conv2_{i + 1}', f'norm2_{i + 1}', share, **options))
    h = layers.conv('conv3', np.concatenate(results, -1))
    return add_shortcut(layers, layers.norm('norm3', h), x, block.stride)


# block, its oracle, train
CASES = [
    (SplitAttentionBlock(4, 2), split_attention_block, True),
    (SplitAttentionBlock(6, 2, radix=3, pool_first=True), split_attention_block, False),
    (SplitAttentionBlock(2, dilation=2, first_dilation=1), split_attention_block, False),
    (SelectiveKernelBasicBlock(6, 2, reduction=1 / 2, divisor=4), selective_kernel_basic_block, True),
    (SelectiveKernelBasicBlock(8, dilation=2, first_dilation=1), selective_kernel_basic_block, False),
    (
        SelectiveKernelBottleneckBlock(4, 2, cardinality=2, base_width=32, split_input=False),
        selective_kernel_bottleneck_block,
        True,
    ),
    (SelectiveKernelBottleneckBlock(2), selective_kernel_bottleneck_block, False),
    (Res2NetBlock(4, 2, scale=3), scale_block, True),
    (Res2NetBlock(2, scale=4), scale_block, False),
    (Res2NetBlock(2, scale=2, cardinality=2, base_width=32, dilation=2), scale_block, False),
]


def describe(case):
    block, _, train = case
    own = {f.name: getattr(block, f.name) for f in dataclasses.fields(block) if f.name not in ('parent', 'name')}
    chosen = {k: v for k, v in own.items() if v != type(block).__dataclass_fields__[k].default}
    return f'{type(block).__name__}-{chosen}-{"train" if train else "eval"}'


@pytest.mark.parametrize('case', CASES, ids=describe)
def test_block_equals_its_layers_in_numpy(case, rng, variables_of, by_hand):
    block, theirs, train = case
    block = block.clone(compute=Compute(implementation='xla'))
    x = rng.normal(size=SHAPE).astype(np.float32)
    variables = variables_of(block, SHAPE, train=False)
    run = jax.jit(lambda v, x: block.apply(v, x, train=train, mutable=['batch_stats']))
    y, updates = run(variables, x)
    layers = by_hand(variables, train=train)
    expected = theirs(block, layers, np.float64(x))
    assert y.shape == expected.shape
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=tolerance)
    for path, stats in layers.new_stats.items():
        ours = functools.reduce(lambda node, part: node[part], path.split('/'), updates['batch_stats'])
        for key, value in stats.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('block', [SplitAttentionBlock(4, 2), Res2NetBlock(2, scale=3)], ids=lambda b: type(b).__name__)
def test_gradients_equal_those_of_plain_xla(block, rng, variables_of):
    """The hand-written gradients of convolution and normalization against JAX's own, for a whole block."""
    x = rng.normal(size=SHAPE).astype(np.float32)
    variables = variables_of(block, SHAPE, train=False)

    def gradients(implementation):
        def loss(params, x):
            whole = block.clone(compute=Compute(implementation=implementation))
            y, _ = whole.apply(variables | {'params': params}, x, train=True, mutable=['batch_stats'])
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(variables['params'], x)

    ours, plain = gradients('auto'), gradients('xla')
    # The gradient of a bias before a normalization is only rounding error: compare it with the largest gradient.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * largest), ours, plain)


def shapes_of(block, shape=(2, 6, 6, 8)):
    """Returns the shapes of the result and of the variables."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda key, x: block.init_with_output(key, x, train=False), jax.random.key(0), x)


def test_channel_attention_after_the_branches():
    """All of these blocks support channel attention, with its own parameters."""
    for block in (SplitAttentionBlock(4, attention='eca'), Res2NetBlock(4, attention='se')):
        _, variables = shapes_of(block)
        assert 'attention' in variables['params']


def test_invalid_options_raise():
    with pytest.raises(InputError, match='scale=1 must be at least 2'):
        shapes_of(Res2NetBlock(8, scale=1))
    with pytest.raises(InputError, match='radix=0 must be at least 1'):
        shapes_of(SplitAttentionBlock(8, radix=0))
    with pytest.raises(InputError, match='base_width=1 is too small: a width of 8 leaves no channels'):
        shapes_of(Res2NetBlock(8, base_width=1))
    with pytest.raises(InputError, match=r'groups=4 must divide the input channels \(2\)'):
        shapes_of(SelectiveKernelBottleneckBlock(8, cardinality=4, base_width=8))
    with pytest.raises(InputError, match='split_input=True requires an even number of channels, found 7'):
        shapes_of(SelectiveKernelBasicBlock(8), (2, 6, 6, 7))


@pytest.mark.parametrize('name', BLOCKS)
def test_output_shape(name):
    """``[N, ceil(H / stride), ceil(W / stride), out_features]`` for odd sizes, with and without dilation."""
    for options in ({'stride': 2}, {'dilation': 2, 'first_dilation': 1}):
        block = BLOCKS[name](16, **options)
        y, _ = shapes_of(block, (2, 7, 5, 8))
        sizes = (4, 3) if block.stride == 2 else (7, 5)
        assert y.shape == (2, *sizes, block.out_features)
