"""Every name against its published parameter count."""

import dataclasses
import functools
import json
import math

import jax
import pytest

from resnet_jax import InputError, create_model, get_spec, init_variables, list_models
from resnet_jax.models.architectures import ARCHITECTURES

TORCHVISION = 'torchvision model documentation, num_params'
HE2015 = 'arXiv:1512.03385, Table 6'
HE2015_PLAIN = "arXiv:1512.03385, section 3.3: a plain net has its residual net's layers; option A adds no parameters"
PLAIN_IMAGENET = 'the ResNet of that depth (torchvision) less the projections and their normalization'
HE2016 = 'arXiv:1603.05027, Table 4'
WRN = 'arXiv:1605.07146, Tables 4 and 5'
RESNEXT = 'arXiv:1611.05431, Table 7'
SMALL = "torchvision's ImageNet form with a 3x3 stem and ten classes; kuangliu/pytorch-cifar builds the same"

# name: (exact count, published count as printed, in millions or None, source)
COUNTS = {
    'resnet18': (11_689_512, None, TORCHVISION),
    'resnet34': (21_797_672, None, TORCHVISION),
    'resnet50': (25_557_032, None, TORCHVISION),
    'resnet101': (44_549_160, None, TORCHVISION),
    'resnet152': (60_192_808, None, TORCHVISION),
    'resnext50_32x4d': (25_028_904, None, TORCHVISION),
    'resnext101_32x8d': (88_791_336, None, TORCHVISION),
    'resnext101_64x4d': (83_455_272, None, TORCHVISION),
    'resnext101_32x4d': (44_177_704, 44.18, 'timm results table'),
    'wide_resnet50_2': (68_883_240, None, TORCHVISION),
    'wide_resnet101_2': (126_886_696, None, TORCHVISION),
    'plain18': (11_689_512 - 173_824, None, PLAIN_IMAGENET),
    'plain34': (21_797_672 - 173_824, None, PLAIN_IMAGENET),
    'resnet20': (269_722, 0.27, HE2015),
    'resnet32': (464_154, 0.46, HE2015),
    'resnet44': (658_586, 0.66, HE2015),
    'resnet56': (853_018, 0.85, HE2015),
    'resnet110': (1_727_962, 1.7, HE2015),
    'resnet1202': (19_421_274, 19.4, HE2015),
    'plain20': (269_722, 0.27, HE2015_PLAIN),
    'plain32': (464_154, 0.46, HE2015_PLAIN),
    'plain44': (658_586, 0.66, HE2015_PLAIN),
    'plain56': (853_018, 0.85, HE2015_PLAIN),
    'plain110': (1_727_962, 1.7, HE2015_PLAIN),
    'preact_resnet20': (269_722, 0.27, HE2015 + ': the same layers in another order'),
    'preact_resnet56': (853_018, 0.85, HE2015 + ': the same layers in another order'),
    'preact_resnet110': (1_727_962, 1.7, HE2016),
    'preact_resnet164': (1_703_258, 1.7, HE2016),
    # Printed as 10.2 M. The released code (KaimingHe/resnet-1k-layers), which projects from 16 to 64 channels in the
    # first block as we do, has 10.33 M; without any projections it would be 10.29 M.
    'preact_resnet1001': (10_327_706, 10.3, HE2016 + ' (there 10.2) and KaimingHe/resnet-1k-layers'),
    'wrn16_8': (10_961_370, 11.0, WRN),
    'wrn28_10': (36_479_194, 36.5, WRN),
    'wrn40_2': (2_243_546, 2.2, WRN),
    'wrn40_10': (
        55_841_754,
        55.8,
        'arXiv:1605.07146, Table 1, at depth 40 and width 10; github.com/szagoruyko/wide-residual-networks',
    ),
    'resnext29_8x64d': (34_426_698, 34.4, RESNEXT),
    # Printed as 68.1 M, cut off rather than rounded.
    'resnext29_16x64d': (68_155_210, 68.2, RESNEXT + ' (there 68.1)'),
    'resnet18_cifar': (11_173_962, None, SMALL),
    'resnet34_cifar': (21_282_122, None, SMALL),
    'resnet50_cifar': (23_520_842, None, SMALL),
    'resnext50_32x4d_cifar': (25_028_904 - 2_028_510 - 7_680, None, SMALL),
    'plain10': (4_729_418, None, 'closed form below'),
}


