"""Specifications: invalid values, the options of blocks, conversion to JSON."""

import json

import pytest

from resnet_jax import (
    BasicBlock,
    BlockSpec,
    HeadSpec,
    InputError,
    ResidualBlock,
    ResNetSpec,
    StageSpec,
    StemSpec,
    make_spec,
)

SMALL = {
    'stage_sizes': (1, 2),
    'widths': (8, 16),
    'strides': (1, 2),
    'stem': 'cifar',
    'stem_width': 8,
    'num_classes': 5,
}


@pytest.mark.parametrize(
    ('strides', 'stem', 'output_stride', 'expected'),
    [
        ((1, 2, 2, 2), 'imagenet', None, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        ((1, 2, 2, 2), 'imagenet', 32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        ((1, 2, 2, 2), 'imagenet', 16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1)]),
        ((1, 2, 2, 2), 'imagenet', 8, [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 2)]),
        ((1, 2, 2, 2), 'cifar', 8, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
    ],
)
def test_strides_become_dilations(strides, stem, output_stride, expected):
    """The first convolution of a stage whose stride became dilation still has the previous dilation."""
    spec = make_spec('basic', (2,) * 4, strides=strides, stem=stem, output_stride=output_stride)
    assert spec.strides_and_dilations() == expected


def test_drop_block_is_in_the_last_two_of_four_stages():
    """As in timm: 5x5 squares at a quarter of the rate, then 3x3 squares."""
    spec = make_spec('basic', (1,) * 4, drop_block_rate=0.1)
    assert [spec.block_options(stage)['drop_block'] for stage in (1, 2, 3, 4)] == [
        None,
        None,
        (0.1, 5, 0.25),
        (0.1, 3, 1.0),
    ]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'stem': 'wide'}, "unknown stem 'wide'; known: imagenet, deep, tiered, cifar"),
        ({'stem_pool': 'mean'}, "unknown stem_pool 'mean'; known: max, "),
        ({'attention': 'cbam'}, "unknown attention 'cbam'; known: none, se, eca"),
        ({'antialias': 'sinc'}, "unknown antialias 'sinc'; known: none, blur, average"),
        ({'norm': 'layer'}, "unknown norm 'layer'; known: batch, group, evo, filter_response"),
        ({'block': ('basic', 'fancy')}, "unknown block 'fancy'; known: plain, basic, "),
        ({'block': ('basic',)}, r"block=\('basic',\) must be one block, or a sequence of 2, one per stage"),
        ({'block': ('basic', 'preact_basic')}, 'blocks with and without pre-activation cannot be combined'),
        ({'drop_path_rate': 1.0}, r'drop_path_rate=1.0 must be at least 0 and less than 1'),
        ({'drop_block_rate': -0.1}, r'drop_block_rate=-0.1 must be at least 0'),
        ({'dropout_rate': float('nan')}, r'dropout_rate=nan must be at least 0'),
        (
            {'block': 'plain', 'drop_path_rate': 0.1},
            "drop_path_rate=0.1 is not supported by block 'plain', which has no",
        ),
        ({'block': 'plain', 'drop_block_rate': 0.1}, "drop_block_rate=0.1: block 'plain' has no such option"),
        ({'block': 'preact_basic', 'attention': 'se'}, "attention='se': block 'preact_basic' has no such option"),
        ({'block': 'legacy_se_basic', 'zero_init_last': True}, 'zero_init_last=True: block .* has no such option'),
        ({'block': 'scale', 'antialias': 'blur'}, "antialias='blur': block 'scale' has no such option"),
        ({'output_stride': 12}, 'output_stride=12 must be 8, 16 or 32'),
        ({'stem_pool': 'conv'}, "stem_pool='conv': stem 'cifar' has no pool"),
        (
            {'stem': 'imagenet', 'stem_pool': 'max_zero_padded', 'antialias': 'blur'},
            "antialias='blur' is not supported with stem_pool='max_zero_padded'; use 'max' or 'conv'",
        ),
        ({'block': 'bottleneck', 'channels': ((1, 1, 4),)}, r'channels must have 3 entries \(one per block\), found 1'),
        ({'block': 'bottleneck', 'channels': ((1, 4),) * 3}, r'channels: \(1, 4\) must be 3 positive integers'),
        ({'channels': ((1, 1, 4),) * 3}, "block 'basic' has no such option"),
        ({'radix': 2}, "radix=2: block 'basic' has no such option"),
        ({'block': ('basic', 'legacy_se_basic'), 'radix': 2}, "block 'basic', 'legacy_se_basic' has no such option"),
        ({'block': 'split_attention', 'radix': 2.5}, 'radix=2.5 must be an integer'),
        ({'block': 'split_attention', 'pool_first': 1}, 'pool_first=1 must be True or False'),
        ({'se_ratio': '1/4'}, "se_ratio='1/4' must be a number"),
        ({'block': int}, r"block=<class 'int'> must be a subclass of Block, or one of: plain, basic, "),
        ({'block': 3}, 'block=3 must be a subclass of Block, or one of: plain, basic, '),
        ({'block': BasicBlock(8)}, 'must be a subclass of Block, or one of: plain, basic, '),
    ],
)
def test_invalid_specifications_raise(fields, message):
    with pytest.raises(InputError, match=message) as raised:
        make_spec(**{'block': 'basic'} | SMALL | fields)
    assert '\n' not in str(raised.value)


