"""Muon's update direction against a singular value decomposition, and its grouped form against single matrices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import create_model, create_train_state, init_variables, train_step
from resnet_jax.data.feeds import THREAD_READER
from resnet_jax.devices import data_mesh
from resnet_jax.models.scanned import as_stored, stack_blocks
from resnet_jax.training.muon import grouped, orthogonalized, orthogonalized_together
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.optimizers import Muon
from resnet_jax.training.plan import make_plan
from resnet_jax.training.program import compile_program
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.states import initial_state
from tests.training.arrays import STACK, flat_of, newton_schulz, random_arrays, tree_of
from tests.training.runs import CONFIG, SPEC

# Batches of one and of several matrices: rows, columns, tall, wide, square, and more shapes than there are groups.
SHAPES = [
    *[(1, 1, 7), (2, 7, 1), (1, 1, 1), (3, 9, 4), (1, 4, 9)],
    *[(1, 5, 5), (2, 40, 6), (1, 6, 31), (1, 3, 64), (1, 27, 8)],
]
SHAPES_WIDE = [(batch, min(sides), max(sides)) for batch, *sides in SHAPES]


@pytest.mark.parametrize('shape', [(5, 3), (3, 5), (4, 4), (9, 1)])
def test_orthogonalized_matrices(shape):
    matrix = random_arrays(1, {'x': shape})['x']
    found = np.asarray(orthogonalized(jnp.asarray(matrix)))
    np.testing.assert_allclose(found, newton_schulz(matrix), atol=2e-5)
    assert np.all(np.abs(np.linalg.svd(found, compute_uv=False) - 0.95) < 0.3)
    assert np.all(np.asarray(orthogonalized(jnp.zeros(shape))) == 0)


@pytest.mark.parametrize('shapes', [SHAPES, SHAPES[:1], SHAPES[3:4], []])
def test_matrices_together_agree_with_single_ones(shapes):
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    found = jax.jit(orthogonalized_together)(matrices)
    assert len(found) == len(matrices)
    for batch, result in zip(matrices, found, strict=True):
        assert result.shape == batch.shape
        for one, other in zip(batch, result, strict=True):
            np.testing.assert_allclose(other, orthogonalized(one), atol=2e-6)
            np.testing.assert_allclose(other, newton_schulz(one), atol=2e-5)


def test_zero_matrices_stay_zero_among_others():
    found = orthogonalized_together([jnp.zeros((2, 3, 5)), jnp.ones((1, 3, 5)), jnp.zeros((1, 8, 2))])
    assert [float(jnp.abs(one).max()) > 0 for one in found] == [False, True, False]


def test_matrices_of_several_seeds():
    matrices = [jnp.asarray(matrix) for matrix in random_arrays(2, {'a': (3, 2, 4, 6), 'b': (3, 1, 9, 2)}).values()]
    found = jax.vmap(orthogonalized_together)(matrices)
    for seed in range(3):
        for one, other in zip(orthogonalized_together([matrix[seed] for matrix in matrices]), found, strict=True):
            np.testing.assert_allclose(other[seed], one, atol=1e-6)


def test_groups_cover_every_batch_and_merge_the_cheapest():
    groups = grouped(SHAPES_WIDE)
    assert sorted(index for group in groups for index in group.members) == list(range(len(SHAPES_WIDE)))
    assert len(groups) == 5
    for group in groups:
        members = [SHAPES_WIDE[index] for index in group.members]
        assert (group.batch, group.rows, group.columns) == (
            sum(batch for batch, _, _ in members),
            max(rows for _, rows, _ in members),
            max(columns for _, _, columns in members),
        )
    # One shape per group while there are at most five; then the two small ones are merged, not the expensive one.
    sixth = [(1, 64, 576), (1, 128, 576), (4, 128, 1152), (1, 8, 9), (2, 512, 512), (1, 7, 9)]
    assert [group.members for group in grouped(sixth[:5])] == [(0,), (1,), (2,), (3,), (4,)]
    assert [group.members for group in grouped(sixth)] == [(0,), (1,), (2,), (4,), (3, 5)]


@pytest.mark.parametrize(
    ('name', 'percent'),
    [('resnet18_cifar', 3), ('wrn28_10', 1), ('resnext50_32x4d', 3), ('preact_resnet164', 7), ('resnet50', 16)],
)
def test_multiply_adds_that_filling_adds(name, percent):
    """The percentages in the docstring of ``grouped``."""
    params, size = params_of(name), 0
    shapes = []
    for path, leaf in flat_of(params).items():
        if path.endswith('kernel') and not path.startswith('head'):
            sides = int(np.prod(leaf.shape[:-1])), leaf.shape[-1]
            shapes.append((1, min(sides), max(sides)))
            size += 2 * min(sides) ** 2 * max(sides) + min(sides) ** 3
    total = sum(group.multiply_adds for group in grouped(shapes))
    assert round(100 * (total / size - 1)) == percent


def params_of(name):
    model = create_model(name, num_classes=10)
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))['params']


@pytest.mark.parametrize('freeze', [None, 'stem|stage[12]'])
@pytest.mark.parametrize('name', ['resnet18_cifar', 'resnet50'])
def test_number_of_products_in_an_update(name, freeze):
    """At most 15; a layer's own products would be 15 times as many as its kernels."""
    params = params_of(name)
    optimizer = make_optimizer(Muon(), lambda step: 0.1, freeze)
    state = jax.eval_shape(optimizer.init, params)
    text = jax.jit(optimizer.update).lower(params, state, params).as_text()
    assert 3 <= len(re.findall(r'stablehlo\.dot_general', text)) <= 15


