"""The networks that ours are timed against are the same networks."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments.peers import FlaxNetwork, torch_network
from resnet_jax import create_model, get_spec, init_variables

SIZE = 32


def our_shapes(name):
    variables = jax.eval_shape(lambda key: init_variables(create_model(name), key, (SIZE, SIZE, 3)), jax.random.key(0))
    return [leaf.shape for leaf in jax.tree.leaves(variables)]


@pytest.mark.parametrize(
    'name',
    [
        *('resnet20', 'plain20', 'preact_resnet20', 'preact_resnet164', 'wrn16_8', 'resnext29_8x64d'),
        *('resnet18', 'resnet50', 'resnext50_32x4d', 'wide_resnet50_2', 'resnet18_cifar'),
    ],
)
def test_plain_flax_has_the_same_arrays(name):
    model, images = FlaxNetwork(get_spec(name)), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(lambda key: model.lazy_init(key, images, train=False), jax.random.key(0))
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables)]
    assert collections.Counter(shapes) == collections.Counter(our_shapes(name))


@pytest.mark.parametrize('name', ['resnet20', 'preact_resnet20', 'wrn16_8', 'resnext50_32x4d_cifar', 'resnet18'])
def test_pytorch_has_as_many_parameters(name):
    pytest.importorskip('torch')
    pytest.importorskip('torchvision')
    spec = dataclasses.replace(get_spec(name), num_classes=7)  # not torchvision's own
    network = torch_network(name, spec, SIZE)
    model = create_model(name, num_classes=7)
    variables = jax.eval_shape(lambda key: init_variables(model, key, (SIZE, SIZE, 3)), jax.random.key(0))
    expected = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
