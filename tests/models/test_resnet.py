"""Whole networks against the NumPy reference, and their calls."""

import dataclasses
import functools
import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import (
    InputError,
    PreActBasicBlock,
    ResNet,
    ResNetSpec,
    TrainConfig,
    create_model,
    create_train_state,
    get_spec,
    init_variables,
    stack_blocks,
    unstack_blocks,
)
from resnet_jax import numpy_reference as reference
from resnet_jax.models import resnet
from resnet_jax.training.optim import make_optimizer

TINY = {'stage_sizes': (1, 2), 'widths': (8, 16), 'strides': (1, 2), 'stem_width': 8, 'num_classes': 5}
SPECS = {
    'plain': ResNetSpec('plain', **TINY),
    'basic': ResNetSpec('basic', shortcut='A', **TINY | {'stem': 'cifar'}),
    'bottleneck': ResNetSpec('bottleneck', cardinality=2, base_width=16, **TINY),
    'preact_basic': ResNetSpec('preact_basic', **TINY | {'stem': 'cifar'}),
    'preact_bottleneck': ResNetSpec('preact_bottleneck', **TINY),
}


def randomized(variables, rng):
    """Variables away from 0 and 1, so that nothing cancels."""
    return jax.tree.map(lambda x: np.float32(x + 0.3 * rng.uniform(0.2, 1, x.shape)), variables)


@pytest.mark.parametrize(
    ('name', 'train'), [*((name, True) for name in SPECS), ('bottleneck', False), ('preact_basic', False)]
)
def test_network_equals_the_reference(name, train, rng):
    spec = SPECS[name]
    model = ResNet(spec)
    variables = randomized(init_variables(model, jax.random.key(0), (17, 18, 3)), rng)
    images = rng.normal(size=(3, 17, 18, 3)).astype(np.float32)

    @jax.jit
    def run(variables, images):
        def loss(params, images):
            logits, updates = model.apply(
                {'params': params, 'batch_stats': variables['batch_stats']},
                images,
                train=train,
                mutable=['batch_stats'],
            )
            return jnp.sum(logits * jnp.arange(5.0)[None]), (logits, updates['batch_stats'])

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables['params'], images)

    (_, (logits, stats)), (grads, dimages) = run(variables, images)
    wide = jax.tree.map(np.float64, variables)
    options = {'cardinality': spec.cardinality} if spec.cardinality > 1 else {}
    outputs, new_stats, backward = reference.resnet(
        wide['params'],
        wide['batch_stats'],
        np.float64(images),
        block=spec.block,
        stage_sizes=spec.stage_sizes,
        strides=spec.strides,
        stem=spec.stem,
        shortcut_kind=spec.shortcut,
        train=train,
        **options,
    )
    expected_dimages, expected_grads = backward(np.broadcast_to(np.arange(5.0), (3, 5)))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * max(np.abs(b).max(), 1e-3))  # noqa: E731
    close(logits, outputs['logits'])
    jax.tree.map(close, dict(stats), new_stats)
    jax.tree.map(close, grads, expected_grads)
    close(dimages, expected_dimages)


def test_resnet18_equals_the_reference(rng):
    model = create_model('resnet18', num_classes=10)
    params, stats = reference.resnet18_init(rng, num_classes=10)
    images = rng.normal(size=(2, 32, 32, 3))
    outputs, _, _ = reference.resnet18(params, stats, images, train=False)
    variables = jax.tree.map(np.float32, {'params': params, 'batch_stats': stats})
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, np.float32(images))
    np.testing.assert_allclose(logits, outputs['logits'], rtol=1e-3, atol=1e-4 * np.abs(outputs['logits']).max())


