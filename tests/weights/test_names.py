"""Names, shapes and values of PyTorch's tensors in our networks, without PyTorch (see ``parity.py``)."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import (
    NAMES,
    VARIANTS,
    bit_arrays,
    outputs_of,
    sampled,
    statistics,
)

from experiments.shared.goldens import (
    EVERY,
    difference,
    golden_outputs,
    golden_shapes,
    golden_tensors,
    images,
    tensor,
    tolerance,
)
from resnet_jax import (
    BasicBlock,
    InputError,
    ResNet,
    create_model,
    init_variables,
    load_weights,
    make_spec,
    save_weights,
    with_changes,
)
from resnet_jax.models.imagenet import IMAGENET
from resnet_jax.models.resnet import variable_shapes
from resnet_jax.weights.files import TensorHeader, read_tensors, write_safetensors
from resnet_jax.weights.matching import match_tensors, variables_from_tensors
from resnet_jax.weights.names import tensors_from_variables, torch_shape
from tests.weights.helpers import random_variables

LARGEST_FILE = 100_000_000  # bytes; tensors of larger networks are not written to files


@pytest.fixture(scope='module')
def small():
    """The smallest network and its state dict."""
    return create_model('test_resnet'), {
        name: tensor(name, shape) for name, shape in golden_shapes('test_resnet').items()
    }


@pytest.fixture(scope='module', params=sampled(NAMES))
def loaded(request, tmp_path_factory):
    """A network by name, with the weights of the generator."""
    name, tensors = request.param, golden_tensors(request.param)
    model = create_model(name)
    if sum(np.prod(value.shape) for value in tensors.values()) > LARGEST_FILE:
        return name, model, variables_from_tensors(tensors, model)
    path = tmp_path_factory.mktemp('weights') / f'{name}.safetensors'
    write_safetensors(path, tensors)
    variables = load_weights(path, model)
    path.unlink()  # all files together are too large
    return name, model, variables


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close_to_golden(key, model, variables, batch):
    logits, stages = outputs_of(model, variables, batch)
    expected_logits, expected_statistics = golden_outputs(key)
    allowed = tolerance(model.spec)
    assert difference(logits[:, ::EVERY], expected_logits) <= allowed
    assert np.all(np.abs(statistics(stages) - expected_statistics) <= allowed * expected_statistics[:, 2:])


def test_outputs_equal_pytorch(loaded):
    name, model, variables = loaded
    assert_close_to_golden(name, model, variables, images())


def test_exported_tensors_are_bit_identical(loaded):
    name, model, variables = loaded
    back = tensors_from_variables(variables, model)
    assert {key: value.shape for key, value in back.items()} == golden_shapes(name)
    for key in list(back):
        value = back.pop(key)
        assert value.dtype == np.float32
        assert np.array_equal(value, tensor(key, value.shape)), key


@pytest.mark.parametrize('name', sampled(NAMES))
def test_names_and_shapes_equal_pytorch(name):
    """Names and shapes correspond one to one."""
    spec = IMAGENET[name]
    model = ResNet(spec)
    headers = {key: TensorHeader(shape, np.dtype(np.float32)) for key, shape in golden_shapes(name).items()}
    matched = match_tensors(headers, model).tensors
    assert len(matched) == len(headers)
    shapes = variable_shapes(model)
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        ours = jax.tree_util.keystr(path, simple=True, separator='/')
        assert torch_shape(ours.partition('/')[2], leaf.shape, spec) == matched[ours].shape, ours


@pytest.mark.parametrize('key', VARIANTS)
def test_outputs_of_variants_equal_pytorch(key):
    variant = VARIANTS[key]
    model = create_model(variant.name, **variant.ours)
    variables = variables_from_tensors(golden_tensors(key), model)
    assert_close_to_golden(key, model, variables, images(variant.size))


def test_the_comparison_detects_swapped_kernels(small):
    model, tensors = small
    first, second = 'layer1.0.conv1.weight', 'layer1.0.conv2.weight'
    swapped = tensors | {first: tensors[second], second: tensors[first]}
    logits, _ = outputs_of(model, variables_from_tensors(swapped, model), images())
    assert difference(logits[:, ::EVERY], golden_outputs('test_resnet')[0]) > 100 * tolerance(model.spec)


@pytest.mark.parametrize(
    ('name', 'stage_sizes', 'renamed'),
    [
        ('resnet20', (1, 1, 1), {r'^fc\.': 'linear.', r'^': 'module.'}),  # akamaster/pytorch_resnet_cifar10
        (
            'resnet18_cifar',
            (1, 1, 1, 1),
            {r'^fc\.': 'linear.', r'\.downsample\.': '.shortcut.'},
        ),  # kuangliu/pytorch-cifar
    ],
)
def test_names_of_other_code_bases(name, stage_sizes, renamed, tmp_path, rng):
    model = create_model(name, stage_sizes=stage_sizes)
    shapes = jax.eval_shape(lambda key: init_variables(model, key, (32, 32, 3)), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    tensors = tensors_from_variables(variables, model)
    for pattern, replacement in renamed.items():
        assert any(re.search(pattern, key) for key in tensors)
        tensors = {re.sub(pattern, replacement, key): value for key, value in tensors.items()}
    counter = next(iter(tensors)).rpartition('.')[0] + '.num_batches_tracked'
    write_safetensors(tmp_path / 'weights.safetensors', tensors | {counter: np.array(3)})
    assert_equal(load_weights(tmp_path / 'weights.safetensors', model), variables)


def test_arrays_of_big_transfer(tmp_path):
    name = 'resnetv2_50x1_bit'
    model, tensors = create_model(name), golden_tensors(name)
    np.savez(tmp_path / 'BiT-M-R50x1.npz', **bit_arrays(tensors))
    assert_equal(load_weights(tmp_path / 'BiT-M-R50x1.npz', model), variables_from_tensors(tensors, model))


def test_our_layout_is_restored_bit_by_bit(small, tmp_path):
    model, tensors = small
    variables = variables_from_tensors(tensors, model)
    save_weights(tmp_path / 'weights.safetensors', model, variables, layout='flax')
    stored = read_tensors(tmp_path / 'weights.safetensors')
    assert stored['params/stage1_block1/conv1/kernel'].shape == (3, 3, 32, 32)
    assert stored['batch_stats/stage1_block1/norm1/mean'].shape == (32,)
    assert_equal(load_weights(tmp_path / 'weights.safetensors', model), variables)


class OddlyNamed(BasicBlock):
    """A block with parameters whose names would collide in PyTorch, also with running statistics."""

    def forward(self, x, mode, drop_rate):
        y = super().forward(x, mode, drop_rate)
        for name in ('kernel', 'scale', 'mean'):
            y = y * self.param(name, nn.initializers.ones, y.shape[-1:])[None, None, None]
        mean = self.variable('batch_stats', 'mean', jnp.zeros, y.shape[-1:])
        return y - mean.value[None, None, None]


def test_our_layout_supports_names_that_collide_in_pytorch(tmp_path):
    spec = make_spec(OddlyNamed, (1,), (8,), (1,), 'cifar', 8, num_classes=3)
    model, path = ResNet(spec), tmp_path / 'weights.safetensors'
    variables = random_variables(model)
    assert variables['params']['stage1_block1'].keys() >= {'kernel', 'scale', 'mean'}
    save_weights(path, model, variables, layout='flax')
    assert_equal(load_weights(path, model), variables)
    with pytest.warns(UserWarning, match='the first kernel is adapted from 3 to 1 channels'):
        kernel = load_weights(path, model, in_channels=1)['params']['stem']['conv']['kernel']
    old = variables['params']['stem']['conv']['kernel']
    np.testing.assert_array_equal(kernel, np.asarray(old).sum(2, keepdims=True))
    other = ResNet(with_changes(spec, num_classes=5))
    with pytest.warns(UserWarning, match='a new head for 5 classes replaces that for 3'):
        loaded = load_weights(path, other)
    assert loaded['params'].pop('head')['kernel'].shape == (8, 5)
    assert_equal(loaded, {**variables, 'params': {k: v for k, v in variables['params'].items() if k != 'head'}})
    wider = ResNet(with_changes(spec, stem_width=4))
    with pytest.raises(InputError, match=r'params/stem/conv/kernel \(3, 3, 3, 8\) instead of \(3, 3, 3, 4\)'):
        load_weights(path, wider)
    tensors = read_tensors(path)
    del tensors['params/stage1_block1/scale']
    with pytest.raises(InputError, match=r'1 missing: params/stage1_block1/scale; 1 unexpected: params/extra'):
        variables_from_tensors(tensors | {'params/extra': np.zeros(3, np.float32)}, model)
    with pytest.raises(InputError, match=r'would both be named layer1\.0\.(weight|running_mean) in timm: use'):
        save_weights(path, model, variables)


def test_an_unknown_layout_is_refused(small, tmp_path):
    model, tensors = small
    with pytest.raises(InputError, match="layout='caffe' must be torch or flax"):
        save_weights(tmp_path / 'weights', model, variables_from_tensors(tensors, model), layout='caffe')
