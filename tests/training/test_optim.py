"""Schedules and optimizer steps by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import InputError, TrainConfig
from resnet_jax.models.resnet import stack_blocks
from resnet_jax.training.config import OPTIMIZERS
from resnet_jax.training.optim import make_optimizer, orthogonalized, parameter_rules

PARAMS = {'conv1': {'kernel': jnp.array([2.0])}, 'norm1': {'scale': jnp.array([1.0]), 'bias': jnp.array([0.5])}}


def in_order(rules):
    """The kernel's, the scale's and the bias's of PARAMS."""
    return [rules['conv1']['kernel'], rules['norm1']['scale'], rules['norm1']['bias']]


@pytest.mark.parametrize(('decayed', 'expected'), [('all', [True, True, True]), ('kernels', [True, False, False])])
def test_which_parameters_decay(decayed, expected):
    rules = parameter_rules(PARAMS, TrainConfig(decayed=decayed))
    assert [rule.decays for rule in in_order(rules)] == expected


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match='mystery'):
        parameter_rules({'conv1': {'mystery': jnp.zeros(1)}}, TrainConfig())


@pytest.mark.parametrize('freeze', [None, 'conv1'])
@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_the_head_has_its_own_learning_rate(name, freeze):
    params = PARAMS | {'head': {'kernel': jnp.array([2.0]), 'bias': jnp.array([1.0])}}
    config = TrainConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5, freeze=freeze)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.7), params)

    def updates(**fields):
        optimizer = make_optimizer(dataclasses.replace(config, **fields), 10)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
        return updates

    same, other = updates(), updates(head_learning_rate=0.4)
    np.testing.assert_array_equal(other['norm1']['scale'], same['norm1']['scale'])
    for leaf in ('kernel', 'bias'):
        np.testing.assert_allclose(other['head'][leaf], 4 * same['head'][leaf], rtol=1e-5)
    assert bool(np.any(same['conv1']['kernel'])) == (freeze is None)


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [('conv1', [True, False, False]), ('norm1/(scale|bias)', [False, True, True]), ('.*bias', [False, False, True])],
)
def test_patterns_match_paths_from_their_beginning(pattern, expected):
    rules = parameter_rules(PARAMS, TrainConfig(freeze=pattern))
    assert [not rule.trained for rule in in_order(rules)] == expected


@pytest.mark.parametrize(('pattern', 'which'), [('kernel', 'none of the parameters'), ('', 'all parameters')])
def test_freezing_nothing_or_everything_is_an_error(pattern, which):
    with pytest.raises(InputError, match=f'matches {which}; their paths begin with: conv1, norm1') as error:
        make_optimizer(TrainConfig(freeze=pattern), 10).init(PARAMS)
    assert '\n' not in str(error.value)


def test_frozen_parameters_have_neither_decay_nor_slots():
    optimizer = make_optimizer(TrainConfig(weight_decay=0.5, momentum=0.9, freeze='conv1'), 10)
    state = optimizer.init(PARAMS)
    slots = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert any('norm1' in slot for slot in slots)
    assert not any('conv1' in slot for slot in slots)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    np.testing.assert_array_equal(updates['conv1']['kernel'], 0)
    np.testing.assert_allclose(updates['norm1']['scale'], -0.1 * 1.5)


# A tree with the project's names: a stem, two blocks that could be stacked, an attention of one unit, and a head.
SHAPES = {
    'stem/conv/kernel': (3, 3, 1, 4),
    'stem/norm/scale': (4,),
    'stem/norm/bias': (4,),
    'stage1_block1/conv1/kernel': (1, 1, 4, 4),
    'stage1_block1/attention/kernel': (3, 1, 1),
    'stage1_block1/se/bias': (4,),
    'head/kernel': (4, 3),
    'head/bias': (3,),
}


def tree_of(flat):
    """Nested dicts of a dict by path."""
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flat_of(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in flat}


def random_arrays(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: scale * rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def after_steps(config, params, gradients, steps_per_epoch=2):
    """Parameters by path after a step with each of the gradients."""
    optimizer = make_optimizer(config, steps_per_epoch)
    params = tree_of({path: jnp.asarray(value) for path, value in params.items()})
    state = optimizer.init(params)
    step = jax.jit(lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p)))
    for grads in gradients:
        params, state = step(tree_of({path: jnp.asarray(value) for path, value in grads.items()}), state, params)
    return {path: np.asarray(value) for path, value in flat_of(params).items()}


NORM = np.linalg.norm


