"""Parameter counts and multiply-adds against published numbers and closed forms."""

import pytest

from resnet_jax import (
    InputError,
    ResNet,
    create_model,
    get_checkpoint,
    get_spec,
    list_checkpoints,
    list_models,
    make_spec,
)
from resnet_jax.models.cost import count_parameters, get_cost, multiply_adds


@pytest.mark.parametrize(
    ('name', 'published'),
    # torchvision's model documentation, "GFLOPS"; resnet20: closed form, since He et al. 2015 do not report it
    [('resnet18', 1.814e9), ('resnext50_32x4d', 4.230e9), ('resnet20', 40.55e6 + 640)],
)
def test_multiply_adds_equal_published_numbers(name, published):
    size = 32 if name == 'resnet20' else 224
    assert multiply_adds(create_model(name), (size, size, 3)) == pytest.approx(published, rel=1e-3)


def test_every_iteration_of_a_loop_is_counted():
    spec = make_spec('basic', (4, 3), (8, 16), (1, 2), 'cifar', 8, num_classes=5)
    counts = {scan: multiply_adds(ResNet(spec, scan_blocks=scan), (8, 8, 3)) for scan in (False, True)}
    stem, first = 64 * 27 * 8, 4 * 2 * 64 * 72 * 8
    second = 16 * (72 * 16 + 5 * 144 * 16 + 8 * 16)
    assert counts == dict.fromkeys((False, True), stem + first + second + 16 * 5)


def test_scanned_blocks_have_the_same_parameter_count():
    spec = get_spec('resnet50')
    assert count_parameters(ResNet(spec, scan_blocks=True)) == count_parameters(ResNet(spec)) == 25_557_032
    assert count_parameters(ResNet(spec, scan_blocks=True), in_channels=1) == 25_557_032 - 2 * 49 * 64


# Of every kind of block and stem; the other architectures are slow tests, because tracing all of them takes minutes.
SAMPLE = {'resnet20', 'resnet18', 'resnet10t', 'test_resnet', 'skresnet18', 'resnest14d', 'preact_resnet20', 'plain10'}


@pytest.mark.parametrize(
    'name', [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_the_table_of_costs_is_what_the_networks_cost(name):
    """Parameter counts are compared in ``test_architectures.py``."""
    spec, cost = get_spec(name), get_cost(name)
    model = ResNet(spec, scan_blocks=not spec.blocks.channels)  # the same cost, computed faster
    assert cost.multiply_adds == multiply_adds(model, (cost.image_size, cost.image_size, 3))


def test_the_table_of_costs_has_every_name_at_its_published_size():
    for name in list_models():
        size = 32 if get_spec(name).stem.kind == 'cifar' else 224
        published = [one for one in map(get_checkpoint, list_checkpoints(f'{name}.*')) if one.top1 is not None]
        if published:
            size = max(published, key=lambda one: max(one.top1, one.top1_test or 0)).preprocessing.size
        assert get_cost(name).image_size == size, name
    with pytest.raises(InputError, match=r"unknown architecture 'resnet51'; nearest known: "):
        get_cost('resnet51')
