"""The compiled CPU program of a training step contains no slow operations."""

import re

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import (
    ResNet,
    TrainConfig,
    create_train_state,
    get_spec,
    init_variables,
    make_spec,
    train_step,
    with_changes,
)
from resnet_jax.training.config import optimizer_of

SPECS = {
    'basic': make_spec('basic', (1, 1), (16, 32), (1, 2), 'cifar', 16, 'A', num_classes=4),
    'bottleneck': make_spec('bottleneck', (1, 1), (16, 32), (1, 2), stem_width=16, num_classes=4),
    'grouped': make_spec('bottleneck', (1, 1), (16, 32), (1, 2), stem_width=16, cardinality=8, base_width=8),
    'preact': make_spec('preact_basic', (1, 1), (16, 32), (1, 2), 'cifar', 16, num_classes=4),
}


def compiled_step(spec, size=None, **options):
    size = size or (16 if spec.stem.kind == 'cifar' else 32)
    model, optimizer = ResNet(spec, **options), optimizer_of(TrainConfig(), 10)

    def create(key):
        return create_train_state(init_variables(model, key, (size, size, 3)), optimizer)

    state = jax.eval_shape(create, jax.random.key(0))
    batch = {
        'image': jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32),
        'label': jax.ShapeDtypeStruct((4,), jnp.int32),
    }
    step = jax.jit(lambda state, batch: train_step(state, batch, model=model, optimizer=optimizer))
    return step.lower(state, batch).compile().as_text()


def slow_operations(text):
    """Finds dilated inputs, grouped windows, layouts for which XLA has no fast kernel, and scatters of pools."""
    convolutions = re.findall(r'.*\bconvolution\(.*', text)
    return [
        line.strip()[:160]
        for line in convolutions
        if 'lhs_dilate' in line
        or 'feature_group_count' in line
        or 'batch_group_count' in line
        or 'dim_labels=b01f_01io->b01f' not in line
    ] + re.findall(r'.*select-and-scatter\(.*', text)


@pytest.mark.parametrize('name', SPECS)
def test_training_step(name):
    assert slow_operations(compiled_step(SPECS[name])) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'size', 'overrides'),
    [
        ('resnet20', 32, {}),
        ('wrn16_8', 32, {}),
        ('preact_resnet110', 32, {}),
        ('resnet18', 128, {}),
        ('resnet50', 128, {}),
        ('resnet50', 128, {'cardinality': 64, 'base_width': 1}),  # as many groups as channels in the first stage
        ('resnext50_32x4d', 128, {}),
    ],
)
def test_training_step_of_whole_networks(name, size, overrides):
    assert slow_operations(compiled_step(get_spec(name, **overrides), size)) == []


@pytest.mark.parametrize('name', ['basic', pytest.param('grouped', marks=pytest.mark.slow)])
def test_training_step_with_scanned_blocks(name):
    """XLA chooses fast layouts for convolutions only in a program's main computation, not in loops."""
    deep = with_changes(SPECS[name], stage_sizes=(1, 3))
    text = compiled_step(deep, scan_blocks=True)
    assert text.count(' while(') >= 2
    assert slow_operations(text) == []


def test_plain_xla_has_slow_operations():
    """The tests above would find them."""
    one_block = make_spec('basic', (1,), (16,), (2,), 'cifar', 16, num_classes=4)
    assert slow_operations(compiled_step(one_block, implementation='xla'))