def test_features_are_the_stages(rng):
    model = ResNet(SPECS['basic'])
    variables = init_variables(model, jax.random.key(0), (8, 8, 3))
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    features = model.apply(variables, images, train=False, method=model.features)
    assert {name: value.shape for name, value in features.items()} == {
        'stem': (2, 8, 8, 8),
        'stage1': (2, 8, 8, 8),
        'stage2': (2, 4, 4, 16),
        'pooled': (2, 16),
    }
    head = variables['params']['head']
    logits = features['pooled'] @ head['kernel'] + head['bias'][None]
    np.testing.assert_allclose(model.apply(variables, images, train=False), logits, rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_in_it_and_keeps_the_rest_float32():
    model = create_model('resnet20', dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda key: init_variables(model, key, (8, 8, 3)), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    features = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, method=model.features), variables, images)
    assert features['stage3'].dtype == jnp.bfloat16
    assert features['pooled'].dtype == jnp.float32
    assert jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images).dtype == jnp.float32


def test_statistics_can_be_left_alone_while_training(rng):
    model = ResNet(SPECS['basic'])
    variables = init_variables(model, jax.random.key(0), (8, 8, 3))
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    moved, updates = model.apply(variables, images, train=True, mutable=['batch_stats'])
    kept = model.apply(variables, images, train=True, update_stats=False)
    np.testing.assert_array_equal(moved, kept)
    assert not np.allclose(updates['batch_stats']['stem']['norm']['mean'], 0)


def test_statistics_cannot_be_updated_without_training():
    model = ResNet(SPECS['basic'])
    variables = init_variables(model, jax.random.key(0), (8, 8, 3))
    with pytest.raises(InputError, match='update_stats=True needs train=True'):
        model.apply(variables, jnp.zeros((1, 8, 8, 3)), train=False, update_stats=True)


def test_train_must_be_said():
    with pytest.raises(TypeError, match='train'):
        create_model('resnet20').apply({}, jnp.zeros((1, 8, 8, 3)))


def test_stride_placement_changes_values_not_shapes(rng):
    images = rng.normal(size=(2, 9, 9, 3)).astype(np.float32)
    tiny = {key: value for key, value in TINY.items() if key != 'stem'} | {'stem': 'cifar'}
    models = [ResNet(ResNetSpec('bottleneck', options={'stride_in_1x1': v1}, **tiny)) for v1 in (False, True)]
    variables = init_variables(models[0], jax.random.key(0), (9, 9, 3))
    first, second = (model.apply(variables, images, train=False) for model in models)
    assert first.shape == second.shape
    assert not np.allclose(first, second)


def test_zero_init_last_makes_blocks_the_identity(rng):
    """With every branch at zero, a basic network of one width is its stem, seen through ReLUs."""
    spec = ResNetSpec('basic', (2,), (8,), (1,), 'cifar', 8, zero_init_last=True, num_classes=3)
    model = ResNet(spec)
    variables = init_variables(model, jax.random.key(0), (6, 6, 3))
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    features = model.apply(variables, images, train=False, method=model.features)
    np.testing.assert_allclose(features['stage1'], features['stem'], atol=1e-6)


DEEP = ResNetSpec('basic', (4, 2, 3), (8, 8, 16), (1, 1, 2), 'cifar', 8, 'A', num_classes=5)


def test_scanned_blocks_are_the_same_network(rng):
    """Logits, gradients and running statistics, with variables taken from one layout to the other and back."""
    unrolled, scanned = ResNet(DEEP), ResNet(DEEP, scan_blocks=True)
    variables = randomized(init_variables(unrolled, jax.random.key(0), (8, 8, 3)), rng)
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)

    def run(model, variables):
        def loss(params):
            logits, updates = model.apply(variables | {'params': params}, images, train=True, mutable=['batch_stats'])
            return jnp.sum(logits * jnp.arange(5.0)[None]), (logits, updates['batch_stats'])

        (_, (logits, stats)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
        return {'logits': logits, 'stats': stats, 'gradients': gradients}

    stacked = stack_blocks(variables)
    shapes = jax.eval_shape(lambda key: init_variables(scanned, key, (8, 8, 3)), jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    assert set(stacked['params']) >= {'stage1_block1', 'stage1_blocks', 'stage2_block1', 'stage2_block2'}
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), variables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        unstack_blocks(run(scanned, stacked)),
        run(unrolled, variables),
    )