@functools.cache
def variables_of(name: str):
    model = create_model(name)
    shapes = jax.eval_shape(lambda key: init_variables(model, key, (32, 32, 3)), jax.random.key(0))
    return jax.tree.map(lambda x: x.shape, shapes, is_leaf=lambda x: hasattr(x, 'shape'))


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return jax.tree.leaves(variables_of(name)['params'], is_leaf=lambda x: isinstance(x, tuple))


def test_every_name_has_a_count():
    assert sorted(COUNTS) == list_models()


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_count(name):
    exact, printed, _ = COUNTS[name]
    assert sum(math.prod(shape) for shape in shapes_of(name)) == exact
    if printed is not None:
        assert abs(exact / 1e6 - printed) <= 0.05 if printed > 1 else abs(exact / 1e6 - printed) <= 0.005


def test_plain10_count_in_closed_form():
    def conv_norm(channels, features):
        return 9 * channels * features + 2 * features

    layers = [(3, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert sum(conv_norm(*layer) for layer in layers) + 512 * 10 + 10 == COUNTS['plain10'][0]


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnet56', 'preact_resnet56', 'wrn40_2', 'resnext29_8x64d'])
def test_projections_stand_only_where_the_shape_changes(name):
    spec, params = get_spec(name), variables_of(name)['params']
    projected = {block for block, layers in params.items() if 'shortcut' in layers}
    if spec.shortcut == 'A':
        assert projected == set()
    else:
        expands = spec.block == 'bottleneck' or spec.widths[0] != spec.stem_width
        first = 1 if expands else 2
        assert projected == {f'stage{stage}_block1' for stage in range(first, len(spec.widths) + 1)}


def test_parameter_paths_are_the_stored_ones(root):
    """Paths are public: whoever changes them breaks checkpoints, and must say so in CHANGELOG.md."""
    for name, stored in json.loads((root / 'tests' / 'models' / 'parameter_paths.json').read_text()).items():
        leaves = jax.tree_util.tree_flatten_with_path(variables_of(name), is_leaf=lambda x: isinstance(x, tuple))[0]
        listing = {jax.tree_util.keystr(path, simple=True, separator='/'): list(shape) for path, shape in leaves}
        assert listing == stored, name


def test_specs_survive_json():
    for spec in ARCHITECTURES.values():
        assert type(spec)(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    assert len({hash(spec) for spec in ARCHITECTURES.values()}) > 30


def test_list_models_takes_patterns():
    assert list_models('resnext101*') == ['resnext101_32x4d', 'resnext101_32x8d', 'resnext101_64x4d']
    assert list_models('nothing*') == []


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'block': 'fancy'}, "unknown block 'fancy'"),
        ({'shortcut': 'E'}, "unknown shortcut 'E'"),
        ({'stem': 'none'}, "unknown stem 'none'"),
        ({'widths': (16, 32)}, 'one a stage'),
        ({'strides': (1, 0, 2)}, 'positive'),
        ({'num_classes': 0}, 'num_classes=0'),
        ({'cardinality': 32}, "block 'basic' has no such option"),
        ({'depth': 3}, "no field 'depth'"),
    ],
)
def test_a_wrong_field_is_named(overrides, message):
    with pytest.raises(InputError, match=message):
        create_model('resnet20', **overrides)


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(InputError, match=r"unknown architecture 'resnet21'.*resnet20"):
        create_model('resnet21')
