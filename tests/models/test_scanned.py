"""Networks with scanned blocks, and the conversion between the forms of their variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import (
    InputError,
    ResNet,
    TrainConfig,
    as_computed,
    as_stored,
    create_train_state,
    init_variables,
    make_spec,
)
from resnet_jax.models.resnet import variable_shapes
from resnet_jax.models.scanned import block_paths, block_shape, is_stacked, map_blocks, split_blocks, stack_blocks
from resnet_jax.training.config import optimizer_of

DEEP = make_spec('basic', (4, 2, 3), (8, 8, 16), (1, 1, 2), 'cifar', 8, 'A', num_classes=5)
UNROLLED, SCANNED = ResNet(DEEP), ResNet(DEEP, scan_blocks=True)


@pytest.fixture
def variables(rng):
    """Variables in the stored form, not 0 or 1."""
    fresh = init_variables(UNROLLED, jax.random.key(0), (8, 8, 3))
    return jax.tree.map(lambda x: np.float32(x + 0.3 * rng.uniform(0.2, 1, x.shape)), fresh)


def test_scanned_blocks_compute_the_same(variables, rng):
    """Logits, gradients and running statistics, with variables converted to the stacked form and back."""
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)

    def run(model, variables):
        def loss(params):
            logits, updates = model.apply(variables | {'params': params}, images, train=True, mutable=['batch_stats'])
            return jnp.sum(logits * jnp.arange(5.0)[None]), (logits, updates['batch_stats'])

        (_, (logits, stats)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
        return {'logits': logits, 'stats': stats, 'gradients': gradients}

    stacked = as_computed(SCANNED, variables)
    shapes = jax.eval_shape(lambda key: init_variables(SCANNED, key, (8, 8, 3)), jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
    assert set(stacked['params']) >= {'stage1_block1', 'stage1_blocks', 'stage2_block1', 'stage2_block2'}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        as_stored(run(SCANNED, stacked)),
        run(UNROLLED, variables),
    )


def test_conversion_between_the_forms(variables):
    """Bit for bit; variables that already have the form are not changed, and arrays on the host stay there."""
    stacked = as_computed(SCANNED, variables)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(stacked))
    for model, form in ((SCANNED, stacked), (UNROLLED, variables), (object(), variables)):
        for given in (stacked, variables):
            jax.tree.map(np.testing.assert_array_equal, as_computed(model, given), form)
    for given in (stacked, variables):
        jax.tree.map(np.testing.assert_array_equal, as_stored(given), variables)


def test_a_whole_train_state_is_converted(variables):
    """Parameters, statistics and the optimizer's slots alike."""
    state = create_train_state(variables, optimizer_of(TrainConfig(), 10))
    stacked = as_computed(SCANNED, state)
    assert len(jax.tree.leaves(stacked)) < len(jax.tree.leaves(state))
    assert len(jax.tree.leaves(stacked.opt_state)) < len(jax.tree.leaves(state.opt_state))
    assert jax.tree.structure(as_stored(stacked)) == jax.tree.structure(state)


def test_variable_shapes_has_the_stored_form(variables):
    """For any way to compute the network."""
    for model in (UNROLLED, SCANNED, ResNet(DEEP, frozen='stem')):
        shapes = variable_shapes(model)
        assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(jnp.shape, variables)


STACKED = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ('path', 'stored'),
    [
        ('stage1_blocks/conv1/kernel', [f'stage1_block{index}/conv1/kernel' for index in (2, 3, 4)]),
        ('params/stage12_blocks/alpha', [f'params/stage12_block{index}/alpha' for index in (2, 3, 4)]),
        ('stage1_block3/conv1/kernel', None),
        ('stem/conv/kernel', None),
        ('head/stage1_blocks_of_another/kernel', None),
    ],
)
def test_paths_in_both_forms(path, stored):
    assert is_stacked(path) == (stored is not None)
    assert block_paths(path, STACKED) == (stored or [path])
    assert block_shape(path, STACKED) == ((2,) if stored else (3, 2))
    parts = split_blocks(path, STACKED)
    assert list(parts) == (stored or [path])
    np.testing.assert_array_equal(np.stack(list(parts.values())) if stored else parts[path], STACKED)


def test_split_blocks_has_the_paths_of_the_stored_form(variables):
    def leaves(tree):
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in flat}

    singles = {}
    for path, leaf in leaves(stack_blocks(variables)).items():
        singles |= split_blocks(path, leaf)
    stored = leaves(variables)
    assert singles.keys() == stored.keys()
    assert all(np.array_equal(singles[path], stored[path]) for path in stored)


@pytest.mark.parametrize('number', [1, 2])
def test_map_blocks_applies_a_function_per_block(number):
    """``x / |x| + y``: the norm of a whole stacked array would be different."""

    def function(*leaves):
        return leaves[0] / jnp.linalg.norm(leaves[0]) + sum(leaves[1:])

    leaves = [STACKED + 1 + index for index in range(number)]
    expected = np.stack([function(*parts) for parts in zip(*leaves, strict=True)])
    np.testing.assert_allclose(map_blocks(function, 'stage1_blocks/scale', *leaves), expected, rtol=1e-6)
    single = map_blocks(function, 'stage1_block2/scale', *leaves)
    np.testing.assert_array_equal(single, function(*leaves))
    assert not np.allclose(single, expected)


def test_pruned_or_frozen_blocks_cannot_be_scanned():
    channels = ((4, 4, 16),) * 3
    for model in (
        ResNet(DEEP, scan_blocks=True, frozen='stem'),
        ResNet(make_spec('bottleneck', (3,), (4,), (1,), 'cifar', 4, channels=channels), scan_blocks=True),
    ):
        with pytest.raises(InputError, match='scan_blocks=True is not supported with pruned or frozen blocks'):
            jax.eval_shape(lambda model=model: init_variables(model, jax.random.key(0), (8, 8, 3)))