def test_blocks_of_a_whole_train_state_are_converted():
    """Parameters, statistics and the optimizer's slots alike."""
    model, optimizer = ResNet(DEEP), make_optimizer(TrainConfig(), 10)
    state = create_train_state(init_variables(model, jax.random.key(0), (8, 8, 3)), optimizer)
    stacked = stack_blocks(state)
    assert len(jax.tree.leaves(stacked)) < len(jax.tree.leaves(state))
    assert len(jax.tree.leaves(stacked.opt_state)) < len(jax.tree.leaves(state.opt_state))
    assert jax.tree.structure(unstack_blocks(stacked)) == jax.tree.structure(state)


@pytest.mark.parametrize('statistics', ['batch', 0, -1, 2.5, True])
def test_unknown_statistics(statistics):
    with pytest.raises(InputError, match='must be global, frozen, or a number'):
        jax.eval_shape(lambda: init_variables(ResNet(DEEP, statistics=statistics), jax.random.key(0), (8, 8, 3)))


def test_statistics_reach_every_normalization(rng):
    """Frozen training computes what evaluation computes; ghost batches of one are other networks."""
    variables = randomized(init_variables(ResNet(DEEP), jax.random.key(0), (8, 8, 3)), rng)
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    expected = ResNet(DEEP).apply(variables, images, train=False)
    frozen, updates = ResNet(DEEP, statistics='frozen').apply(variables, images, train=True, mutable=['batch_stats'])
    np.testing.assert_array_equal(frozen, expected)
    jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])
    one, _ = ResNet(DEEP, statistics=1).apply(variables, images, train=True, mutable=['batch_stats'])
    alone, _ = ResNet(DEEP).apply(variables, images[:1], train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(one[:1], alone, rtol=1e-4, atol=1e-4)


SMALL = {
    'stage_sizes': (1, 2),
    'widths': (8, 16),
    'strides': (1, 2),
    'stem': 'cifar',
    'stem_width': 8,
    'num_classes': 5,
}


def shapes_of(model, image_shape):
    """Of features and variables."""
    run = functools.partial(model.init_with_output, train=False, method=model.features)
    return jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def test_each_stage_has_its_block():
    """``ResNetSpec.block`` with one name a stage: the variables of each, and its options where it has them."""
    spec = ResNetSpec(('basic', 'bottleneck'), **SMALL, attention='se', options={'reduce_first': 2, 'se_ratio': 0.25})
    assert spec.block_options(1).keys() == {'shortcut', 'attention', 'antialias', 'zero_init_last', 'se_ratio'}
    assert spec.block_options(2)['reduce_first'] == 2
    features, variables = shapes_of(ResNet(spec), (8, 8, 3))
    params = variables['params']
    assert features['stage2'].shape == (1, 4, 4, 64)
    assert set(params['stage1_block1']) == {'conv1', 'norm1', 'conv2', 'norm2', 'attention'}
    assert params['stage2_block2']['conv1']['kernel'].shape == (1, 1, 64, 8)
    assert 'conv3' in params['stage2_block1']


@pytest.mark.parametrize(
    ('strides', 'stem', 'output_stride', 'expected'),
    [
        ((1, 2, 2, 2), 'imagenet', None, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        ((1, 2, 2, 2), 'imagenet', 32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        ((1, 2, 2, 2), 'imagenet', 16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1)]),
        ((1, 2, 2, 2), 'imagenet', 8, [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 2)]),
        ((1, 2, 2, 2), 'cifar', 8, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
    ],
)
def test_strides_become_dilations(strides, stem, output_stride, expected):
    """The first convolution behind a lost stride still sees neighbours at the old distance."""
    spec = ResNetSpec('basic', (2,) * 4, strides=strides, stem=stem, output_stride=output_stride)
    assert spec.strides_and_dilations() == expected


@pytest.mark.parametrize('block', ['basic', 'bottleneck', 'preact_bottleneck', 'split_attention', 'scale'])
def test_a_dilated_network_has_the_weights_of_the_other_and_larger_maps(block):
    spec = ResNetSpec(block, (1, 1, 2, 2), (8, 16, 32, 64), stem_width=8, shortcut='D', num_classes=3)
    whole = shapes_of(ResNet(spec), (64, 64, 3))
    for output_stride, sizes in ((16, (16, 8, 4, 4)), (8, (16, 8, 8, 8))):
        features, variables = shapes_of(ResNet(dataclasses.replace(spec, output_stride=output_stride)), (64, 64, 3))
        assert tuple(features[f'stage{stage}'].shape[1] for stage in (1, 2, 3, 4)) == sizes
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, whole[1])


