"""Exported networks predict the same as the original."""

import dataclasses
import importlib.util
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError, Predictor, Preprocessing, ResNet, init_variables, make_spec
from resnet_jax.errors import StorageError
from resnet_jax.inference.export import export, largest_difference
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.plan import objective_task

NAMES = {'multiclass': ('a', 'b', 'c'), 'binary': ('no', 'yes'), 'multilabel': ('x', 'y'), 'regression': ('w', 'h')}


def predictor_of(task, loss=None):
    """An untrained network with a large random head, so that predictions differ."""
    config = TrainConfig().replace(task=task, loss=loss)
    outputs = 1 if task == 'binary' else len(NAMES[task])
    model = ResNet(make_spec('basic', (1,), (8,), (1,), 'cifar', 8, 'A', num_classes=outputs))
    variables = jax.device_get(init_variables(model, jax.random.key(0), (8, 8, 3)))
    variables['params']['head']['kernel'] = np.random.default_rng(0).normal(size=(8, outputs)).astype(np.float32)
    units = {'mean': (5.0, 100.0), 'std': (2.0, 30.0)} if task == 'regression' else {}
    return Predictor(
        model=model,
        variables=variables,
        arch='tiny',
        preprocessing=Preprocessing(8, 0.9),
        task=objective_task(config, units),
        class_names=NAMES[task],
        image_shape=(8, 8, 3),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.2),
    )


@pytest.mark.parametrize(('task', 'loss'), [*((task, None) for task in NAMES), ('multiclass', 'sigmoid_cross_entropy')])
def test_an_exported_network_predicts_the_same_for_any_batch_size(task, loss, tmp_path):
    predictor, path = predictor_of(task, loss), tmp_path / 'network'
    record = export(predictor, path)
    assert largest_difference(predictor, path, (1, 5)) < 1e-5
    assert record == json.loads((tmp_path / 'network.json').read_text())
    assert record['input'] == {'dtype': 'uint8', 'shape': ['n', 8, 8, 3]}
    assert (record['task'], record['class_names']) == (task, list(NAMES[task]))
    assert record['preprocessing']['crop_pct'] == 0.9
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    found = np.asarray(jax.export.deserialize(bytearray(path.read_bytes())).call(images))
    assert list(found.shape) == [4, record['output']['shape'][1]]
    assert found.std() > 1e-3


@pytest.mark.parametrize('task', ['multiclass', 'regression'])
@pytest.mark.filterwarnings('ignore')
def test_onnx_export(task, tmp_path):
    for name in ('jax2onnx', 'onnxruntime'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    predictor, path = predictor_of(task), tmp_path / 'network.onnx'
    record = export(predictor, path)
    assert largest_difference(predictor, path, (1, 5)) < 1e-5
    assert 'platforms' not in record


@pytest.mark.skipif(importlib.util.find_spec('jax2onnx') is not None, reason='jax2onnx is installed')
def test_without_jax2onnx_the_error_says_what_to_install(tmp_path):
    with pytest.raises(InputError, match='pip install jax2onnx'):
        export(predictor_of('multiclass'), tmp_path / 'network.onnx')


def test_export_is_always_in_float32(tmp_path):
    predictor = predictor_of('multiclass')
    half = dataclasses.replace(predictor, model=dataclasses.replace(predictor.model, dtype=jnp.bfloat16))
    export(half, tmp_path / 'network')
    assert largest_difference(half, tmp_path / 'network') < 1e-6
    assert largest_difference(predictor, tmp_path / 'network') < 1e-6


def test_any_class_names_are_described(tmp_path):
    names = (os.fsdecode(b'caf\xe9'), '$0_$9\n', 'ş')
    export(dataclasses.replace(predictor_of('multiclass'), class_names=names), tmp_path / 'network')
    assert tuple(json.loads((tmp_path / 'network.json').read_text())['class_names']) == names


def test_export_for_other_platforms(tmp_path):
    export(predictor_of('multiclass'), tmp_path / 'network', ('cuda', 'tpu'))
    assert jax.export.deserialize(bytearray((tmp_path / 'network').read_bytes())).platforms == ('cuda', 'tpu')
    with pytest.raises(InputError, match="'abacus' must be one of cpu, cuda, rocm, tpu"):
        export(predictor_of('multiclass'), tmp_path / 'other', ('cpu', 'abacus'))
    assert not (tmp_path / 'other').exists()


def test_an_unwritable_path_raises(tmp_path):
    with pytest.raises(StorageError, match='No such file or directory'):
        export(predictor_of('multiclass'), tmp_path / 'no' / 'network')
