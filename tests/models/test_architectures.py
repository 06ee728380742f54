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
from resnet_jax.models.cost import get_cost
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

# The exact counts are in resnet_jax/models/costs.csv; here are their sources.
# name: (published count as printed, in millions; None: the source has the exact count; source)
SOURCES = {
    'resnet18': (None, TORCHVISION),
    'resnet34': (None, TORCHVISION),
    'resnet50': (None, TORCHVISION),
    'resnet101': (None, TORCHVISION),
    'resnet152': (None, TORCHVISION),
    'resnext50_32x4d': (None, TORCHVISION),
    'resnext101_32x8d': (None, TORCHVISION),
    'resnext101_64x4d': (None, TORCHVISION),
    'wide_resnet50_2': (None, TORCHVISION),
    'wide_resnet101_2': (None, TORCHVISION),
    'ecaresnet101d': (44.57, TIMM),
    'ecaresnet101d_pruned': (24.88, TIMM),
    'ecaresnet200d': (None, TIMM_BUILDS),
    'ecaresnet269d': (102.09, TIMM),
    'ecaresnet26t': (16.01, TIMM),
    'ecaresnet50d': (25.58, TIMM),
    'ecaresnet50d_pruned': (19.94, TIMM),
    'ecaresnet50t': (25.57, TIMM),
    'ecaresnetlight': (30.16, TIMM),
    'ecaresnext26t_32x4d': (None, TIMM_BUILDS),
    'ecaresnext50t_32x4d': (None, TIMM_BUILDS),
    'legacy_senet154': (115.09, TIMM),
    'legacy_seresnet101': (49.33, TIMM),
    'legacy_seresnet152': (66.82, TIMM),
    'legacy_seresnet18': (11.78, TIMM),
    'legacy_seresnet34': (21.96, TIMM),
    'legacy_seresnet50': (28.09, TIMM),
    'legacy_seresnext101_32x4d': (48.96, TIMM),
    'legacy_seresnext26_32x4d': (16.79, TIMM),
    'legacy_seresnext50_32x4d': (27.56, TIMM),
    'res2net101_26w_4s': (45.21, TIMM),
    'res2net101d': (45.23, TIMM),
    'res2net50_14w_8s': (25.06, TIMM),
    'res2net50_26w_4s': (25.7, TIMM),
    'res2net50_26w_6s': (37.05, TIMM),
    'res2net50_26w_8s': (48.4, TIMM),
    'res2net50_48w_2s': (25.29, TIMM),
    'res2net50d': (25.72, TIMM),
    'res2next50': (24.67, TIMM),
    'resnest101e': (48.28, TIMM),
    'resnest14d': (10.61, TIMM),
    'resnest200e': (70.2, TIMM),
    'resnest269e': (110.93, TIMM),
    'resnest26d': (17.07, TIMM),
    'resnest50d': (27.48, TIMM),
    'resnest50d_1s4x24d': (25.68, TIMM),
    'resnest50d_4s2x40d': (30.42, TIMM),
    'resnet101c': (44.57, TIMM),
    'resnet101d': (44.57, TIMM),
    'resnet101s': (44.67, TIMM),
    'resnet10t': (5.44, TIMM),
    'resnet14t': (10.08, TIMM),
    'resnet152c': (60.21, TIMM),
    'resnet152d': (60.21, TIMM),
    'resnet152s': (60.32, TIMM),
    'resnet18d': (11.71, TIMM),
    'resnet200': (None, TIMM_BUILDS),
    'resnet200d': (64.69, TIMM),
    'resnet26': (16.0, TIMM),
    'resnet26d': (16.01, TIMM),
    'resnet26t': (16.01, TIMM),
    'resnet34d': (21.82, TIMM),
    'resnet50_gn': (25.56, TIMM),
    'resnet50c': (25.58, TIMM),
    'resnet50d': (25.58, TIMM),
    'resnet50s': (25.68, TIMM),
    'resnet50t': (None, TIMM_BUILDS),
    'resnetaa101d': (44.57, TIMM),
    'resnetaa34d': (None, TIMM_BUILDS),
    'resnetaa50': (25.56, TIMM),
    'resnetaa50d': (25.58, TIMM),
    'resnetblur101d': (None, TIMM_BUILDS),
    'resnetblur18': (None, TIMM_BUILDS),
    'resnetblur50': (25.56, TIMM),
    'resnetblur50d': (None, TIMM_BUILDS),
    'resnetrs101': (63.62, TIMM),
    'resnetrs152': (86.62, TIMM),
    'resnetrs200': (93.21, TIMM),
    'resnetrs270': (129.86, TIMM),
    'resnetrs350': (163.96, TIMM),
    'resnetrs420': (191.89, TIMM),
    'resnetrs50': (35.69, TIMM),
    'resnetv2_101': (44.54, TIMM),
    'resnetv2_101d': (None, TIMM_BUILDS),
    'resnetv2_101x1_bit': (44.54, TIMM),
    'resnetv2_101x3_bit': (387.93, TIMM),
    'resnetv2_152': (None, TIMM_BUILDS),
    'resnetv2_152d': (None, TIMM_BUILDS),
    'resnetv2_152x2_bit': (236.34, TIMM),
    'resnetv2_152x4_bit': (936.53, TIMM),
    'resnetv2_18': (11.69, TIMM),
    'resnetv2_18d': (11.71, TIMM),
    'resnetv2_34': (21.8, TIMM),
    'resnetv2_34d': (21.82, TIMM),
    'resnetv2_50': (25.55, TIMM),
    'resnetv2_50d': (None, TIMM_BUILDS),
    'resnetv2_50d_evos': (25.59, TIMM),
    'resnetv2_50d_frn': (None, TIMM_BUILDS),
    'resnetv2_50d_gn': (25.57, TIMM),
    'resnetv2_50t': (None, TIMM_BUILDS),
    'resnetv2_50x1_bit': (25.55, TIMM),
    'resnetv2_50x3_bit': (217.32, TIMM),
    'resnext101_32x16d': (194.03, TIMM),
    'resnext101_32x32d': (468.53, TIMM),
    'resnext101_32x48d': (None, TIMM_BUILDS),
    'resnext101_32x4d': (44.18, TIMM),
    'resnext50d_32x4d': (25.05, TIMM),
    'senet154': (115.09, TIMM),
    'seresnet101': (None, TIMM_BUILDS),
    'seresnet152': (None, TIMM_BUILDS),
    'seresnet152d': (66.84, TIMM),
    'seresnet18': (None, TIMM_BUILDS),
    'seresnet200d': (None, TIMM_BUILDS),
    'seresnet269d': (None, TIMM_BUILDS),
    'seresnet34': (None, TIMM_BUILDS),
    'seresnet50': (28.09, TIMM),
    'seresnet50t': (None, TIMM_BUILDS),
    'seresnetaa50d': (None, TIMM_BUILDS),
    'seresnext101_32x4d': (48.96, TIMM),
    'seresnext101_32x8d': (93.57, TIMM),
    'seresnext101_64x4d': (88.23, TIMM),
    'seresnext101d_32x8d': (93.59, TIMM),
    'seresnext26d_32x4d': (16.81, TIMM),
    'seresnext26t_32x4d': (16.81, TIMM),
    'seresnext50_32x4d': (27.56, TIMM),
    'seresnextaa101d_32x8d': (93.59, TIMM),
    'seresnextaa201d_32x8d': (149.39, TIMM),
    'skresnet18': (11.96, TIMM),
    'skresnet34': (22.28, TIMM),
    'skresnet50': (None, TIMM_BUILDS),
    'skresnet50d': (None, TIMM_BUILDS),
    'skresnext50_32x4d': (27.48, TIMM),
    'test_resnet': (0.47, TIMM),
    'plain18': (None, PLAIN_IMAGENET),
    'plain34': (None, PLAIN_IMAGENET),
    'resnet20': (0.27, HE2015),
    'resnet32': (0.46, HE2015),
    'resnet44': (0.66, HE2015),
    'resnet56': (0.85, HE2015),
    'resnet110': (1.7, HE2015),
    'resnet1202': (19.4, HE2015),
    'plain20': (0.27, HE2015_PLAIN),
    'plain32': (0.46, HE2015_PLAIN),
    'plain44': (0.66, HE2015_PLAIN),
    'plain56': (0.85, HE2015_PLAIN),
    'plain110': (1.7, HE2015_PLAIN),
    'preact_resnet20': (0.27, HE2015 + ': the same layers in another order'),
    'preact_resnet56': (0.85, HE2015 + ': the same layers in another order'),
    'preact_resnet110': (1.7, HE2016),
    'preact_resnet164': (1.7, HE2016),
    # Printed as 10.2 M. The released code (KaimingHe/resnet-1k-layers), which projects from 16 to 64 channels in the
    # first block as we do, has 10.33 M; without any projections it would be 10.29 M.
    'preact_resnet1001': (10.3, HE2016 + ' (there 10.2) and KaimingHe/resnet-1k-layers'),
    'wrn16_8': (11.0, WRN),
    'wrn28_10': (36.5, WRN),
    'wrn40_2': (2.2, WRN),
    'wrn40_10': (
        55.8,
        'arXiv:1605.07146, Table 1, at depth 40 and width 10; github.com/szagoruyko/wide-residual-networks',
    ),
    'resnext29_8x64d': (34.4, RESNEXT),
    # Printed as 68.1 M, truncated instead of rounded.
    'resnext29_16x64d': (68.2, RESNEXT + ' (there 68.1)'),
    'resnet18_cifar': (None, SMALL),
    'resnet34_cifar': (None, SMALL),
    'resnet50_cifar': (None, SMALL),
    'resnext50_32x4d_cifar': (None, SMALL),
    'plain10': (None, 'closed form below'),
}