class ByHand:
    """The optimizers once more, in float64, of one parameter at a time."""

    def __init__(self, config, params, decays, matrix):
        self.c, self.decays, self.matrix = config, decays, matrix
        self.w = params.astype(np.float64)
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)
        self.square, self.steps = np.ones_like(self.w), 0

    def adam(self, g, epsilon):
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        return (self.m / (1 - 0.9**self.steps)) / (np.sqrt(self.v / (1 - 0.999**self.steps)) + epsilon)

    def momentum(self, u, nesterov):
        self.m = self.c.momentum * self.m + u
        return u + self.c.momentum * self.m if nesterov else self.m

    def step(self, g, rate):
        self.steps += 1
        decay = self.c.weight_decay * self.w * self.decays
        self.w = self.w - getattr(self, '_' + self.c.optimizer)(g.astype(np.float64), decay, rate)

    def _sgd(self, g, decay, rate):
        return rate * self.momentum(g + decay, self.c.nesterov)

    def _adam(self, g, decay, rate):
        return rate * self.adam(g + decay, 1e-8)

    def _adamw(self, g, decay, rate):
        return rate * (self.adam(g, 1e-8) + decay)

    def _lamb(self, g, decay, rate):
        u = self.adam(g, 1e-6) + decay
        return rate * u * (NORM(self.w) / NORM(u) if self.decays else 1)

    def _lars(self, g, decay, rate):
        u = g + decay
        u = u * (1e-3 * NORM(self.w) / NORM(u) if self.decays else 1)
        return self.momentum(rate * u, self.c.nesterov)

    def _rmsprop_tf(self, g, decay, rate):
        u = g + decay
        self.square = 0.9 * self.square + 0.1 * u * u
        return self.momentum(rate * u / np.sqrt(self.square + 1e-10), False)

    def _muon(self, g, decay, rate):
        if not self.matrix:
            return rate * (self.adam(g, 1e-8) + decay)
        u = self.momentum(g, True)
        u = u.reshape(-1, u.shape[-1])
        u = newton_schulz(u) * 0.2 * np.sqrt(max(u.shape))
        return rate * (u.reshape(self.w.shape) + decay)


