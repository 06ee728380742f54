"""Checks of the arguments that create networks and their variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError, ResNet, create_model, get_spec, init_variables, make_spec

MODEL = ResNet(make_spec('basic', (1,), (8,), (1,), 'cifar', 8, 'A', num_classes=4))


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('resnet20', {'widths': 16}, 'widths=16 must be a sequence'),
        ('resnet20', {'stage_sizes': 3}, 'stage_sizes=3 must be a sequence'),
        ('resnet20', {'num_classes': '10'}, "num_classes='10' must be an integer"),
        ('resnet20', {'num_classes': True}, 'num_classes=True must be an integer'),
        ('resnet20', {'num_classes': 2.5}, 'num_classes=2.5 must be an integer'),
        ('resnet20', {'num_classes': 0}, 'num_classes=0 must be at least 1'),
        ('resnet20', {'nclasses': 10}, 'nclasses'),
        ('resnet20', {'dtype': 'float33'}, "dtype='float33' must be a floating-point dtype"),
        ('resnet20', {'dtype': None}, 'dtype=None must be a floating-point dtype'),
        ('resnet20', {'dtype': jnp.int32}, 'dtype=.* must be a floating-point dtype'),
        (20, {}, 'unknown architecture 20; '),
        (['resnet20'], {}, r"unknown architecture \['resnet20'\]; "),
    ],
)
def test_mistakes_in_a_network_are_one_line(name, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        create_model(name, **changes)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    'key',
    [
        0,
        None,
        '0',
        np.int64(3),
        jnp.int32(0),
        jnp.zeros(3, jnp.uint32),
        jnp.zeros(2),
        jax.random.split(jax.random.key(0)),
    ],
)
def test_a_key_that_is_none_is_refused(key):
    with pytest.raises(InputError, match=r'^key must be one random key, such as jax.random.key\(0\), found'):
        init_variables(MODEL, key, (8, 8, 3))


@pytest.mark.parametrize(
    'shape', [8, (8, 8), (1, 8, 8, 3), (8, 8, 0), (8, -8, 3), (8.0, 8, 3), (True, 8, 3), '883', None]
)
def test_an_image_shape_that_is_none_is_refused(shape):
    with pytest.raises(InputError, match=r'^image_shape=.* must be'):
        init_variables(MODEL, jax.random.key(0), shape)


@pytest.mark.parametrize('model', ['resnet20', get_spec('resnet20'), None])
def test_a_model_that_is_none_is_refused(model):
    with pytest.raises(InputError, match=r'^model must be a Linen module, as create_model returns, found'):
        init_variables(model, jax.random.key(0), (8, 8, 3))


def test_old_keys_and_lists_are_accepted():
    expected = init_variables(MODEL, jax.random.key(3), (8, 8, 3))
    found = init_variables(MODEL, jax.random.PRNGKey(3), [8, np.int64(8), 3])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