@functools.cache
def variables_of(name: str):
    shapes = variable_shapes(create_model(name))
    return jax.tree.map(lambda x: x.shape, shapes, is_leaf=lambda x: hasattr(x, 'shape'))


def shapes_of(name: str) -> list[tuple[int, ...]]:
    return jax.tree.leaves(variables_of(name)['params'], is_leaf=lambda x: isinstance(x, tuple))


def test_every_name_has_a_count():
    assert sorted(SOURCES) == list_models()


@pytest.mark.parametrize('name', SOURCES)
def test_parameter_count(name):
    (printed, source), exact = SOURCES[name], get_cost(name).parameters
    assert sum(math.prod(shape) for shape in shapes_of(name)) == exact
    if printed is not None:
        digits = 2 if source == TIMM or printed < 1 else 1
        assert abs(exact / 1e6 - printed) <= 0.5001 * 10**-digits


def test_plain10_count_in_closed_form():
    def conv_norm(channels, features):
        return 9 * channels * features + 2 * features

    layers = [(3, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert sum(conv_norm(*layer) for layer in layers) + 512 * 10 + 10 == get_cost('plain10').parameters


def test_counts_that_follow_from_others():
    """Plain networks lack the projections; the CIFAR form has another stem and another head."""
    for depth in (18, 34):
        assert get_cost(f'resnet{depth}').parameters - get_cost(f'plain{depth}').parameters == 173_824
    differences = {'resnext50_32x4d': 2_028_510 + 7_680, 'resnet50': 2_028_510 + 7_680, 'resnet18': 507_870 + 7_680}
    for name, difference in differences.items():
        assert get_cost(name).parameters - get_cost(f'{name}_cifar').parameters == difference


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