def newton_schulz(x):
    """By singular values: each s becomes a s + b s^3 + c s^5, five times."""
    left, s, right = np.linalg.svd(x, full_matrices=False)
    s = s / NORM(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left * s @ right


MATRICES = ('stem/conv/kernel', 'stage1_block1/conv1/kernel')


@pytest.mark.parametrize(('decayed', 'nesterov'), [('all', False), ('not_norms', True), ('kernels', False)])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_by_hand(name, decayed, nesterov):
    config = TrainConfig(
        optimizer=name, learning_rate=0.05, epochs=3, schedule='linear', momentum=0.8, nesterov=nesterov,
        weight_decay=0.3, decayed=decayed,
    )  # fmt: skip
    params, gradients = random_arrays(0), [random_arrays(seed) for seed in range(1, 5)]
    found = after_steps(config, params, gradients)
    for path, value in params.items():
        norm = path.startswith('stem/norm')
        decays = {'all': True, 'not_norms': not norm, 'kernels': path.endswith('kernel')}[decayed]
        hand = ByHand(config, value, decays, path in MATRICES)
        for index, grads in enumerate(gradients):
            hand.step(grads[path], 0.05 * (1 - index / 6))
        np.testing.assert_allclose(found[path], hand.w, rtol=2e-4, atol=2e-6, err_msg=path)


@pytest.mark.parametrize('shape', [(5, 3), (3, 5), (4, 4), (9, 1)])
def test_orthogonalized_matrices(shape):
    matrix = random_arrays(1, {'x': shape})['x']
    found = np.asarray(orthogonalized(jnp.asarray(matrix)))
    np.testing.assert_allclose(found, newton_schulz(matrix), atol=2e-5)
    assert np.all(np.abs(np.linalg.svd(found, compute_uv=False) - 0.95) < 0.3)
    assert np.all(np.asarray(orthogonalized(jnp.zeros(shape))) == 0)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_factors_of_the_learning_rate(name):
    """The first step of each parameter is its factor times what it would be, also where trust ratios adapt."""
    config = TrainConfig(optimizer=name, weight_decay=0.1)
    params, gradients = random_arrays(0), [random_arrays(1)]
    factors = (('stem', 0.25), ('stage1_block1/(conv1|se)', 3.0), ('.*attention', 0.0))
    changed = dataclasses.replace(config, learning_rate_factors=factors, head_learning_rate=0.2)
    plain, found = (after_steps(config, params, gradients) for config in (config, changed))
    for path, value in params.items():
        factor = {'stem': 0.25, 'head': 2.0}.get(path.partition('/')[0], 0.0 if 'attention' in path else 3.0)
        np.testing.assert_allclose(found[path] - value, factor * (plain[path] - value), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ('factors', 'fields', 'message'),
    [
        (
            (('conv1', 0.1), ('other', 0.2)),
            {},
            "'other' matches none of the parameters; their paths begin with: conv1, ",
        ),
        ((('conv', 0.1), ('.*kernel', 0.2)), {}, "'.*kernel' and 'conv' both match conv1/kernel"),
        ((('he', 0.1),), {'head_learning_rate': 0.1}, "'he' and head_learning_rate=0.1 both match head"),
        ((('conv1', 0.1),), {'freeze': 'conv'}, "'conv1' and freeze='conv' both match conv1/kernel"),
    ],
)
def test_every_parameter_has_one_rule(factors, fields, message):
    params = PARAMS | {'head': {'kernel': jnp.ones((1, 1)), 'bias': jnp.ones(1)}}
    with pytest.raises(InputError, match=message) as error:
        make_optimizer(TrainConfig(learning_rate_factors=factors, **fields), 10).init(params)
    assert '\n' not in str(error.value)


def test_norms_are_told_from_convolutions_with_a_bias():
    rules = flat_of(parameter_rules(tree_of(random_arrays(0)), TrainConfig(decayed='not_norms')))
    assert [path for path, rule in rules.items() if not rule.decays] == ['stem/norm/bias', 'stem/norm/scale']
    extra = {'norm': {'scale': jnp.ones(1), 'bias': jnp.ones(1), 'tau': jnp.ones(1), 'v': jnp.ones(1)}}
    assert not any(rule.decays for rule in flat_of(parameter_rules(extra, TrainConfig(decayed='not_norms'))).values())


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_frozen_parameters_stay_whatever_the_optimizer(name):
    params, gradients = random_arrays(0), [random_arrays(1), random_arrays(2)]
    fields = {'optimizer': name, 'weight_decay': 0.1, 'adaptive_clip': 0.1, 'learning_rate_factors': (('stage1', 0.5),)}
    found = after_steps(TrainConfig(**fields, freeze='stem'), params, gradients)
    free = after_steps(TrainConfig(**fields), params, gradients)
    for path, value in params.items():
        np.testing.assert_array_equal(found[path], value if path.startswith('stem') else free[path])


def test_the_norm_is_clipped_of_what_is_trained_alone():
    params, grads = random_arrays(0), random_arrays(1)
    config = TrainConfig(learning_rate=1.0, weight_decay=0.0, momentum=0.0, clip_norm=0.5, freeze='stem')
    found = after_steps(config, params, [grads])
    trained = {path: grad for path, grad in grads.items() if not path.startswith('stem')}
    norm = NORM([NORM(grad) for grad in trained.values()])
    for path, grad in trained.items():
        np.testing.assert_allclose(found[path], params[path] - 0.5 / norm * grad, rtol=1e-5, atol=1e-6)
    small = {path: 1e-3 * grad for path, grad in grads.items()}
    np.testing.assert_allclose(
        after_steps(config, params, [small])['head/bias'], params['head/bias'] - small['head/bias'], rtol=1e-6
    )


@pytest.mark.parametrize('shape', [(3, 3, 1, 4), (1, 1, 1, 4), (1, 4), (3, 1, 1), (4,)])
def test_adaptive_clipping_looks_at_units(shape):
    """Brock et al. 2021, Eq. 3: each output's own weights; biases and scales are one unit; no head."""
    shapes = {'stem/conv/kernel': shape, 'head/kernel': (4, 3)}
    params, grads = random_arrays(0, shapes), random_arrays(1, shapes)
    params['stem/conv/kernel'][..., 0] *= 1e-5  # the smallest norm is 1e-3
    config = TrainConfig(learning_rate=1.0, weight_decay=0.0, momentum=0.0, adaptive_clip=0.3)
    found = after_steps(config, params, [grads])
    weight, grad = params['stem/conv/kernel'], grads['stem/conv/kernel']
    axes = tuple(range(len(shape) - 1)) or None
    largest = 0.3 * np.maximum(NORM(weight.reshape(-1, shape[-1]), axis=0) if axes else NORM(weight), 1e-3)
    norm = NORM(grad.reshape(-1, shape[-1]), axis=0) if axes else NORM(grad)
    np.testing.assert_allclose(
        found['stem/conv/kernel'], weight - grad * np.minimum(1, largest / norm), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found['head/kernel'], params['head/kernel'] - grads['head/kernel'], rtol=1e-6)


STACK = {f'stage1_block{index}/conv1/kernel': (3, 3, 2, 3) for index in (1, 2, 3)} | {
    f'stage1_block{index}/norm1/{name}': (3,) for index in (1, 2, 3) for name in ('scale', 'bias')
}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_stacked_blocks_are_treated_one_by_one(name):
    """What ``scan_blocks`` computes in a loop has the rules, norms and matrices of single blocks."""
    config = TrainConfig(
        optimizer=name, weight_decay=0.1, clip_norm=1.0, adaptive_clip=0.2, learning_rate_factors=(('stage1', 0.5),)
    )
    params, gradients = random_arrays(0, STACK), [random_arrays(seed, STACK) for seed in (1, 2)]
    single = after_steps(config, params, gradients)
    stacked = flat_of(stack_blocks(tree_of(params)))
    found = after_steps(config, stacked, [flat_of(stack_blocks(tree_of(grads))) for grads in gradients])
    assert any(path.startswith('stage1_blocks/') for path in found)
    expected = flat_of(stack_blocks(tree_of(single)))
    for path, value in found.items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_pattern_must_not_tear_a_stack():
    stacked = stack_blocks(tree_of(random_arrays(0, STACK)))
    with pytest.raises(InputError, match=r'stage1_block2/conv1/kernel and not stage1_block3/.*scan_blocks=False'):
        parameter_rules(stacked, TrainConfig(learning_rate_factors=(('stage1_block[12]', 0.1),)))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_several_networks_at_once(name):
    """``jax.vmap`` over an axis in front of parameters, gradients and state."""
    fields = {'clip_norm': 0.5, 'adaptive_clip': 0.1, 'head_learning_rate': 0.3, 'freeze': 'stem/norm'}
    optimizer = make_optimizer(TrainConfig(optimizer=name, decayed='kernels', **fields), 10)
    params, grads = ([tree_of(random_arrays(seed)) for seed in seeds] for seeds in ((0, 1), (2, 3)))
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    many = stack(*params)
    states = jax.vmap(optimizer.init)(many)
    updates, states = jax.jit(jax.vmap(optimizer.update))(stack(*grads), states, many)
    update = jax.jit(optimizer.update)
    for index in range(2):
        alone, _ = update(grads[index], optimizer.init(params[index]), params[index])
        for path, value in flat_of(alone).items():
            np.testing.assert_allclose(flat_of(updates)[path][index], value, rtol=1e-4, atol=1e-7, err_msg=path)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_state_holds_one_count_of_the_schedule(name):
    state = make_optimizer(TrainConfig(optimizer=name, clip_norm=1.0, freeze='stem'), 10).init(
        tree_of(random_arrays(0))
    )
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
    assert sum(isinstance(leaf, optax.ScaleByScheduleState) for leaf in leaves) == 1


@pytest.mark.parametrize('fields', [{}, {'head_learning_rate': 0.2}, {'freeze': 'stem'}])
@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_the_nesting_of_the_state_is_that_of_old_checkpoints(name, fields):
    decay = optax.add_decayed_weights(1e-4, lambda params: jax.tree.map(lambda _: True, params))
    first, second = {
        'sgd': (decay, optax.trace(0.9)),
        'adam': (decay, optax.scale_by_adam()),
        'adamw': (optax.scale_by_adam(), decay),
    }[name]
    scale = [optax.scale_by_learning_rate(lambda step: 0.1)]
    if 'head_learning_rate' in fields:
        heads = functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: path[0].key == 'head')
        scale.insert(0, optax.masked(optax.scale(2.0), heads))
    old = optax.chain(first, optax.chain(second, *scale))
    if 'freeze' in fields:
        labels = functools.partial(
            jax.tree_util.tree_map_with_path, lambda path, _: 'frozen' if path[0].key == 'stem' else 'trained'
        )
        old = optax.partition({'frozen': optax.set_to_zero(), 'trained': old}, labels)
    params = tree_of(random_arrays(0))
    found = make_optimizer(TrainConfig(optimizer=name, **fields), 10).init(params)
    assert jax.tree.structure(found) == jax.tree.structure(old.init(params))
