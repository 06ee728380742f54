"""The baseline networks of the benchmark have the same arrays as ours."""

import collections

import jax
import jax.numpy as jnp
import pytest

from experiments.shared.baseline_networks import FlaxNetwork, check_is_plain, torch_network
from resnet_jax import InputError, create_model, get_spec, init_variables, list_models, with_changes

SIZE = 32


def our_shapes(name):
    variables = jax.eval_shape(lambda key: init_variables(create_model(name), key, (SIZE, SIZE, 3)), jax.random.key(0))
    return [leaf.shape for leaf in jax.tree.leaves(variables)]


@pytest.mark.parametrize(
    'name',
    [
        *('resnet20', 'plain20', 'preact_resnet20', 'wrn16_8', 'resnet18', 'resnext50_32x4d'),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ('preact_resnet164', 'resnet50', 'resnext29_8x64d')),
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
    spec = with_changes(get_spec(name), num_classes=7)  # not torchvision's own
    network = torch_network(name, spec, SIZE)
    model = create_model(name, num_classes=7)
    variables = jax.eval_shape(lambda key: init_variables(model, key, (SIZE, SIZE, 3)), jax.random.key(0))
    expected = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def is_plain(name):
    try:
        check_is_plain(name, get_spec(name))
    except InputError:
        return False
    return True


def test_only_supported_networks_have_baselines():
    accepted = {name for name in list_models() if is_plain(name)}
    assert {'resnet20', 'plain18', 'wrn16_8', 'resnext50_32x4d', 'resnetv2_50', 'wide_resnet50_2'} <= accepted
    foreign = ('se', 'eca', 'legacy', 'blur', 'aa', 'rs', '_bit', 'resnest', 'skres', 'res2', '_gn', '_evos', '_frn')
    assert not any(part in name for name in accepted for part in (*foreign, 'test_resnet'))
    assert not any(name.endswith(('c', 'd', 's', 't')) and name[-2].isdigit() for name in accepted if 'x' not in name)


@pytest.mark.parametrize(
    'changes',
    [{'attention': 'se'}, {'norm': 'group'}, {'output_stride': 8}, {'standardize': 1e-8}, {'stem': 'deep'},
     {'antialias': 'blur'}, {'drop_path_rate': 0.1}, {'stem_pool': 'conv'}, {'reduce_first': 2}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_an_unsupported_variant_raises(changes):
    check_is_plain('resnet50', get_spec('resnet50', stride_in_1x1=True, shortcut='D', zero_init_last=True))
    with pytest.raises(InputError, match=f'arch=resnet50 has {next(iter(changes))}='):
        check_is_plain('resnet50', get_spec('resnet50', **changes))
