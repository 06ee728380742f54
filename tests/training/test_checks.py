"""Checks of the arguments of single steps; ``test_step.py`` has the mistakes of whole steps."""

import optax
import pytest
from flax.core import freeze

from resnet_jax import InputError
from resnet_jax.training import checks


def test_frozen_dicts_become_dicts_at_any_depth():
    found = checks.as_dicts({'a': freeze({'b': {'c': 1}}), 'd': [freeze({'e': 2})]})
    assert found == {'a': {'b': {'c': 1}}, 'd': [{'e': 2}]}
    assert {type(found['a']), type(found['a']['b']), type(found['d'][0])} == {dict}


@pytest.mark.parametrize('optimizer', [optax.sgd, 'sgd', None, 0.1])
def test_an_optimizer_must_be_a_transformation(optimizer):
    checks.check_optimizer(optax.sgd(0.1))
    with pytest.raises(InputError, match=r'^optimizer must be an optax.GradientTransformation, .*, found '):
        checks.check_optimizer(optimizer)
