"""Schedules and optimizer steps by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import InputError, TrainConfig
from resnet_jax.training.optim import make_optimizer, parameter_rules

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


@pytest.mark.parametrize('nesterov', [False, True])
def test_two_steps_of_sgd_by_hand(nesterov):
    """PyTorch: d = g + wd w; v = m v + d; w -= lr (d + m v if nesterov else v)."""
    config = TrainConfig(
        epochs=10, learning_rate=0.1, schedule='step', decay_epochs=(9,), momentum=0.9, nesterov=nesterov,
        weight_decay=0.5, decayed='kernels',
    )  # fmt: skip
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(PARAMS)
    params = PARAMS
    expected = {'kernel': 2.0, 'scale': 1.0}
    velocity = {'kernel': 0.0, 'scale': 0.0}
    for gradient in (1.0, -3.0):
        grads = {
            'conv1': {'kernel': jnp.array([gradient])},
            'norm1': {'scale': jnp.array([gradient]), 'bias': jnp.zeros(1)},
        }
        updates, state = optimizer.update(grads, state, params)
        params = {k: {n: params[k][n] + updates[k][n] for n in params[k]} for k in params}
        for name, decay in (('kernel', 0.5), ('scale', 0.0)):
            d = gradient + decay * expected[name]
            velocity[name] = 0.9 * velocity[name] + d
            expected[name] -= 0.1 * (d + 0.9 * velocity[name] if nesterov else velocity[name])
    np.testing.assert_allclose(params['conv1']['kernel'], [expected['kernel']], rtol=1e-6)
    np.testing.assert_allclose(params['norm1']['scale'], [expected['scale']], rtol=1e-6)
    np.testing.assert_allclose(params['norm1']['bias'], [0.5])


def test_the_state_of_sgd_is_nested_as_in_the_checkpoints_there_are():
    expected = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lambda step: 0.1, 0.9)).init(PARAMS)
    found = make_optimizer(TrainConfig(), 10).init(PARAMS)
    assert [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(found)[0]] == [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(expected)[0]
    ]


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_two_steps_of_adam_by_hand(name):
    """PyTorch: m and v from g (adam: g + wd w), both corrected for their start; adamw takes lr wd w off beside it."""
    fields = {'epochs': 10, 'learning_rate': 0.1, 'schedule': 'step', 'decay_epochs': (9,), 'decayed': 'kernels'}
    optimizer = make_optimizer(TrainConfig(optimizer=name, weight_decay=0.5, **fields), 10)
    params, state, w, m, v = PARAMS, optimizer.init(PARAMS), 2.0, 0.0, 0.0
    for step, gradient in enumerate((1.0, -3.0), start=1):
        grads = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), PARAMS)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = gradient + (0.5 * w if name == 'adam' else 0.0)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        move = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
        w -= 0.1 * (move + (0.5 * w if name == 'adamw' else 0.0))
    np.testing.assert_allclose(params['conv1']['kernel'], [w], rtol=1e-5)


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
