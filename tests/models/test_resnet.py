"""Whole networks against the NumPy reference, and their calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import (
    InputError,
    ResNet,
    ResNetSpec,
    TrainConfig,
    create_model,
    create_train_state,
    init_variables,
    stack_blocks,
    unstack_blocks,
)
from resnet_jax import numpy_reference as reference
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


@pytest.mark.parametrize('name', SPECS)
@pytest.mark.parametrize('train', [False, True])
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
