"""The architectures by name: published parameter counts, specifications, custom blocks."""

import functools
import json
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from resnet_jax import (
    InputError,
    ResidualBlock,
    ResNetSpec,
    as_computed,
    create_model,
    finish_block,
    get_spec,
    init_variables,
    list_models,
    make_spec,
)
from resnet_jax.models.architectures import ARCHITECTURES
from resnet_jax.models.flat import flat_settings
from resnet_jax.models.resnet import variable_shapes

TORCHVISION = 'torchvision model documentation, num_params'
TIMM = 'timm results table (results/results-imagenet.csv); exact: the parameters of the network that timm 1.0.31 builds'
TIMM_BUILDS = 'the parameters of the network that timm 1.0.31 builds; it is not in the results table'
HE2015 = 'arXiv:1512.03385, Table 6'
HE2015_PLAIN = 'arXiv:1512.03385, section 3.3: the layers of the residual network; option A adds no parameters'
PLAIN_IMAGENET = 'the ResNet of that depth (torchvision) minus the projections and their normalization'
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
    'wide_resnet50_2': (68_883_240, None, TORCHVISION),
    'wide_resnet101_2': (126_886_696, None, TORCHVISION),
    'ecaresnet101d': (44_568_563, 44.57, TIMM),
    'ecaresnet101d_pruned': (24_876_040, 24.88, TIMM),
    'ecaresnet200d': (64_693_400, None, TIMM_BUILDS),
    'ecaresnet269d': (102_093_077, 102.09, TIMM),
    'ecaresnet26t': (16_011_916, 16.01, TIMM),
    'ecaresnet50d': (25_576_350, 25.58, TIMM),
    'ecaresnet50d_pruned': (19_939_713, 19.94, TIMM),
    'ecaresnet50t': (25_573_814, 25.57, TIMM),
    'ecaresnetlight': (30_162_046, 30.16, TIMM),
    'ecaresnext26t_32x4d': (15_406_220, None, TIMM_BUILDS),
    'ecaresnext50t_32x4d': (25_045_686, None, TIMM_BUILDS),
    'legacy_senet154': (115_088_984, 115.09, TIMM),
    'legacy_seresnet101': (49_326_872, 49.33, TIMM),
    'legacy_seresnet152': (66_821_848, 66.82, TIMM),
    'legacy_seresnet18': (11_778_592, 11.78, TIMM),
    'legacy_seresnet34': (21_958_868, 21.96, TIMM),
    'legacy_seresnet50': (28_088_024, 28.09, TIMM),
    'legacy_seresnext101_32x4d': (48_955_416, 48.96, TIMM),
    'legacy_seresnext26_32x4d': (16_790_280, 16.79, TIMM),
    'legacy_seresnext50_32x4d': (27_559_896, 27.56, TIMM),
    'res2net101_26w_4s': (45_206_688, 45.21, TIMM),
    'res2net101d': (45_225_920, 45.23, TIMM),
    'res2net50_14w_8s': (25_059_816, 25.06, TIMM),
    'res2net50_26w_4s': (25_699_120, 25.7, TIMM),
    'res2net50_26w_6s': (37_051_448, 37.05, TIMM),
    'res2net50_26w_8s': (48_403_776, 48.4, TIMM),
    'res2net50_48w_2s': (25_287_304, 25.29, TIMM),
    'res2net50d': (25_718_352, 25.72, TIMM),
    'res2next50': (24_671_464, 24.67, TIMM),
    'resnest101e': (48_275_016, 48.28, TIMM),
    'resnest14d': (10_611_688, 10.61, TIMM),
    'resnest200e': (70_201_544, 70.2, TIMM),
    'resnest269e': (110_929_480, 110.93, TIMM),
    'resnest26d': (17_069_448, 17.07, TIMM),
    'resnest50d': (27_483_240, 27.48, TIMM),
    'resnest50d_1s4x24d': (25_677_000, 25.68, TIMM),
    'resnest50d_4s2x40d': (30_417_592, 30.42, TIMM),
    'resnet101c': (44_568_392, 44.57, TIMM),
    'resnet101d': (44_568_392, 44.57, TIMM),
    'resnet101s': (44_672_936, 44.67, TIMM),
    'resnet10t': (5_435_488, 5.44, TIMM),
    'resnet14t': (10_081_632, 10.08, TIMM),
    'resnet152c': (60_212_040, 60.21, TIMM),
    'resnet152d': (60_212_040, 60.21, TIMM),
    'resnet152s': (60_316_584, 60.32, TIMM),
    'resnet18d': (11_708_744, 11.71, TIMM),
    'resnet200': (64_673_832, None, TIMM_BUILDS),
    'resnet200d': (64_693_064, 64.69, TIMM),
    'resnet26': (15_995_176, 16.0, TIMM),
    'resnet26d': (16_014_408, 16.01, TIMM),
    'resnet26t': (16_011_872, 16.01, TIMM),
    'resnet34d': (21_816_904, 21.82, TIMM),
    'resnet50_gn': (25_557_032, 25.56, TIMM),
    'resnet50c': (25_576_264, 25.58, TIMM),
    'resnet50d': (25_576_264, 25.58, TIMM),
    'resnet50s': (25_680_808, 25.68, TIMM),
    'resnet50t': (25_573_728, None, TIMM_BUILDS),
    'resnetaa101d': (44_568_392, 44.57, TIMM),
    'resnetaa34d': (21_816_904, None, TIMM_BUILDS),
    'resnetaa50': (25_557_032, 25.56, TIMM),
    'resnetaa50d': (25_576_264, 25.58, TIMM),
    'resnetblur101d': (44_568_392, None, TIMM_BUILDS),
    'resnetblur18': (11_689_512, None, TIMM_BUILDS),
    'resnetblur50': (25_557_032, 25.56, TIMM),
    'resnetblur50d': (25_576_264, None, TIMM_BUILDS),
    'resnetrs101': (63_618_696, 63.62, TIMM),
    'resnetrs152': (86_621_576, 86.62, TIMM),
    'resnetrs200': (93_209_992, 93.21, TIMM),
    'resnetrs270': (129_861_448, 129.86, TIMM),
    'resnetrs350': (163_956_168, 163.96, TIMM),
    'resnetrs420': (191_891_656, 191.89, TIMM),
    'resnetrs50': (35_691_912, 35.69, TIMM),
    'resnetv2_101': (44_541_480, 44.54, TIMM),
    'resnetv2_101d': (44_560_712, None, TIMM_BUILDS),
    'resnetv2_101x1_bit': (44_541_480, 44.54, TIMM),
    'resnetv2_101x3_bit': (387_934_888, 387.93, TIMM),
    'resnetv2_152': (60_185_128, None, TIMM_BUILDS),
    'resnetv2_152d': (60_204_360, None, TIMM_BUILDS),
    'resnetv2_152x2_bit': (236_335_208, 236.34, TIMM),
    'resnetv2_152x4_bit': (936_533_224, 936.53, TIMM),
    'resnetv2_18': (11_687_720, 11.69, TIMM),
    'resnetv2_18d': (11_706_952, 11.71, TIMM),
    'resnetv2_34': (21_795_880, 21.8, TIMM),
    'resnetv2_34d': (21_815_112, 21.82, TIMM),
    'resnetv2_50': (25_549_352, 25.55, TIMM),
    'resnetv2_50d': (25_568_584, None, TIMM_BUILDS),
    'resnetv2_50d_evos': (25_591_368, 25.59, TIMM),
    'resnetv2_50d_frn': (25_591_368, None, TIMM_BUILDS),
    'resnetv2_50d_gn': (25_568_584, 25.57, TIMM),
    'resnetv2_50t': (25_566_048, None, TIMM_BUILDS),
    'resnetv2_50x1_bit': (25_549_352, 25.55, TIMM),
    'resnetv2_50x3_bit': (217_319_080, 217.32, TIMM),
    'resnext101_32x16d': (194_026_792, 194.03, TIMM),
    'resnext101_32x32d': (468_530_472, 468.53, TIMM),
    'resnext101_32x48d': (828_411_176, None, TIMM_BUILDS),
    'resnext101_32x4d': (44_177_704, 44.18, TIMM),
    'resnext50d_32x4d': (25_048_136, 25.05, TIMM),
    'senet154': (115_088_984, 115.09, TIMM),
    'seresnet101': (49_326_872, None, TIMM_BUILDS),
    'seresnet152': (66_821_848, None, TIMM_BUILDS),
    'seresnet152d': (66_841_080, 66.84, TIMM),
    'seresnet18': (11_779_624, None, TIMM_BUILDS),
    'seresnet200d': (71_855_096, None, TIMM_BUILDS),
    'seresnet269d': (113_672_760, None, TIMM_BUILDS),
    'seresnet34': (21_960_416, None, TIMM_BUILDS),
    'seresnet50': (28_088_024, 28.09, TIMM),
    'seresnet50t': (28_104_720, None, TIMM_BUILDS),
    'seresnetaa50d': (28_107_256, None, TIMM_BUILDS),
    'seresnext101_32x4d': (48_955_416, 48.96, TIMM),
    'seresnext101_32x8d': (93_569_048, 93.57, TIMM),
    'seresnext101_64x4d': (88_232_984, 88.23, TIMM),
    'seresnext101d_32x8d': (93_588_280, 93.59, TIMM),
    'seresnext26d_32x4d': (16_809_512, 16.81, TIMM),
    'seresnext26t_32x4d': (16_806_976, 16.81, TIMM),
    'seresnext50_32x4d': (27_559_896, 27.56, TIMM),
    'seresnextaa101d_32x8d': (93_588_280, 93.59, TIMM),
    'seresnextaa201d_32x8d': (149_394_904, 149.39, TIMM),
    'skresnet18': (11_958_056, 11.96, TIMM),
    'skresnet34': (22_282_376, 22.28, TIMM),
    'skresnet50': (25_803_160, None, TIMM_BUILDS),
    'skresnet50d': (25_822_392, None, TIMM_BUILDS),
    'skresnext50_32x4d': (27_479_784, 27.48, TIMM),
    'test_resnet': (469_688, 0.47, TIMM),
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
    # Printed as 68.1 M, truncated instead of rounded.
    'resnext29_16x64d': (68_155_210, 68.2, RESNEXT + ' (there 68.1)'),
    'resnet18_cifar': (11_173_962, None, SMALL),
    'resnet34_cifar': (21_282_122, None, SMALL),
    'resnet50_cifar': (23_520_842, None, SMALL),
    'resnext50_32x4d_cifar': (25_028_904 - 2_028_510 - 7_680, None, SMALL),
    'plain10': (4_729_418, None, 'closed form below'),
}


