"""Every block with every shortcut against the NumPy reference: values, statistics and gradients."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import (
    BasicBlock,
    BottleneckBlock,
    Compute,
    InputError,
    PlainBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
)
from resnet_jax import numpy_reference as reference
from resnet_jax.models.blocks import Block, LegacySEBasicBlock

IN = 8
XLA = Compute(implementation='xla')
FROZEN = Compute(implementation='xla', statistics='frozen')
# block, its reference, options of both, input height and width
CASES = [
    (PlainBlock, reference.plain_block, {'stride': 1}, (5, 6)),
    (PlainBlock, reference.plain_block, {'stride': 2}, (6, 5)),
    *[(BasicBlock, reference.basic_block, {'stride': 2, 'shortcut': kind}, (7, 6)) for kind in 'ABCD'],
    (BasicBlock, reference.basic_block, {'stride': 1, 'shortcut': 'identity', 'features': IN}, (5, 5)),
    (BasicBlock, reference.basic_block, {'stride': 1, 'shortcut': 'C', 'features': IN}, (4, 4)),
    *[(BottleneckBlock, reference.bottleneck_block, {'stride': 2, 'shortcut': kind}, (6, 7)) for kind in 'BD'],
    (BottleneckBlock, reference.bottleneck_block, {'stride': 1, 'shortcut': 'identity', 'features': IN // 4}, (5, 4)),
    (BottleneckBlock, reference.bottleneck_block, {'stride': 2, 'stride_in_1x1': True}, (7, 7)),
    (BottleneckBlock, reference.bottleneck_block, {'stride': 2, 'cardinality': 4, 'base_width': 16}, (6, 6)),
    *[(PreActBasicBlock, reference.preact_basic_block, {'stride': 2, 'shortcut': kind}, (6, 7)) for kind in 'ABD'],
    (PreActBasicBlock, reference.preact_basic_block, {'stride': 1, 'shortcut': 'B', 'features': IN}, (5, 5)),
    (PreActBasicBlock, reference.preact_basic_block, {'stride': 1, 'shortcut': 'C', 'features': IN}, (5, 4)),
    (PreActBasicBlock, reference.preact_basic_block, {'first': True, 'features': IN}, (4, 5)),
    *[(PreActBottleneckBlock, reference.preact_bottleneck_block, {'stride': 2, 'shortcut': k}, (7, 6)) for k in 'ABD'],
    (PreActBottleneckBlock, reference.preact_bottleneck_block, {'shortcut': 'C', 'features': IN // 4}, (4, 4)),
    (PreActBottleneckBlock, reference.preact_bottleneck_block, {'first': True, 'features': IN // 4}, (4, 4)),
    (BottleneckBlock, reference.bottleneck_block, {'shortcut': 'C', 'features': IN // 4}, (5, 5)),
    (BasicBlock, reference.basic_block, {'stride': 3, 'shortcut': 'D'}, (7, 8)),
    (PreActBottleneckBlock, reference.preact_bottleneck_block, {'stride': 1, 'features': IN // 4}, (4, 5)),
    (
        PreActBottleneckBlock,
        reference.preact_bottleneck_block,
        {'stride': 1, 'cardinality': 2, 'base_width': 32},
        (5, 5),
    ),
]


def describe(case):
    block, _, options, size = case
    return f'{block.__name__}-{"-".join(f"{k}={v}" for k, v in options.items())}-{size[0]}x{size[1]}'


@pytest.mark.parametrize('case', CASES, ids=describe)
@pytest.mark.parametrize('train', [True, False], ids=['train', 'eval'])
def test_block_equals_the_reference(case, train, rng, variables_of):
    block, reference_block, options, (height, width) = case
    module = block(**{'features': 16} | options)
    x = rng.normal(size=(3, height, width, IN)).astype(np.float32)
    variables = variables_of(module, x.shape, train=False)
    params, stats = variables['params'], variables['batch_stats']

    @jax.jit
    def run(params, x, dy):
        def forward(params, x):
            return module.apply({'params': params, 'batch_stats': stats}, x, train=train, mutable=['batch_stats'])

        y, pullback, updates = jax.vjp(forward, params, x, has_aux=True)
        return y, updates['batch_stats'], pullback(dy)

    theirs = {name: value for name, value in options.items() if name not in ('features', 'shortcut', 'base_width')}
    if 'shortcut' in options:
        theirs['shortcut_kind'] = options['shortcut']
    wide = jax.tree.map(np.float64, (params, stats, x))
    expected, expected_stats, backward = reference_block(*wide, train=train, **theirs)
    dy = rng.normal(size=expected.shape).astype(np.float32)
    y, new_stats, (grads, dx) = run(params, x, dy)
    expected_dx, expected_grads = backward(np.float64(dy))

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * max(1, np.abs(theirs).max()))

    close(y, expected)
    close(dx, expected_dx)
    jax.tree.map(close, dict(new_stats), expected_stats)
    jax.tree.map(close, dict(grads), expected_grads)


def test_with_zero_init_last_a_block_starts_as_its_shortcut(rng):
    x = np.abs(rng.normal(size=(2, 4, 4, IN)).astype(np.float32))
    for block in (BasicBlock(IN, zero_init_last=True), BottleneckBlock(IN // 4, zero_init_last=True)):
        y, _ = jax.jit(lambda key, x, block=block: block.init_with_output(key, x, train=False))(jax.random.key(0), x)
        np.testing.assert_array_equal(y, x)


def test_kernel_shape_of_a_grouped_convolution(variables_of):
    """Xie et al. 2017, Figure 3: each output channel depends only on the input channels of its group."""
    module = BottleneckBlock(4, shortcut='identity', cardinality=2, base_width=32)
    assert module.inner_width == 4
    kernel = variables_of(module, (1, 3, 3, 16), train=False)['params']['conv2']['kernel']
    assert kernel.shape == (3, 3, 2, 4)


def test_an_identity_shortcut_cannot_change_the_shape():
    with pytest.raises(InputError, match='use shortcut A'):
        BasicBlock(16, 2, shortcut='identity').init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), train=False)


def attended(block, layers, h):
    if block.attention == 'se':
        return layers.squeeze_excite(h, layers.at('attention'))
    return layers.channel_attention(h, layers.at('attention')['kernel']) if block.attention == 'eca' else h


def filtered(block, layers, h):
    """The anti-aliasing filter that replaces the stride."""
    if block.antialias == 'blur':
        return layers.binomial_3x3(h, block.stride)
    return reference.avg_pool(h)[0] if block.antialias == 'average' and block.stride == 2 else h


def post_activation_block(block, layers, x):
    """``PostActivation`` blocks with their options, layer by layer."""
    plain = block.antialias == 'none'
    dilation = block.dilation if block.first_dilation is None else block.first_dilation
    strided = {'stride': block.stride if plain else 1, 'dilation': dilation}
    if isinstance(block, BottleneckBlock):
        h = layers.conv_norm_relu('conv1', 'norm1', x)
        h = filtered(block, layers, layers.conv_norm_relu('conv2', 'norm2', h, groups=block.cardinality, **strided))
        h = layers.norm('norm3', layers.conv('conv3', h))
    else:
        h = filtered(block, layers, layers.conv_norm_relu('conv1', 'norm1', x, **strided))
        h = layers.norm('norm2', layers.conv('conv2', h, dilation=block.dilation))
    h = attended(block, layers, h)
    if 'shortcut' in layers.params:
        x = layers.norm('shortcut/norm', layers.conv('shortcut/conv', x, stride=block.stride))
    return np.maximum(h + x, 0)


def legacy_block(block, layers, x):
    h = layers.conv_norm_relu('conv1', 'norm1', x, stride=block.stride)
    h = layers.squeeze_excite(layers.conv_norm_relu('conv2', 'norm2', h), layers.at('attention'))
    return np.maximum(h + layers.norm('shortcut/norm', layers.conv('shortcut/conv', x, stride=block.stride)), 0)


def short(value):
    return type(value).__name__ if isinstance(value, Block) else str(value)


OPTIONS = [
    (BasicBlock(16, 2, attention='se', se_ratio=0.5), True),
    (BasicBlock(8, attention='eca', dilation=2, first_dilation=1), False),
    (BasicBlock(8, 2, antialias='blur'), True),
    (BasicBlock(8, 1, antialias='blur', dilation=2, first_dilation=1), False),
    (BottleneckBlock(4, 2, antialias='average', attention='se'), False),
    (BottleneckBlock(4, 2, reduce_first=2, shortcut_kernel_size=3, cardinality=2, base_width=64), False),
    (BottleneckBlock(4, 2, channels=(3, 5, 12), attention='eca'), True),
    (BottleneckBlock(2, channels=(3, 5, 8), dilation=2), False),
    (LegacySEBasicBlock(32, 2), True),
    (LegacySEBasicBlock(12, 2), False),
]


@pytest.mark.parametrize(
    ('block', 'train'),
    OPTIONS,
    ids=[
        'se',
        'eca',
        'blur',
        'blur-dilated',
        'average',
        'senet',
        'pruned',
        'pruned-dilated',
        'legacy',
        'legacy-narrow',
    ],
)
def test_options_equal_the_layers_in_numpy(block, train, rng, variables_of, by_hand):
    block = block.clone(compute=XLA)
    x = rng.normal(size=(3, 6, 4, IN)).astype(np.float32)
    variables = variables_of(block, x.shape, train=False)
    y, updates = jax.jit(lambda v, x: block.apply(v, x, train=train, mutable=['batch_stats']))(variables, x)
    layers = by_hand(variables, train=train)
    theirs = legacy_block if isinstance(block, LegacySEBasicBlock) else post_activation_block
    expected = theirs(block, layers, np.float64(x))
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    for path, stats in layers.new_stats.items():
        ours = updates['batch_stats']
        for part in path.split('/'):
            ours = ours[part]
        for key, value in stats.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('block', 'path', 'shape'),
    [
        (BottleneckBlock(8, 2, shortcut_kernel_size=3), 'shortcut/conv', (3, 3, 8, 32)),
        (BottleneckBlock(8, 1, shortcut_kernel_size=3), 'shortcut/conv', (1, 1, 8, 32)),
        (BottleneckBlock(8, reduce_first=2), 'conv1', (1, 1, 8, 4)),
        (BottleneckBlock(8, channels=(3, 5, 7)), 'conv3', (1, 1, 5, 7)),
        (BottleneckBlock(8, channels=(3, 5, 7)), 'shortcut/conv', (1, 1, 8, 7)),
        (BasicBlock(64, attention='se', se_ratio=0.25), 'attention/fc1', (64, 16)),
        (BasicBlock(64, attention='se'), 'attention/fc1', (64, 8)),  # at least eight
        (BottleneckBlock(64, attention='eca'), 'attention', (5, 1, 1)),
        (BottleneckBlock(64, attention='eca', channels=(3, 5, 7)), 'attention', (5, 1, 1)),  # as in the unpruned block
        (LegacySEBasicBlock(64), 'attention/fc1', (64, 4)),
        (LegacySEBasicBlock(12), 'attention/fc1', (12, 1)),
    ],
    ids=short,
)
def test_kernel_shapes_with_options(block, path, shape, variables_of):
    node = variables_of(block, (1, 4, 4, IN), train=False)['params']
    for part in path.split('/'):
        node = node[part]
    assert node['kernel'].shape == shape


DROPPING = [
    BasicBlock(IN),
    BasicBlock(IN, attention='eca'),
    BottleneckBlock(2),
    LegacySEBasicBlock(IN),
    PreActBasicBlock(IN),
    PreActBottleneckBlock(2, base_width=256),
]


@pytest.mark.parametrize(
    'block', DROPPING, ids=lambda block: f'{type(block).__name__}-{getattr(block, "attention", "")}'
)
def test_stochastic_depth_drops_branches(block, rng, variables_of):
    """At rate 1/2, branches are zero or doubled; with rate 0, and in evaluation, no random numbers are drawn."""
    block = block.clone(compute=FROZEN)  # branches must not depend on other examples
    x = np.abs(rng.normal(size=(16, 3, 3, IN))).astype(np.float32)
    variables = variables_of(block, x.shape, train=False)
    run = jax.jit(functools.partial(block.apply, variables, train=True))
    whole = np.asarray(run(x))
    for options in ({'train': False, 'drop_rate': 0.5}, {'train': True, 'drop_rate': 0}):
        same = jax.jit(functools.partial(block.apply, **options))(variables, x)
        np.testing.assert_allclose(same, whole, rtol=1e-4, atol=1e-5)
    y = np.asarray(run(x, drop_rate=0.5, rngs={'dropout': jax.random.key(0)}))
    kept = [not np.allclose(each, alone, atol=1e-6) for each, alone in zip(y, x, strict=True)]
    assert 2 < sum(kept) < 14
    if block.pre_activation:  # without a ReLU after the addition, the kept branches are known
        np.testing.assert_allclose(y[kept], (x + 2 * (whole - x))[kept], rtol=1e-3, atol=1e-4)
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"'):
        run(x, drop_rate=0.5)


def test_drop_block_is_active_only_in_training(rng, variables_of):
    """It follows its random key, and evaluation ignores it."""
    x = rng.normal(size=(4, 6, 6, IN)).astype(np.float32)
    plain = BasicBlock(IN, compute=FROZEN)
    variables = variables_of(plain, x.shape, train=False)
    expected = jax.jit(functools.partial(plain.apply, train=False))(variables, x)
    dropping = plain.clone(drop_block=(0.5, 3, 1.0))
    np.testing.assert_array_equal(jax.jit(functools.partial(dropping.apply, train=False))(variables, x), expected)
    run = jax.jit(functools.partial(dropping.apply, train=True))
    first, again, other = (run(variables, x, rngs={'dropout': jax.random.key(seed)}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, expected)
    off = jax.jit(functools.partial(plain.clone(drop_block=(0.0, 3, 1.0)).apply, train=True))(variables, x)
    np.testing.assert_allclose(off, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"'):
        dropping.apply(variables, x, train=True)


@pytest.mark.parametrize(
    ('block', 'message'),
    [
        (BasicBlock(8, attention='cbam'), "unknown attention 'cbam'; known: none, se, eca"),
        (BasicBlock(8, 2, antialias='sinc'), "unknown antialias 'sinc'; known: none, blur, average"),
        (BasicBlock(8, 2, antialias='average'), 'must be multiples of 2 .*, found 5x4'),
        (BottleneckBlock(8, reduce_first=0), r'reduce_first=0 must be from 1 to 8 \(the inner width\)'),
        (
            BottleneckBlock(8, 2, stride_in_1x1=True, antialias='blur'),
            "antialias='blur' is not supported with stride_in_1x1=True",
        ),
        (BottleneckBlock(8, base_width=4), 'base_width=4 is too small: a width of 8 leaves no channels'),
        (BottleneckBlock(8, channels=(6, 6, 8), cardinality=4), r'groups=4 must divide the input channels \(6\)'),
    ],
    ids=short,
)
def test_invalid_options_raise(block, message):
    x = jax.ShapeDtypeStruct((1, 5, 4, 8), jnp.float32)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda key, x: block.init(key, x, train=False), jax.random.key(0), x)


def test_a_plain_block_does_not_support_stochastic_depth():
    variables = PlainBlock(8).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), train=False)
    with pytest.raises(InputError, match='drop_path_rate is not supported by a plain block'):
        PlainBlock(8).apply(variables, jnp.zeros((1, 4, 4, 8)), train=True, drop_rate=0.1)
