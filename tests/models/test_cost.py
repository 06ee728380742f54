"""Counts against published figures and closed forms."""

import pytest

from resnet_jax import ResNet, create_model, get_spec, make_spec
from resnet_jax.models.cost import count_parameters, multiply_adds


@pytest.mark.parametrize(
    ('name', 'published'),
    # torchvision's model documentation, "GFLOPS"; resnet20: He et al. 2015 do not print it, this is the closed form
    [('resnet18', 1.814e9), ('resnext50_32x4d', 4.230e9), ('resnet20', 40.55e6 + 640)],
)
def test_multiply_adds_are_the_published_ones(name, published):
    size = 32 if name == 'resnet20' else 224
    assert multiply_adds(create_model(name), (size, size, 3)) == pytest.approx(published, rel=1e-3)


def test_a_loop_counts_every_turn():
    spec = make_spec('basic', (4, 3), (8, 16), (1, 2), 'cifar', 8, num_classes=5)
    counts = {scan: multiply_adds(ResNet(spec, scan_blocks=scan), (8, 8, 3)) for scan in (False, True)}
    stem, first = 64 * 27 * 8, 4 * 2 * 64 * 72 * 8
    second = 16 * (72 * 16 + 5 * 144 * 16 + 8 * 16)
    assert counts == dict.fromkeys((False, True), stem + first + second + 16 * 5)


def test_parameters_do_not_depend_on_how_blocks_are_compiled():
    spec = get_spec('resnet50')
    assert count_parameters(ResNet(spec, scan_blocks=True)) == count_parameters(ResNet(spec)) == 25_557_032
    assert count_parameters(ResNet(spec, scan_blocks=True), in_channels=1) == 25_557_032 - 2 * 49 * 64