@functools.cache
def variables_of(name: str):
    shapes = variable_shapes(create_model(name))
    return jax.tree.map(lambda x: x.shape, shapes, is_leaf=lambda x: hasattr(x, 'shape'))


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return jax.tree.leaves(variables_of(name)['params'], is_leaf=lambda x: isinstance(x, tuple))


def test_every_name_has_a_count():
    assert sorted(COUNTS) == list_models()


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_count(name):
    exact, printed, source = COUNTS[name]
    assert sum(math.prod(shape) for shape in shapes_of(name)) == exact
    if printed is not None:
        digits = 2 if source == TIMM or printed < 1 else 1
        assert abs(exact / 1e6 - printed) <= 0.5001 * 10**-digits


def test_plain10_count_in_closed_form():
    def conv_norm(channels, features):
        return 9 * channels * features + 2 * features

    layers = [(3, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert sum(conv_norm(*layer) for layer in layers) + 512 * 10 + 10 == COUNTS['plain10'][0]


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnet56', 'preact_resnet56', 'wrn40_2', 'resnext29_8x64d'])
def test_only_blocks_that_change_the_shape_have_projections(name):
    spec, params = get_spec(name), variables_of(name)['params']
    projected = {block for block, layers in params.items() if 'shortcut' in layers}
    if spec.blocks.shortcut == 'A':
        assert projected == set()
    else:
        first_stage = spec.stages[0]
        expands = first_stage.block == 'bottleneck' or first_stage.width != spec.stem.width
        first = 1 if expands else 2
        assert projected == {f'stage{stage}_block1' for stage in range(first, len(spec.stages) + 1)}


def test_parameter_paths_are_stable(root):
    """Changing a path breaks checkpoints and must be listed in CHANGELOG.md."""
    for name, stored in json.loads((root / 'tests' / 'models' / 'parameter_paths.json').read_text()).items():
        leaves = jax.tree_util.tree_flatten_with_path(variables_of(name), is_leaf=lambda x: isinstance(x, tuple))[0]
        listing = {jax.tree_util.keystr(path, simple=True, separator='/'): list(shape) for path, shape in leaves}
        assert listing == stored, name


def test_specs_can_be_restored_from_json():
    for spec in ARCHITECTURES.values():
        record = json.loads(json.dumps(spec.to_json()))
        assert ResNetSpec.from_json(record) == spec
        assert make_spec(**flat_settings(record)) == spec
    assert len({hash(spec) for spec in ARCHITECTURES.values()}) > 30


def test_list_models_takes_patterns():
    assert list_models('resnext29*') == ['resnext29_16x64d', 'resnext29_8x64d']
    assert list_models('nothing*') == []


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'block': 'fancy'}, "unknown block 'fancy'"),
        ({'shortcut': 'E'}, "unknown shortcut 'E'"),
        ({'stem': 'none'}, "unknown stem 'none'"),
        ({'widths': (16, 32)}, 'one per stage'),
        ({'strides': (1, 0, 2)}, 'positive'),
        ({'num_classes': 0}, 'num_classes=0'),
        ({'cardinality': 32}, "cardinality=32: block 'basic' has no such option"),
        ({'widht': (16, 32, 64)}, "unknown architecture setting 'widht'; nearest known: widths, "),
        ({'stride': 2}, "unknown architecture setting 'stride'; nearest known: strides, "),
        ({'stem_pol': 'max'}, 'nearest known: stem_pool, '),
        ({'radix': 2}, "radix=2: block 'basic' has no such option"),
        ({'widths': 16}, 'widths=16 must be a sequence'),
        ({'widths': (16, '32', 64)}, "widths=.*'32'.* must be 3 positive integers"),
        ({'num_classes': '10'}, "num_classes='10' must be an integer"),
        ({'stem_width': 8.5}, 'stem_width=8.5 must be an integer'),
        ({'zero_init_last': 1}, 'zero_init_last=1 must be True or False'),
        ({'dropout_rate': '0.1'}, "dropout_rate='0.1' must be a number"),
        ({'standardize': True}, 'standardize=True must be a number'),
        ({'implementation': 'cuda'}, "implementation='cuda' must be one of auto, xla"),
        ({'q': 3}, "unknown architecture setting 'q'; known: block, stage_sizes, "),
    ],
)
def test_invalid_settings_raise(overrides, message):
    with pytest.raises(InputError, match=message) as raised:
        create_model('resnet20', **overrides)
    assert '\n' not in str(raised.value)


