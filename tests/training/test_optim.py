"""Optimizer steps by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import InputError, TrainConfig
from resnet_jax.models.scanned import stack_blocks
from resnet_jax.training.config import optimizer_of
from resnet_jax.training.optimizers import OPTIMIZERS
from tests.training.arrays import PARAMS, STACK, flat_of, newton_schulz, random_arrays, tree_of


@pytest.mark.parametrize('freeze', [None, 'conv1'])
@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_the_head_has_its_own_learning_rate(name, freeze):
    params = PARAMS | {'head': {'kernel': jnp.array([2.0]), 'bias': jnp.array([1.0])}}
    config = TrainConfig().replace(optimizer=name, learning_rate=0.1, weight_decay=0.5, freeze=freeze)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.7), params)

    def updates(**fields):
        optimizer = optimizer_of(config.replace(**fields), 10)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
        return updates

    same, other = updates(), updates(head_learning_rate=0.4)
    np.testing.assert_array_equal(other['norm1']['scale'], same['norm1']['scale'])
    for leaf in ('kernel', 'bias'):
        np.testing.assert_allclose(other['head'][leaf], 4 * same['head'][leaf], rtol=1e-5)
    assert bool(np.any(same['conv1']['kernel'])) == (freeze is None)


@pytest.mark.parametrize(('pattern', 'which'), [('kernel', 'none of the parameters'), ('', 'all parameters')])
def test_freezing_nothing_or_everything_raises(pattern, which):
    with pytest.raises(InputError, match=f'matches {which}; paths start with: conv1, norm1') as error:
        optimizer_of(TrainConfig().replace(freeze=pattern), 10).init(PARAMS)
    assert '\n' not in str(error.value)


def test_frozen_parameters_have_no_decay_and_no_state():
    optimizer = optimizer_of(TrainConfig().replace(weight_decay=0.5, momentum=0.9, freeze='conv1'), 10)
    state = optimizer.init(PARAMS)
    slots = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert any('norm1' in slot for slot in slots)
    assert not any('conv1' in slot for slot in slots)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    np.testing.assert_array_equal(updates['conv1']['kernel'], 0)
    np.testing.assert_allclose(updates['norm1']['scale'], -0.1 * 1.5)


def after_steps(config, params, gradients, steps_per_epoch=2):
    """Parameters by path after one step per gradient."""
    optimizer = optimizer_of(config, steps_per_epoch)
    params = tree_of({path: jnp.asarray(value) for path, value in params.items()})
    state = optimizer.init(params)
    step = jax.jit(lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p)))
    for grads in gradients:
        params, state = step(tree_of({path: jnp.asarray(value) for path, value in grads.items()}), state, params)
    return {path: np.asarray(value) for path, value in flat_of(params).items()}


NORM = np.linalg.norm


class ByHand:
    """Reference implementations of the optimizers in float64, for one parameter."""

    def __init__(self, config, params, decays, matrix):
        self.c, self.decays, self.matrix = config.optimizer, decays, matrix
        self.name = type(config.optimizer).__name__.lower()
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
        self.w = self.w - getattr(self, f'_{self.name}')(g.astype(np.float64), decay, rate)

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

    def _rmsproptf(self, g, decay, rate):
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


MATRICES = ('stem/conv/kernel', 'stage1_block1/conv1/kernel')


@pytest.mark.parametrize(('decayed', 'nesterov'), [('all', False), ('not_norms', True), ('kernels', False)])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_by_hand(name, decayed, nesterov):
    kind = OPTIMIZERS[name]
    own = {'momentum': 0.8, 'nesterov': nesterov}
    own = {field: value for field, value in own.items() if field in kind.__dataclass_fields__}
    optimizer = kind(learning_rate=0.05, weight_decay=0.3, decayed=decayed, **own)
    config = TrainConfig().replace(optimizer=optimizer, epochs=3, schedule='linear')
    params, gradients = random_arrays(0), [random_arrays(seed) for seed in range(1, 5)]
    found = after_steps(config, params, gradients)
    for path, value in params.items():
        norm = path.startswith('stem/norm')
        decays = {'all': True, 'not_norms': not norm, 'kernels': path.endswith('kernel')}[decayed]
        hand = ByHand(config, value, decays, path in MATRICES)
        for index, grads in enumerate(gradients):
            hand.step(grads[path], 0.05 * (1 - index / 6))
        np.testing.assert_allclose(found[path], hand.w, rtol=2e-4, atol=2e-6, err_msg=path)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_learning_rate_factors(name):
    """The first step of each parameter is scaled by its factor, even with trust ratios."""
    config = TrainConfig().replace(optimizer=name, learning_rate=0.1, weight_decay=0.1)
    params, gradients = random_arrays(0), [random_arrays(1)]
    factors = (('stem', 0.25), ('stage1_block1/(conv1|se)', 3.0), ('.*attention', 0.0))
    changed = config.replace(learning_rate_factors=factors, head_learning_rate=0.2)
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
            "'other' matches none of the parameters; paths start with: conv1, ",
        ),
        ((('conv', 0.1), ('.*kernel', 0.2)), {}, "'.*kernel' and 'conv' both match conv1/kernel"),
        ((('he', 0.1),), {'head_learning_rate': 0.1}, "'he' and head_learning_rate=0.1 both match head"),
        ((('conv1', 0.1),), {'freeze': 'conv'}, "'conv1' and freeze='conv' both match conv1/kernel"),
    ],
)
def test_every_parameter_has_one_rule(factors, fields, message):
    params = PARAMS | {'head': {'kernel': jnp.ones((1, 1)), 'bias': jnp.ones(1)}}
    with pytest.raises(InputError, match=message) as error:
        optimizer_of(TrainConfig().replace(learning_rate_factors=factors, **fields), 10).init(params)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_frozen_parameters_stay_with_every_optimizer(name):
    params, gradients = random_arrays(0), [random_arrays(1), random_arrays(2)]
    fields = {'optimizer': name, 'weight_decay': 0.1, 'adaptive_clip': 0.1, 'learning_rate_factors': (('stage1', 0.5),)}
    found = after_steps(TrainConfig().replace(**fields, freeze='stem'), params, gradients)
    free = after_steps(TrainConfig().replace(**fields), params, gradients)
    for path, value in params.items():
        np.testing.assert_array_equal(found[path], value if path.startswith('stem') else free[path])


def test_clip_norm_uses_only_trained_parameters():
    params, grads = random_arrays(0), random_arrays(1)
    config = TrainConfig().replace(learning_rate=1.0, weight_decay=0.0, momentum=0.0, clip_norm=0.5, freeze='stem')
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
def test_adaptive_clipping_is_per_unit(shape):
    """Brock et al. 2021, Eq. 3: weights per output; biases and scales are one unit; the head is excluded."""
    shapes = {'stem/conv/kernel': shape, 'head/kernel': (4, 3)}
    params, grads = random_arrays(0, shapes), random_arrays(1, shapes)
    params['stem/conv/kernel'][..., 0] *= 1e-5  # the smallest norm is 1e-3
    config = TrainConfig().replace(learning_rate=1.0, weight_decay=0.0, momentum=0.0, adaptive_clip=0.3)
    found = after_steps(config, params, [grads])
    weight, grad = params['stem/conv/kernel'], grads['stem/conv/kernel']
    axes = tuple(range(len(shape) - 1)) or None
    largest = 0.3 * np.maximum(NORM(weight.reshape(-1, shape[-1]), axis=0) if axes else NORM(weight), 1e-3)
    norm = NORM(grad.reshape(-1, shape[-1]), axis=0) if axes else NORM(grad)
    np.testing.assert_allclose(
        found['stem/conv/kernel'], weight - grad * np.minimum(1, largest / norm), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found['head/kernel'], params['head/kernel'] - grads['head/kernel'], rtol=1e-6)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_stacked_blocks_are_treated_separately(name):
    """Blocks in a loop have the rules, norms and matrices of single blocks."""
    config = TrainConfig().replace(
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


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_vmap_over_networks(name):
    """``jax.vmap`` over a leading axis of parameters, gradients and state."""
    fields = {'clip_norm': 0.5, 'adaptive_clip': 0.1, 'learning_rate': 0.1, 'head_learning_rate': 0.3}
    optimizer = optimizer_of(TrainConfig().replace(optimizer=name, decayed='kernels', freeze='stem/norm', **fields), 10)
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
def test_the_state_has_one_schedule_count(name):
    state = optimizer_of(TrainConfig().replace(optimizer=name, clip_norm=1.0, freeze='stem'), 10).init(
        tree_of(random_arrays(0))
    )
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
    assert sum(isinstance(leaf, optax.ScaleByScheduleState) for leaf in leaves) == 1


@pytest.mark.parametrize('fields', [{}, {'head_learning_rate': 0.2}, {'freeze': 'stem'}])
@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_the_state_is_nested_as_in_old_checkpoints(name, fields):
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
    found = optimizer_of(TrainConfig().replace(optimizer=name, learning_rate=0.1, **fields), 10).init(params)
    assert jax.tree.structure(found) == jax.tree.structure(old.init(params))


class TestOptax:
    """Optimizers of optax: by name, as a function, or as a transformation."""

    @staticmethod
    def direct(optimizer, params, gradients):
        params = tree_of({path: jnp.asarray(value) for path, value in params.items()})
        state = optimizer.init(params)
        for grads in gradients:
            updates, state = optimizer.update(tree_of(grads), state, params)
            params = optax.apply_updates(params, updates)
        return {path: np.asarray(value) for path, value in flat_of(params).items()}

    @pytest.mark.parametrize('form', ['name', 'function', 'transformation'])
    def test_steps_agree_with_optax(self, form):
        """With the configuration's schedule, which halves the rate in the second of two epochs."""
        params, gradients = random_arrays(0), [random_arrays(seed) for seed in (1, 2)]
        rate = optax.piecewise_constant_schedule(0.01, {1: 0.5})
        fields = {'schedule': 'step', 'decay_epochs': (1,), 'decay_factor': 0.5, 'epochs': 2}
        asked = {'name': 'optax.lion', 'function': optax.lion, 'transformation': optax.lion(rate)}[form]
        if form == 'transformation':  # it has its own rate
            fields = {'epochs': 2}
        else:
            fields['learning_rate'] = 0.01
        config = TrainConfig().replace(optimizer=asked, **fields)
        found = after_steps(config, params, gradients, steps_per_epoch=1)
        for path, value in self.direct(optax.lion(rate), params, gradients).items():
            np.testing.assert_allclose(found[path], value, rtol=1e-6, err_msg=path)

    def test_frozen_parameters_stay(self):
        config = TrainConfig().replace(optimizer=optax.adam(0.1), freeze='stem')
        params = random_arrays(0)
        found = after_steps(config, params, [random_arrays(1)])
        for path, value in params.items():
            assert np.array_equal(found[path], value) == path.startswith('stem')

    def test_a_function_that_is_not_an_optimizer_raises(self):
        config = TrainConfig().replace(optimizer=lambda learning_rate: learning_rate)
        with pytest.raises(InputError, match=r'must return an optax.GradientTransformation, got function'):
            optimizer_of(config, 1).init(PARAMS)
