"""Every block with every shortcut against the NumPy reference: values, statistics and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BasicBlock, BottleneckBlock, InputError, PlainBlock, PreActBasicBlock, PreActBottleneckBlock
from resnet_jax import numpy_reference as reference

IN = 8
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
def test_block_equals_the_reference(case, train, rng):
    block, reference_block, options, (height, width) = case
    module = block(**{'features': 16} | options)
    x = rng.normal(size=(3, height, width, IN)).astype(np.float32)
    variables = module.init(jax.random.key(0), jnp.zeros(x.shape), train=False)
    variables = jax.tree.map(lambda v: np.float32(v + rng.uniform(0.1, 0.5, v.shape)), variables)
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


def test_zero_init_last_starts_as_the_shortcut(rng):
    x = np.abs(rng.normal(size=(2, 4, 4, IN)).astype(np.float32))
    for block in (BasicBlock(IN, zero_init_last=True), BottleneckBlock(IN // 4, zero_init_last=True)):
        y, _ = block.init_with_output(jax.random.key(0), x, train=False)
        np.testing.assert_array_equal(y, x)


def test_groups_see_only_their_own_channels(rng):
    """Xie et al. 2017, Figure 3: a change in one group's input reaches only that group of the 3x3's output."""
    module = BottleneckBlock(4, shortcut='identity', cardinality=2, base_width=32)
    assert module.inner_width == 4
    kernel = module.init(jax.random.key(0), jnp.zeros((1, 3, 3, 16)), train=False)['params']['conv2']['kernel']
    assert kernel.shape == (3, 3, 2, 4)


def test_an_identity_over_a_change_of_shape_is_explained():
    with pytest.raises(InputError, match='use shortcut A'):
        BasicBlock(16, 2, shortcut='identity').init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), train=False)