class Scaled(ResidualBlock):
    """A basic block with a learned factor on its branch."""

    start: float = 0.5

    def forward(self, x, mode, drop_rate):
        h = self.conv('conv1', self.features, 3, self.stride)(x)
        h = self.normalization('norm1', mode, relu=True)(h)
        alpha = self.param('alpha', nn.initializers.constant(self.start), ())
        steps = (lambda h: alpha * h, *self.drop_steps(mode, drop_rate))
        conv = self.conv('conv2', self.features, 3)
        return finish_block(self, mode, h, self.shortcut_of(x, mode), conv=conv, norm='norm2', branch=steps)


def test_a_custom_block_can_replace_a_name(rng):
    """``create_model('resnet20', block=MyBlock)``; with a factor of 1, it computes the same as the basic block."""
    tiny = {'stage_sizes': (1, 3), 'widths': (4, 8), 'strides': (1, 2), 'stem_width': 4, 'implementation': 'xla'}
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    plain, ours = (create_model('resnet20', block=block, **tiny) for block in ('basic', Scaled))
    variables = init_variables(ours, jax.random.key(0), (8, 8, 3))
    alphas = [block['alpha'] for block in variables['params'].values() if 'alpha' in block]
    assert [float(alpha) for alpha in alphas] == [0.5] * 4

    def logits(model, variables):
        return jax.jit(lambda v: model.apply(v, images, train=False))(variables)

    expected = logits(plain, init_variables(plain, jax.random.key(0), (8, 8, 3)))
    half = logits(ours, variables)
    whole = create_model('resnet20', block=Scaled, start=1.0, **tiny)
    whole_variables = init_variables(whole, jax.random.key(0), (8, 8, 3))
    np.testing.assert_allclose(logits(whole, whole_variables), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(half, expected)
    scanned = ours.clone(scan_blocks=True)
    np.testing.assert_allclose(logits(scanned, as_computed(scanned, variables)), half, rtol=1e-4, atol=1e-5)
    dropping = create_model('resnet20', block=('basic', Scaled), drop_path_rate=0.9, **tiny)
    assert dropping.spec.stages[1].block_class is Scaled


@pytest.mark.parametrize('block', [object, nn.Dense, Scaled(8), 3], ids=['object', 'Dense', 'instance', 'number'])
def test_only_blocks_are_accepted(block):
    with pytest.raises(InputError, match='must be a subclass of Block, or one of: plain, basic, ') as raised:
        create_model('resnet20', block=block)
    assert '\n' not in str(raised.value)


def test_an_unknown_name_suggests_similar_names():
    with pytest.raises(InputError, match=r"unknown architecture 'resnet21'.*resnet20"):
        create_model('resnet21')