def test_a_dilated_network_has_the_pixels_of_the_other_between_its_own(rng, variables_of):
    """With the same variables, the strided maps are every second and fourth pixel of the dilated ones."""
    spec = ResNetSpec('basic', (1, 2, 2), (4, 6, 8), (2, 2, 2), stem_width=4, num_classes=3)
    images = rng.normal(size=(2, 64, 48, 3)).astype(np.float32)
    plain, dilated = (ResNet(dataclasses.replace(spec, output_stride=o), implementation='xla') for o in (None, 8))
    variables = variables_of(plain, images.shape, train=False)
    strided, full = (
        jax.jit(functools.partial(model.apply, train=False, method=model.features))(variables, images)
        for model in (plain, dilated)
    )
    for stage, step in (('stage1', 1), ('stage2', 2), ('stage3', 4)):
        ours = np.asarray(full[stage])[:, ::step, ::step]
        assert ours.shape == strided[stage].shape
        np.testing.assert_allclose(ours, strided[stage], rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def test_drop_rates_rise_from_0_at_the_first_block_to_the_whole_at_the_last(monkeypatch):
    """Huang et al. 2016, Eq. 4, counted over all stages."""
    seen = []
    block = resnet.BLOCKS['basic']
    plain_call = block.__call__

    def spy(self, x, *, drop_rate=0.0, **options):
        seen.append((self.name, drop_rate))
        return plain_call(self, x, drop_rate=drop_rate, **options)

    monkeypatch.setattr(block, '__call__', spy)
    shapes_of(ResNet(dataclasses.replace(DEEP, drop_path_rate=0.4)), (8, 8, 3))
    assert [name for name, _ in seen] == [
        *(f'stage1_block{index}' for index in range(1, 5)),
        *('stage2_block1', 'stage2_block2'),
        *(f'stage3_block{index}' for index in range(1, 4)),
    ]
    np.testing.assert_allclose([rate for _, rate in seen], np.linspace(0, 0.4, 9), rtol=1e-6)
    seen.clear()
    shapes_of(ResNet(ResNetSpec('basic', (1,), (8,), (1,), 'cifar', 8, drop_path_rate=0.4)), (8, 8, 3))
    assert seen == [('stage1_block1', 0)]  # a single block is the first


@pytest.mark.parametrize('scan_blocks', [False, True])
def test_the_last_block_of_three_is_dropped_at_its_own_rate(scan_blocks, rng, variables_of):
    """Rates 0, 0.49 and 0.98: examples are the whole network, or lose the second block, the third, or both."""
    spec = ResNetSpec('preact_basic', (3,), (4,), (1,), 'cifar', 4, num_classes=3, drop_path_rate=0.98)
    model = ResNet(spec, implementation='xla', statistics='frozen', scan_blocks=scan_blocks)
    variables = variables_of(ResNet(spec), (1, 4, 4, 3), train=False)
    image = rng.normal(size=(1, 4, 4, 3)).astype(np.float32)
    images = np.repeat(image, 64, 0)
    given = stack_blocks(variables) if scan_blocks else variables
    run = jax.jit(functools.partial(model.apply, train=True, method=model.features))
    stage1 = np.asarray(run(given, images, rngs={'dropout': jax.random.key(0)})['stage1'])

    two = ResNet(dataclasses.replace(spec, stage_sizes=(1,), drop_path_rate=0.0), implementation='xla')
    after_first = np.asarray(two.apply(variables, image, train=False, method=two.features)['stage1'])[0]
    only_first = np.array([np.allclose(each, after_first, rtol=1e-4, atol=1e-4) for each in stage1])
    assert 0.25 < only_first.mean() < 0.75  # the second block is dropped at 0.49, the third nearly always
    block = PreActBasicBlock(4, implementation='xla')
    second = {key: variables[key]['stage1_block2'] for key in ('params', 'batch_stats')}
    branch = np.asarray(block.apply(second, after_first[None], train=False))[0] - after_first
    kept = after_first + branch / (1 - 0.49)
    with_second = np.array([np.allclose(each, kept, rtol=1e-3, atol=1e-3) for each in stage1])
    assert (only_first | with_second).mean() > 0.9
    assert with_second.any()
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"'):
        run(given, images)


def test_dropout_of_the_head(rng, variables_of):
    """Pooled features are zero or doubled at rate 1/2, in training alone."""
    spec = ResNetSpec('basic', **SMALL, dropout_rate=0.5)
    model = ResNet(spec, implementation='xla', statistics='frozen')
    images = np.repeat(rng.normal(size=(1, 8, 8, 3)).astype(np.float32), 200, 0)
    variables = variables_of(model, images.shape, train=False)
    run = jax.jit(functools.partial(model.apply, train=True))
    expected = model.apply(variables, images[:1], train=False)
    logits = np.asarray(run(variables, images, rngs={'dropout': jax.random.key(0)}))
    pooled = model.apply(variables, images[:1], train=False, method=model.features)['pooled'][0]
    std = np.sqrt(np.square(np.asarray(pooled)[:, None] * variables['params']['head']['kernel']).sum(0))
    np.testing.assert_array_less(np.abs(logits.mean(0) - expected[0]), 4 * std / np.sqrt(200))
    np.testing.assert_allclose(logits.std(0), std, rtol=0.2)  # variance (1 - p) / p of each, and p is 1/2
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"'):
        run(variables, images)


def test_frozen_parts_compute_in_training_what_they_compute_in_evaluation(rng, variables_of):
    """Their running statistics stay, nothing of them is dropped, and the rest trains as ever."""
    spec = ResNetSpec('basic', **SMALL, drop_path_rate=0.9)
    model = ResNet(spec, implementation='xla', frozen='stem|stage1|stage2_block1')
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    variables = variables_of(model, images.shape, train=False)
    rngs = {'dropout': jax.random.key(0)}
    run = functools.partial(model.apply, variables, images, method=model.features)
    training, updates = run(train=True, mutable=['batch_stats'], rngs=rngs)
    evaluation = run(train=False)
    for name in ('stem', 'stage1'):
        np.testing.assert_array_equal(training[name], evaluation[name])
    assert not np.allclose(training['stage2'], evaluation['stage2'])
    for name, stats in variables['batch_stats'].items():
        same = jax.tree.map(np.array_equal, stats, dict(updates['batch_stats'][name]))
        assert all(jax.tree.leaves(same)) == (name != 'stage2_block2'), name
    all_frozen = model.clone(frozen='.*')
    np.testing.assert_allclose(
        all_frozen.apply(variables, images, train=True), model.apply(variables, images, train=False), rtol=1e-5
    )


def test_scanned_blocks_must_be_alike():
    channels = ((4, 4, 16),) * 3
    for model in (
        ResNet(DEEP, scan_blocks=True, frozen='stem'),
        ResNet(ResNetSpec('bottleneck', (3,), (4,), (1,), 'cifar', 4, channels=channels), scan_blocks=True),
    ):
        with pytest.raises(InputError, match='scan_blocks=True: pruned or frozen blocks are not alike'):
            shapes_of(model, (8, 8, 3))


def test_channels_are_those_of_the_blocks():
    """Three numbers a block, in the network's order; shortcuts and the head follow."""
    spec = ResNetSpec('bottleneck', **SMALL, channels=((3, 4, 10), (5, 6, 20), (7, 8, 20)))
    _, variables = shapes_of(ResNet(spec), (8, 8, 3))
    params = variables['params']
    kernels = [
        [params[name][f'conv{index}']['kernel'].shape[2:] for index in (1, 2, 3)]
        for name in ('stage1_block1', 'stage2_block1', 'stage2_block2')
    ]
    assert kernels == [[(8, 3), (3, 4), (4, 10)], [(10, 5), (5, 6), (6, 20)], [(20, 7), (7, 8), (8, 20)]]
    assert params['stage2_block1']['shortcut']['conv']['kernel'].shape == (1, 1, 10, 20)


def test_drop_block_is_in_the_last_two_of_four_stages():
    """As in timm: squares of 5 at a quarter of the rate, then of 3."""
    spec = ResNetSpec('basic', (1,) * 4, drop_block_rate=0.1)
    assert [spec.block_options(stage)['drop_block'] for stage in (1, 2, 3, 4)] == [
        None,
        None,
        (0.1, 5, 0.25),
        (0.1, 3, 1.0),
    ]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'stem': 'wide'}, "unknown stem 'wide'; known: imagenet, deep, tiered, cifar"),
        ({'stem_pool': 'mean'}, "unknown stem_pool 'mean'; known: max, "),
        ({'attention': 'cbam'}, "unknown attention 'cbam'; known: none, se, eca"),
        ({'antialias': 'sinc'}, "unknown antialias 'sinc'; known: none, blur, average"),
        ({'norm': 'layer'}, "unknown norm 'layer'; known: batch, group, evo, filter_response"),
        ({'block': ('basic', 'fancy')}, "unknown block 'fancy'; known: plain, basic, "),
        ({'block': ('basic',)}, r"block=\('basic',\) must be one name, or 2, one a stage"),
        ({'block': ('basic', 'preact_basic')}, 'blocks with pre-activation do not go with blocks without'),
        ({'drop_path_rate': 1.0}, r'drop_path_rate=1.0 must be at least 0 and less than 1'),
        ({'drop_block_rate': -0.1}, r'drop_block_rate=-0.1 must be at least 0'),
        ({'dropout_rate': float('nan')}, r'dropout_rate=nan must be at least 0'),
        ({'block': 'plain', 'drop_path_rate': 0.1}, "drop_path_rate=0.1: block 'plain' has no shortcut"),
        ({'block': 'plain', 'drop_block_rate': 0.1}, "drop_block_rate=0.1: block 'plain' has no such option"),
        ({'block': 'preact_basic', 'attention': 'se'}, "attention='se': block 'preact_basic' has no such option"),
        ({'block': 'legacy_se_basic', 'zero_init_last': True}, 'zero_init_last=True: block .* has no such option'),
        ({'block': 'scale', 'antialias': 'blur'}, "antialias='blur': block 'scale' has no such option"),
        ({'output_stride': 12}, 'output_stride=12 must be 8, 16 or 32'),
        ({'stem_pool': 'conv'}, "stem_pool='conv': stem 'cifar' has no pool"),
        (
            {'stem': 'imagenet', 'stem_pool': 'max_of_zeros', 'antialias': 'blur'},
            "stem_pool='max_of_zeros' has no anti-aliasing",
        ),
        ({'block': 'bottleneck', 'channels': ((1, 1, 4),)}, 'channels: 1 entries for 3 blocks'),
        ({'block': 'bottleneck', 'channels': ((1, 4),) * 3}, r'channels: \(1, 4\) must be three positive numbers'),
        ({'channels': ((1, 1, 4),) * 3}, "block 'basic' has no such option"),
        ({'options': {'radix': 2}}, "radix=2: .* block 'basic' has no such option"),
        ({'options': {'stride': 2}}, "stride=2: .* block 'basic' has no such option"),
        ({'options': {'attention': 'se'}}, "attention='se': block 'basic' has no such option"),
    ],
)
def test_a_specification_refuses_what_it_cannot_build(fields, message):
    with pytest.raises(InputError, match=message) as raised:
        ResNetSpec(**{'block': 'basic'} | SMALL | fields)
    assert '\n' not in str(raised.value)