def test_specifications_with_options_and_channels_can_be_restored_from_json():
    """JSON converts tuples to lists; the restored specification must be equal and have the same hash."""
    spec = make_spec(
        ('bottleneck', 'basic'),
        **SMALL,
        se_ratio=0.25,
        reduce_first=2,
        attention='se',
        channels=((2, 3, 12),) * 3,
        output_stride=8,
        standardize=1e-8,
        drop_path_rate=0.1,
    )
    copy = ResNetSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert copy == spec
    assert hash(copy) == hash(spec)
    assert spec.blocks.options == (('reduce_first', 2), ('se_ratio', 0.25))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: StemSpec(width=0), 'stem_width=0 must be at least 1'),
        (lambda: StageSpec('basic', 0, 8), 'size=0 must be at least 1'),
        (lambda: StageSpec('basic', 1, 8, True), 'stride=True must be an integer'),
        (lambda: HeadSpec('10'), "num_classes='10' must be an integer"),
        (lambda: ResNetSpec(()), r'stages must not be empty'),
        (
            lambda: ResNetSpec(STAGES, blocks=BlockSpec(options={'stride': 2})),
            "stride=2: block 'basic' has no such option",
        ),
        (
            lambda: ResNetSpec(STAGES, blocks=BlockSpec(options={'attention': 'se'})),
            "attention='se': block 'basic' has no",
        ),
    ],
)
def test_invalid_groups_raise(make, message):
    with pytest.raises(InputError, match=message):
        make()


STAGES = (StageSpec('basic', 1, 8),)


class Custom(ResidualBlock):
    """A custom block with a further field."""

    gain: float = 0.5


class Other(ResidualBlock):
    gain: float = 0.5


CUSTOM = f'{__name__}:Custom'


def test_the_class_of_a_known_block_equals_its_name():
    assert StageSpec(BasicBlock, 1, 8) == StageSpec('basic', 1, 8)


def test_a_custom_block_is_recorded_by_its_qualified_name():
    spec = make_spec(('basic', Custom), **SMALL, gain=0.25)
    record = json.loads(json.dumps(spec.to_json()))
    assert [stage['block'] for stage in record['stages']] == ['basic', CUSTOM]
    assert record['blocks']['options'] == {'gain': 0.25}
    assert ResNetSpec.from_json(record, block=Custom) == spec
    assert ResNetSpec.from_json(record, block=('basic', Custom)) == spec
    assert hash(ResNetSpec.from_json(record, block=[Custom])) == hash(spec)


@pytest.mark.parametrize('given', [None, Other, (Custom, Other), 'bottleneck'], ids=str)
def test_a_missing_or_different_custom_block_raises(given):
    """The one-line error names the recorded block and the one passed."""
    record = make_spec(Custom, **SMALL).to_json()
    with pytest.raises(InputError) as raised:
        ResNetSpec.from_json(record, block=given)
    message = str(raised.value)
    assert f'block: the record has {CUSTOM}, found' in message
    assert '\n' not in message
    found = {None: 'found none;', Other: f'found {__name__}:Other;', 'bottleneck': 'found bottleneck;'}
    assert found.get(given, f'found {CUSTOM}, {__name__}:Other;') in message


def test_a_block_that_was_not_recorded_raises():
    record = make_spec('basic', **SMALL).to_json()
    assert ResNetSpec.from_json(record, block=BasicBlock) == ResNetSpec.from_json(record)
    with pytest.raises(InputError, match=f'block: the record has basic, found {CUSTOM}'):
        ResNetSpec.from_json(record, block=Custom)


@pytest.mark.parametrize(
    'record',
    [
        {'block': 'basic', 'stage_sizes': [1, 1], 'num_classes': 10},  # the format before groups were introduced
        make_spec('basic', **SMALL).to_json() | {'depth': 3},
        make_spec('basic', **SMALL).to_json() | {'stem': {'kind': 'cifar', 'depth': 3}},
        make_spec('basic', **SMALL).to_json() | {'head': None},
        [],
        None,
    ],
    ids=str,
)
def test_a_record_in_another_format_raises(record):
    with pytest.raises(InputError, match='the record is not a specification of this version: ') as raised:
        ResNetSpec.from_json(record)
    assert '\n' not in str(raised.value)


def test_an_option_that_json_does_not_support_raises():
    with pytest.raises(InputError, match=r'options=.*cannot be saved as JSON: .*complex'):
        make_spec(AnyOption, **SMALL, thing=1j).to_json()


class AnyOption(ResidualBlock):
    thing: object = None
