"""Names of the ImageNet networks: their letters and numbers match the specification."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import ResNet
from resnet_jax.models.flat import flat_settings
from resnet_jax.models.imagenet import IMAGENET

THREE_CONVOLUTIONS = {'bottleneck', 'preact_bottleneck', 'split_attention', 'selective_kernel_bottleneck', 'scale'}
DEPTH = re.compile(r'(?:net|next|nest|rs|v2_|aa|blur|plain)(\d+)')
# Their names have no depth, or another: 201 instead of 200, and ResNet-RS from 270 on.
OTHER_DEPTHS = {'test_resnet', 'ecaresnetlight', 'seresnextaa201d_32x8d', 'resnetrs270', 'resnetrs350', 'resnetrs420'}


@pytest.mark.parametrize('name', sorted(IMAGENET.keys() - OTHER_DEPTHS))
def test_the_depth_in_a_name_matches_the_network(name):
    """Depth counts the convolutions of the blocks on the longest path, one for the stem, and one for the head."""
    spec = IMAGENET[name]
    depth = 2 + sum(stage.size * (3 if stage.block in THREE_CONVOLUTIONS else 2) for stage in spec.stages)
    depth += 2 if 'senet154' in name else 0  # only this name counts all convolutions of a deep stem
    assert int(DEPTH.search(name)[1]) == depth


@pytest.mark.parametrize(
    ('name', 'fields'),
    [
        ('resnet50', {'stem': 'imagenet', 'stem_width': 64, 'shortcut': 'B'}),
        ('resnet50c', {'stem': 'deep', 'stem_width': 64, 'shortcut': 'B'}),
        ('resnet50d', {'stem': 'deep', 'stem_width': 64, 'shortcut': 'D'}),
        ('resnet50s', {'stem': 'deep', 'stem_width': 128, 'shortcut': 'B'}),
        ('resnet50t', {'stem': 'tiered', 'stem_width': 64, 'shortcut': 'D'}),
        ('resnest101e', {'stem': 'deep', 'stem_width': 128, 'shortcut': 'D'}),
        ('resnext101_32x8d', {'cardinality': 32, 'base_width': 8}),
        ('resnest50d_4s2x40d', {'cardinality': 2, 'base_width': 40}),
        ('res2net50_14w_8s', {'base_width': 14}),
        ('resnetv2_152x4_bit', {'widths': (256, 512, 1024, 2048), 'stem_width': 256, 'norm': 'group'}),
        ('wide_resnet50_2', {'base_width': 128}),
    ],
)
def test_letters_and_numbers_match_the_settings(name, fields):
    settings = flat_settings(IMAGENET[name].to_json())
    assert {field: settings[field] for field in fields} == fields


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('resnest50d_4s2x40d', {'radix': 4, 'pool_first': True}),
        ('res2net50_14w_8s', {'scale': 8}),
        ('senet154', {'shortcut_kernel_size': 3, 'reduce_first': 2}),
        ('legacy_seresnet50', {'stride_in_1x1': True}),
        ('resnetrs50', {'se_ratio': 0.25}),
        ('resnetv2_18', {'clean_first': True}),
        ('skresnext50_32x4d', {'divisor': 32, 'split_input': False}),
    ],
)
def test_options_of_the_blocks(name, options):
    assert dict(IMAGENET[name].blocks.options) == options


def test_all_networks_have_lower_case_names_and_1000_classes():
    assert all(re.fullmatch('[a-z0-9_]+', name) for name in IMAGENET)
    assert {spec.head.num_classes for spec in IMAGENET.values()} == {1000}
    assert {spec.stem.kind for spec in IMAGENET.values()} == {'imagenet', 'deep', 'tiered'}


@pytest.mark.parametrize('name', ['ecaresnet50d_pruned', 'ecaresnet101d_pruned'])
def test_pruned_networks_are_not_wider_than_unpruned_ones(name):
    """Within a stage, all blocks have the same number of output channels."""
    spec, start = IMAGENET[name], 0
    for stage in spec.stages:
        width, blocks = stage.width, spec.blocks.channels[start : start + stage.size]
        start += stage.size
        assert len({last for *_, last in blocks}) == 1
        assert all(first <= width and second <= width and last <= 4 * width for first, second, last in blocks)
    assert start == len(spec.blocks.channels)


@pytest.mark.parametrize('name', ['resnest14d', 'skresnet18', 'resnetblur18', 'legacy_seresnet18', 'test_resnet'])
def test_networks_have_a_stride_of_32(name):
    model = ResNet(IMAGENET[name])
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    run = functools.partial(model.init_with_output, train=False, method=model.features)
    features, _ = jax.eval_shape(run, jax.random.key(0), image)
    sizes = {stage: value.shape[1:3] for stage, value in features.items() if stage != 'pooled'}
    assert sizes == {'stem': (16, 24), 'stage1': (16, 24), 'stage2': (8, 12), 'stage3': (4, 6), 'stage4': (2, 3)}
