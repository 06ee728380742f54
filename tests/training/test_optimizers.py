"""Optimizer dataclasses, and optimizers from optax."""

import functools

import optax
import pytest

from resnet_jax import InputError, TrainConfig
from resnet_jax.training.optimizers import OPTIMIZERS, SGD, AdamW, Lars, Muon, Optax, optimizer_from


def test_hyperparameters_and_defaults():
    own = {
        name: {'momentum', 'nesterov', 'b1', 'b2'} & set(kind.__dataclass_fields__) for name, kind in OPTIMIZERS.items()
    }
    adams = {name: {'b1', 'b2'} for name in ('adam', 'adamw', 'lamb')}
    assert own == adams | {
        'sgd': {'momentum', 'nesterov'},
        'lars': {'momentum', 'nesterov'},
        'rmsprop_tf': {'momentum'},
        'muon': {'b1', 'b2', 'momentum'},
    }
    assert (SGD().learning_rate, Lars().learning_rate, AdamW().learning_rate) == (0.1, 2.0, 1e-3)
    assert (SGD().weight_decay, AdamW().weight_decay, Muon().momentum) == (1e-4, 0.02, 0.95)


def test_optax_by_name_and_by_value():
    lion = optimizer_from('optax.lion')
    assert lion == optimizer_from(optax.lion) == Optax(optax.lion)
    assert lion.name == 'optax.lion'
    transformation = optax.sgd(0.1)
    assert optimizer_from(transformation) is transformation
    assert optimizer_from('lbfgs') is None
    assert Optax(functools.partial(optax.adam, b1=0.5)).name == 'optax._src.alias:adam(b1=0.5)'


@pytest.mark.parametrize('name', ['optax.lyon', 'optax.apply_updates', 'optax.'])
def test_an_unknown_optax_name_gets_the_nearest_ones(name):
    with pytest.raises(InputError, match=f"optimizer='{name}' is not an optimizer of optax; .*known: "):
        optimizer_from(name)


def test_json_round_trip():
    config = TrainConfig().replace(optimizer='optax.lion', learning_rate=0.5)
    record = config.to_json()
    assert record['optimizer']['name'] == 'optax.lion'
    assert TrainConfig.from_json(record) == config
