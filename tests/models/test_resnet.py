"""Whole networks against the NumPy reference, and their options."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import (
    BasicBlock,
    Compute,
    InputError,
    PreActBasicBlock,
    ResNet,
    as_computed,
    create_model,
    init_variables,
    make_spec,
    with_changes,
)
from resnet_jax import numpy_reference as reference

TINY = {'stage_sizes': (1, 2), 'widths': (8, 16), 'strides': (1, 2), 'stem_width': 8, 'num_classes': 5}
SPECS = {
    'plain': make_spec('plain', **TINY),
    'basic': make_spec('basic', shortcut='A', **TINY | {'stem': 'cifar'}),
    'bottleneck': make_spec('bottleneck', cardinality=2, base_width=16, **TINY),
    'preact_basic': make_spec('preact_basic', **TINY | {'stem': 'cifar'}),
    'preact_bottleneck': make_spec('preact_bottleneck', **TINY),
}


def randomized(variables, rng):
    """Returns variables that are not 0 or 1, so that errors cannot cancel."""
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
    cardinality = spec.blocks.cardinality
    options = {'cardinality': cardinality} if cardinality > 1 else {}
    outputs, new_stats, backward = reference.resnet(
        wide['params'],
        wide['batch_stats'],
        np.float64(images),
        block=spec.stages[0].block,
        stage_sizes=tuple(stage.size for stage in spec.stages),
        strides=tuple(stage.stride for stage in spec.stages),
        stem=spec.stem.kind,
        shortcut_kind=spec.blocks.shortcut,
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


def test_features(rng):
    model = ResNet(SPECS['basic'])
    variables = init_variables(model, jax.random.key(0), (8, 8, 3))
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    features = jax.jit(functools.partial(model.apply, train=False, method=model.features))(variables, images)
    assert {name: value.shape for name, value in features.items()} == {
        'stem': (2, 8, 8, 8),
        'stage1': (2, 8, 8, 8),
        'stage2': (2, 4, 4, 16),
        'pooled': (2, 16),
    }
    head = variables['params']['head']
    logits = features['pooled'] @ head['kernel'] + head['bias'][None]
    found = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


def test_bfloat16_has_float32_variables_and_logits():
    model = create_model('resnet20', dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda key: init_variables(model, key, (8, 8, 3)), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    features = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, method=model.features), variables, images)
    assert features['stage3'].dtype == jnp.bfloat16
    assert features['pooled'].dtype == jnp.float32
    assert jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images).dtype == jnp.float32


def test_update_stats_false_keeps_the_running_statistics(rng):
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
    with pytest.raises(InputError, match='update_stats=True requires train=True'):
        model.apply(variables, jnp.zeros((1, 8, 8, 3)), train=False, update_stats=True)


def test_train_is_required():
    with pytest.raises(TypeError, match='train'):
        create_model('resnet20').apply({}, jnp.zeros((1, 8, 8, 3)))


def test_stride_in_1x1_changes_values_not_shapes(rng):
    images = rng.normal(size=(2, 9, 9, 3)).astype(np.float32)
    tiny = {key: value for key, value in TINY.items() if key != 'stem'} | {'stem': 'cifar'}
    models = [ResNet(make_spec('bottleneck', stride_in_1x1=v1, **tiny)) for v1 in (False, True)]
    variables = init_variables(models[0], jax.random.key(0), (9, 9, 3))
    first, second = (jax.jit(functools.partial(model.apply, train=False))(variables, images) for model in models)
    assert first.shape == second.shape
    assert not np.allclose(first, second)


def test_zero_init_last_makes_blocks_the_identity(rng):
    """If every branch is zero, a basic network of one width returns the output of its stem."""
    spec = make_spec('basic', (2,), (8,), (1,), 'cifar', 8, zero_init_last=True, num_classes=3)
    model = ResNet(spec)
    variables = init_variables(model, jax.random.key(0), (6, 6, 3))
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    features = model.apply(variables, images, train=False, method=model.features)
    np.testing.assert_allclose(features['stage1'], features['stem'], atol=1e-6)


DEEP = make_spec('basic', (4, 2, 3), (8, 8, 16), (1, 1, 2), 'cifar', 8, 'A', num_classes=5)


@pytest.mark.parametrize('statistics', ['batch', 0, -1, 2.5, True])
def test_invalid_statistics_raise(statistics):
    with pytest.raises(InputError, match='must be global, frozen, or a positive integer'):
        jax.eval_shape(lambda: init_variables(ResNet(DEEP, statistics=statistics), jax.random.key(0), (8, 8, 3)))


def test_statistics_reach_every_normalization(rng):
    """With frozen statistics, training equals evaluation; with ghost batches of one, examples are independent."""
    variables = randomized(init_variables(ResNet(DEEP), jax.random.key(0), (8, 8, 3)), rng)
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnames=('statistics', 'train'))
    def run(variables, images, statistics, train):
        model = ResNet(DEEP, statistics=statistics)
        return model.apply(variables, images, train=train, mutable=['batch_stats'])

    expected, _ = run(variables, images, 'global', train=False)
    frozen, updates = run(variables, images, 'frozen', train=True)
    np.testing.assert_array_equal(frozen, expected)
    jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])
    one, _ = run(variables, images, 1, train=True)
    alone, _ = run(variables, images[:1], 'global', train=True)
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
    """Returns the shapes of features and variables."""
    run = functools.partial(model.init_with_output, train=False, method=model.features)
    return jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def test_stages_with_different_blocks():
    """Each stage has the variables of its block, which gets only the options that it has."""
    spec = make_spec(('basic', 'bottleneck'), **SMALL, attention='se', reduce_first=2, se_ratio=0.25)
    assert spec.block_options(1).keys() == {'shortcut', 'attention', 'antialias', 'zero_init_last', 'se_ratio'}
    assert spec.block_options(2)['reduce_first'] == 2
    features, variables = shapes_of(ResNet(spec), (8, 8, 3))
    params = variables['params']
    assert features['stage2'].shape == (1, 4, 4, 64)
    assert set(params['stage1_block1']) == {'conv1', 'norm1', 'conv2', 'norm2', 'attention'}
    assert params['stage2_block2']['conv1']['kernel'].shape == (1, 1, 64, 8)
    assert 'conv3' in params['stage2_block1']


@pytest.mark.parametrize('block', ['basic', 'bottleneck', 'preact_bottleneck', 'split_attention', 'scale'])
def test_a_dilated_network_has_the_same_weights_and_larger_maps(block):
    spec = make_spec(block, (1, 1, 2, 2), (8, 16, 32, 64), stem_width=8, shortcut='D', num_classes=3)
    whole = shapes_of(ResNet(spec), (64, 64, 3))
    for output_stride, sizes in ((16, (16, 8, 4, 4)), (8, (16, 8, 8, 8))):
        features, variables = shapes_of(ResNet(with_changes(spec, output_stride=output_stride)), (64, 64, 3))
        assert tuple(features[f'stage{stage}'].shape[1] for stage in (1, 2, 3, 4)) == sizes
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, whole[1])


def test_a_dilated_network_contains_the_pixels_of_the_strided_one(rng, variables_of):
    """With the same variables, strided maps are every second or fourth pixel of dilated maps."""
    spec = make_spec('basic', (1, 2, 2), (4, 6, 8), (2, 2, 2), stem_width=4, num_classes=3)
    images = rng.normal(size=(2, 64, 48, 3)).astype(np.float32)
    plain, dilated = (ResNet(with_changes(spec, output_stride=o), implementation='xla') for o in (None, 8))
    variables = variables_of(plain, images.shape, train=False)
    strided, full = (
        jax.jit(functools.partial(model.apply, train=False, method=model.features))(variables, images)
        for model in (plain, dilated)
    )
    for stage, step in (('stage1', 1), ('stage2', 2), ('stage3', 4)):
        ours = np.asarray(full[stage])[:, ::step, ::step]
        assert ours.shape == strided[stage].shape
        np.testing.assert_allclose(ours, strided[stage], rtol=1e-4, atol=1e-4 * np.abs(ours).max())


def test_drop_rates_increase_linearly_from_block_to_block(monkeypatch):
    """Huang et al. 2016, Eq. 4, counted over all stages."""
    seen = []
    block = BasicBlock
    plain_call = block.__call__

    def spy(self, x, *, drop_rate=0.0, **options):
        seen.append((self.name, drop_rate))
        return plain_call(self, x, drop_rate=drop_rate, **options)

    monkeypatch.setattr(block, '__call__', spy)
    shapes_of(ResNet(with_changes(DEEP, drop_path_rate=0.4)), (8, 8, 3))
    assert [name for name, _ in seen] == [
        *(f'stage1_block{index}' for index in range(1, 5)),
        *('stage2_block1', 'stage2_block2'),
        *(f'stage3_block{index}' for index in range(1, 4)),
    ]
    np.testing.assert_allclose([rate for _, rate in seen], np.linspace(0, 0.4, 9), rtol=1e-6)
    seen.clear()
    shapes_of(ResNet(make_spec('basic', (1,), (8,), (1,), 'cifar', 8, drop_path_rate=0.4)), (8, 8, 3))
    assert seen == [('stage1_block1', 0)]  # a single block has the rate of the first


@pytest.mark.parametrize('scan_blocks', [False, True])
def test_every_block_has_its_drop_rate(scan_blocks, rng, variables_of):
    """With rates 0, 0.49 and 0.98, examples can lose the second block, the third, or both."""
    spec = make_spec('preact_basic', (3,), (4,), (1,), 'cifar', 4, num_classes=3, drop_path_rate=0.98)
    model = ResNet(spec, implementation='xla', statistics='frozen', scan_blocks=scan_blocks)
    variables = variables_of(ResNet(spec), (1, 4, 4, 3), train=False)
    image = rng.normal(size=(1, 4, 4, 3)).astype(np.float32)
    images = np.repeat(image, 64, 0)
    given = as_computed(model, variables)
    run = jax.jit(functools.partial(model.apply, train=True, method=model.features))
    stage1 = np.asarray(run(given, images, rngs={'dropout': jax.random.key(0)})['stage1'])

    two = ResNet(with_changes(spec, stage_sizes=(1,), drop_path_rate=0.0), implementation='xla')
    after_first = np.asarray(two.apply(variables, image, train=False, method=two.features)['stage1'])[0]
    only_first = np.array([np.allclose(each, after_first, rtol=1e-4, atol=1e-4) for each in stage1])
    assert 0.25 < only_first.mean() < 0.75  # the second block is dropped with probability 0.49, the third almost always
    block = PreActBasicBlock(4, compute=Compute(implementation='xla'))
    second = {key: variables[key]['stage1_block2'] for key in ('params', 'batch_stats')}
    branch = np.asarray(block.apply(second, after_first[None], train=False))[0] - after_first
    kept = after_first + branch / (1 - 0.49)
    with_second = np.array([np.allclose(each, kept, rtol=1e-3, atol=1e-3) for each in stage1])
    assert (only_first | with_second).mean() > 0.9
    assert with_second.any()
    with pytest.raises(flax.errors.InvalidRngError, match='needs PRNG for "dropout"'):
        run(given, images)


def test_dropout_of_the_head(rng, variables_of):
    """At rate 1/2, pooled features are zero or doubled, only in training."""
    spec = make_spec('basic', **SMALL, dropout_rate=0.5)
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


def test_frozen_parts_compute_the_same_in_training_and_evaluation(rng, variables_of):
    """They keep their running statistics and drop nothing; the other parts are not affected."""
    spec = make_spec('basic', **SMALL, drop_path_rate=0.9)
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


def test_channels_of_a_pruned_network():
    """Three numbers per block, in the order of the network; the shortcuts match."""
    spec = make_spec('bottleneck', **SMALL, channels=((3, 4, 10), (5, 6, 20), (7, 8, 20)))
    _, variables = shapes_of(ResNet(spec), (8, 8, 3))
    params = variables['params']
    kernels = [
        [params[name][f'conv{index}']['kernel'].shape[2:] for index in (1, 2, 3)]
        for name in ('stage1_block1', 'stage2_block1', 'stage2_block2')
    ]
    assert kernels == [[(8, 3), (3, 4), (4, 10)], [(10, 5), (5, 6), (6, 20)], [(20, 7), (7, 8), (8, 20)]]
    assert params['stage2_block1']['shortcut']['conv']['kernel'].shape == (1, 1, 10, 20)


def test_images_too_small_for_averages_raise():
    """The average over two pixels would drop the last pixel of an odd size, and the sum would be broadcast."""
    spec = make_spec('basic', (1, 1), (8, 8), (1, 2), 'cifar', 8, antialias='average')
    with pytest.raises(InputError, match=r"antialias='average': height and width must be multiples of 2 .*, found 5x5"):
        shapes_of(ResNet(spec), (5, 5, 3))
    with pytest.raises(InputError, match=r"antialias='average': height and width must be at least 2 .*, found 1x1"):
        shapes_of(ResNet(with_changes(spec, stem='imagenet')), (1, 1, 3))


@pytest.mark.parametrize('options', [{'antialias': 'blur'}, {'norm': 'evo'}, {'stem_pool': 'max_ceil_mode'}], ids=str)
def test_other_networks_accept_images_of_one_pixel(options, variables_of):
    kind = 'preact_basic' if 'norm' in options else 'basic'
    model = ResNet(make_spec(kind, (1, 1), (32, 32), (1, 2), stem_width=32, **options), implementation='xla')
    variables = variables_of(model, (2, 1, 1, 3), train=False)
    run = jax.jit(functools.partial(model.apply, train=False))
    assert np.isfinite(run(variables, jnp.ones((2, 1, 1, 3)))).all()


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (
            np.zeros((17, 18, 3), np.float32),
            'images must have shape [N, H, W, C], found [17, 18, 3]; images[None] adds',
        ),
        (np.zeros((2, 17), np.float32), 'images must have shape [N, H, W, C], found [2, 17]'),
        (np.zeros((2, 17, 18, 3), np.uint8), 'images must be floats, normalized as in training, found uint8'),
        (np.zeros((2, 17, 18, 1), np.float32), 'images must have 3 channels, found 1 in [2, 17, 18, 1]'),
        (np.zeros((2, 3, 17, 18), np.float32), 'found 18 in [2, 3, 17, 18]; jnp.moveaxis(images, 1, -1) converts'),
    ],
)
@pytest.mark.parametrize('stem', ['cifar', 'deep'])
def test_invalid_images_raise(images, message, stem):
    model = ResNet(with_changes(SPECS['basic'], stem=stem))
    variables = jax.eval_shape(lambda key: init_variables(model, key, (17, 18, 3)), jax.random.key(0))
    with pytest.raises(InputError) as error:
        jax.eval_shape(lambda variables: model.apply(variables, images, train=False), variables)
    assert str(error.value).startswith(message) or message in str(error.value)
    assert '\n' not in str(error.value)