def test_number_of_products_in_a_step():
    """At most 20 with the head's three, in the program for a GPU, whose network has no products besides."""
    model = create_model('resnet18_cifar', num_classes=10)
    optimizer = make_optimizer(Muon(), lambda step: 0.1)
    shapes = {'image': ((512, 32, 32, 3), jnp.float32), 'label': ((512,), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}

    def state_of(key):
        return create_train_state(init_variables(model, key, (32, 32, 3)), optimizer)

    step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer))
    traced = step.trace(jax.eval_shape(state_of, jax.random.key(0)), batch)
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
    assert 3 < len(re.findall(r'stablehlo\.dot_general', text)) <= 20


def test_stacked_blocks_are_separate_matrices():
    params, gradients = (jax.tree.map(jnp.asarray, tree_of(random_arrays(seed, STACK))) for seed in (3, 4))
    optimizer = make_optimizer(Muon(weight_decay=0.1), lambda step: 0.1)

    def updated(params, gradients):
        state = optimizer.init(params)
        return optax.apply_updates(params, optimizer.update(gradients, state, params)[0])

    stored = updated(params, gradients)
    stacked = as_stored(updated(stack_blocks(params), stack_blocks(gradients)))
    for path, leaf in flat_of(stored).items():
        np.testing.assert_allclose(flat_of(stacked)[path], leaf, atol=1e-6, err_msg=path)
    kernel, gradient = (tree['stage1_block2']['conv1']['kernel'] for tree in (params, gradients))
    direction = newton_schulz(np.asarray((1 + 0.95) * gradient).reshape(-1, 3)) * 0.2 * np.sqrt(18)
    expected = kernel - 0.1 * (direction.reshape(kernel.shape) + 0.1 * kernel)
    np.testing.assert_allclose(stored['stage1_block2']['conv1']['kernel'], expected, atol=1e-5)


def test_a_sharded_state_on_two_devices_gives_the_same_step(shades):
    """The groups hold matrices that are split along different axes."""
    found = []
    for count in (1, 2):
        config = CONFIG.replace(optimizer='muon', mixup=0.0, shard_optimizer=count > 1)
        mesh = data_mesh(jax.devices()[:count])
        plan = make_plan(SPEC, config, Seeds((0,)), shades, mesh, THREAD_READER)
        state, _ = initial_state(plan)
        compiled = compile_program(plan, state)
        for step in range(2):
            state, _ = compiled.step(state, step)
        found.append(jax.device_get(state.params))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