def test_specifications_survive_json_with_options_and_channels():
    """JSON makes lists of tuples; equality and the hash must come back."""
    spec = ResNetSpec(
        ('bottleneck', 'basic'),
        **SMALL,
        options={'se_ratio': 0.25, 'reduce_first': 2},
        attention='se',
        channels=((2, 3, 12),) * 3,
        output_stride=8,
        standardize=1e-8,
        drop_path_rate=0.1,
    )
    copy = ResNetSpec(**json.loads(json.dumps(dataclasses.asdict(spec))))
    assert copy == spec
    assert hash(copy) == hash(spec)
    assert spec.options == (('reduce_first', 2), ('se_ratio', 0.25))


def test_options_reach_the_block_by_name():
    """``get_spec`` takes a block's own options beside the fields, and keeps those that it does not replace."""
    spec = get_spec('senet154', reduce_first=4, options={'se_ratio': 0.5}, norm='group')
    assert dict(spec.options) == {'shortcut_kernel_size': 3, 'reduce_first': 4, 'se_ratio': 0.5}
    assert spec.norm == 'group'
    with pytest.raises(InputError, match="radix=2: ResNetSpec has no field 'radix', and block 'bottleneck'"):
        get_spec('senet154', radix=2)


def test_an_image_too_small_for_averages_is_refused():
    """Averages over two pixels leave nothing of one, where the shortcut has one: the sum would be broadcast."""
    spec = ResNetSpec('basic', (1, 1), (8, 8), (1, 2), 'cifar', 8, antialias='average')
    with pytest.raises(InputError, match="antialias='average': a map of 5x5 pixels does not divide by the stride 2"):
        shapes_of(ResNet(spec), (5, 5, 3))
    with pytest.raises(InputError, match="antialias='average': a map of 1x1 pixels has no window of 2x2"):
        shapes_of(ResNet(dataclasses.replace(spec, stem='imagenet')), (1, 1, 3))


