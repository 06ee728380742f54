"""Flat names: building, changing and reading a specification."""

import pytest

from resnet_jax import (
    BlockSpec,
    HeadSpec,
    InputError,
    ResidualBlock,
    ResNetSpec,
    StageSpec,
    StemSpec,
    get_spec,
    make_spec,
    with_changes,
)
from resnet_jax.models.flat import FLAT_NAMES, flat_settings

NESTED = ResNetSpec(
    (StageSpec('bottleneck', 2, 8), StageSpec('bottleneck', 1, 16, 2)),
    StemSpec('deep', 16, 'conv'),
    BlockSpec('D', 2, 32, 'se', True, 0.1, 0.2, ((1, 2, 32),) * 3, {'se_ratio': 0.25, 'reduce_first': 2}),
    HeadSpec(7, 0.3),
    antialias='blur',
    standardize=1e-8,
    output_stride=8,
)
FLAT = {
    'block': 'bottleneck',
    'stage_sizes': (2, 1),
    'widths': (8, 16),
    'strides': (1, 2),
    'stem': 'deep',
    'stem_width': 16,
    'stem_pool': 'conv',
    'shortcut': 'D',
    'cardinality': 2,
    'base_width': 32,
    'attention': 'se',
    'zero_init_last': True,
    'drop_path_rate': 0.1,
    'drop_block_rate': 0.2,
    'channels': ((1, 2, 32),) * 3,
    'num_classes': 7,
    'dropout_rate': 0.3,
    'norm': 'batch',
    'antialias': 'blur',
    'standardize': 1e-8,
    'output_stride': 8,
}
BLOCK_OPTIONS = {'se_ratio': 0.25, 'reduce_first': 2}


def test_flat_names_are_the_fields_of_the_groups():
    assert make_spec(**FLAT, **BLOCK_OPTIONS) == NESTED
    assert sorted(FLAT_NAMES) == sorted(FLAT)
    assert make_spec(**flat_settings(NESTED.to_json())) == NESTED
    assert flat_settings(NESTED.to_json()).keys() == FLAT.keys() | BLOCK_OPTIONS.keys()


@pytest.mark.parametrize('name', FLAT)
def test_each_name_can_be_changed_alone(name):
    """From another specification to the value in ``NESTED``, with no other change."""
    plain = make_spec('basic', (1, 2), (4, 8), (2, 1), 'imagenet', 8, 'B', num_classes=3)
    changed = {'block': 'bottleneck'} | ({'stem': 'deep'} if name == 'stem_pool' else {}) | {name: FLAT[name]}
    if name == 'channels':
        changed |= {'stage_sizes': (1, 2)}
    expected = flat_settings(plain.to_json()) | changed
    assert with_changes(plain, **changed) == make_spec(**expected)
    assert (with_changes(plain, **changed) == with_changes(plain, block='bottleneck')) == (name in ('block', 'norm'))


def test_changing_the_number_of_stages():
    """A single block is used for any number of stages; the other settings must have one value per stage."""
    spec = make_spec('basic', (1, 2), (4, 8), (1, 2))
    assert with_changes(spec, stage_sizes=(1, 1, 1), widths=(4, 8, 16), strides=(1, 2, 2)).stages == (
        StageSpec('basic', 1, 4),
        StageSpec('basic', 1, 8, 2),
        StageSpec('basic', 1, 16, 2),
    )
    with pytest.raises(InputError, match=r'widths=\(4, 8\) must be 3 positive integers, one per stage'):
        with_changes(spec, stage_sizes=(1, 1, 1))
    mixed = with_changes(spec, block=('basic', 'bottleneck'))
    assert [stage.block for stage in with_changes(mixed, widths=(8, 16)).stages] == ['basic', 'bottleneck']
    assert flat_settings(mixed.to_json())['block'] == ('basic', 'bottleneck')
    with pytest.raises(InputError, match=r"block=\('basic', 'bottleneck'\) must be one block, or a sequence of 1"):
        with_changes(mixed, stage_sizes=(1,), widths=(8,), strides=(1,))


def test_options_of_a_block():
    """``get_spec`` accepts options that are specific to the block, and keeps those that it does not replace."""
    spec = get_spec('senet154', reduce_first=4, se_ratio=0.5, norm='group')
    assert dict(spec.blocks.options) == {'shortcut_kernel_size': 3, 'reduce_first': 4, 'se_ratio': 0.5}
    assert spec.norm == 'group'
    with pytest.raises(InputError, match="radix=2: block 'bottleneck' has no such option"):
        get_spec('senet154', radix=2)


class Gained(ResidualBlock):
    gain: float = 0.5


def test_options_of_a_custom_block():
    assert dict(get_spec('resnet20', block=Gained, gain=0.1).blocks.options) == {'gain': 0.1}
    with pytest.raises(InputError, match="unknown architecture setting 'gian'; nearest known: gain"):
        get_spec('resnet20', block=Gained, gian=0.1)
    with pytest.raises(InputError, match="unknown architecture setting 'gain'"):
        get_spec('resnet20', gain=0.1)
    with pytest.raises(InputError, match="gain='big' must be a number"):
        get_spec('resnet20', block=Gained, gain='big')
    with pytest.raises(InputError, match="unknown architecture setting 'first_dilation'"):
        get_spec('resnet20', first_dilation=2)  # set by the network