@pytest.mark.parametrize(
    'options', [{'antialias': 'blur'}, {'norm': 'evo'}, {'stem_pool': 'max_to_the_right'}], ids=str
)
def test_an_image_of_one_pixel_is_enough_for_the_others(options, variables_of):
    kind = 'preact_basic' if 'norm' in options else 'basic'
    model = ResNet(ResNetSpec(kind, (1, 1), (32, 32), (1, 2), stem_width=32, **options), implementation='xla')
    variables = variables_of(model, (2, 1, 1, 3), train=False)
    run = jax.jit(functools.partial(model.apply, train=False))
    assert np.isfinite(run(variables, jnp.ones((2, 1, 1, 3)))).all()


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((17, 18, 3), np.float32), 'images must be [N, H, W, C], found [17, 18, 3]: images[None] makes'),
        (np.zeros((2, 17), np.float32), 'images must be [N, H, W, C], found [2, 17]'),
        (np.zeros((2, 17, 18, 3), np.uint8), 'images must be floats, normalized as in training, found uint8'),
        (np.zeros((2, 17, 18, 1), np.float32), 'images must have 3 channels, found 1 in [2, 17, 18, 1]'),
        (np.zeros((2, 3, 17, 18), np.float32), 'found 18 in [2, 3, 17, 18]: jnp.moveaxis(images, 1, -1) turns'),
    ],
)
@pytest.mark.parametrize('stem', ['cifar', 'deep'])
def test_images_of_another_kind_are_explained(images, message, stem):
    model = ResNet(dataclasses.replace(SPECS['basic'], stem=stem))
    variables = jax.eval_shape(lambda key: init_variables(model, key, (17, 18, 3)), jax.random.key(0))
    with pytest.raises(InputError) as error:
        jax.eval_shape(lambda variables: model.apply(variables, images, train=False), variables)
    assert str(error.value).startswith(message) or message in str(error.value)
    assert '\n' not in str(error.value)
