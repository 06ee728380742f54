"""The ImageNet networks, with the names of torchvision and timm (1.0.31), which build the same networks.

A letter after the depth is GluonCV's: ``c`` a deep stem; ``d`` a deep stem and shortcut D; ``s`` and ``e`` are ``c``
and ``d`` with a stem twice as wide; ``t`` a tiered stem and shortcut D (He et al. 2018, arXiv:1812.01187, section 4).
"""

from typing import Any

from resnet_jax.models.flat import make_spec
from resnet_jax.models.spec import ResNetSpec

_DEPTHS = {
    10: (1, 1, 1, 1),
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
_BASIC = (10, 18, 34)
_LETTERS: dict[str, dict[str, Any]] = {
    '': {},
    'c': {'stem': 'deep'},
    'd': {'stem': 'deep', 'shortcut': 'D'},
    'e': {'stem': 'deep', 'shortcut': 'D', 'stem_width': 128},
    's': {'stem': 'deep', 'stem_width': 128},
    't': {'stem': 'tiered', 'shortcut': 'D'},
}


def _resnet(depth: int, letter: str = '', groups: str = '', **options: Any) -> ResNetSpec:
    """A network, by default with post-activation; ``groups`` is cardinality x base width, such as ``32x4d``."""
    if groups:
        cardinality, base_width = groups.rstrip('d').split('x')
        options |= {'cardinality': int(cardinality), 'base_width': int(base_width)}
    block = 'basic' if depth in _BASIC else 'bottleneck'
    settings: dict[str, Any] = {'block': block, 'stage_sizes': _DEPTHS[depth]} | _LETTERS[letter] | options
    return make_spec(**settings)


def _preact(depth: int, letter: str = '', **options: Any) -> ResNetSpec:
    """A pre-activation network as in timm: with depth 18 or 34, even the first block's shortcut stays raw."""
    if depth in _BASIC:
        options |= {'block': 'preact_basic', 'clean_first': True}
    settings: dict[str, Any] = {'block': 'preact_bottleneck'} | options
    return _resnet(depth, letter, **settings)


def _bit(depth: int, width: int) -> ResNetSpec:
    """Big Transfer (Kolesnikov et al. 2020, arXiv:1912.11370).

    The epsilon of weight standardization is timm's; the authors' code adds 1e-10 to the variance.
    """
    widths = tuple(features * width for features in (64, 128, 256, 512))
    stem: dict[str, Any] = {'stem_width': 64 * width, 'stem_pool': 'max_zero_padded'}
    return _preact(depth, widths=widths, norm='group', standardize=1e-8, **stem)


def _resnest(depth: int, letter: str, radix: int = 2, groups: str = '1x64d', pool_first: bool = False) -> ResNetSpec:
    return _resnet(depth, letter, groups, block='split_attention', radix=radix, pool_first=pool_first)


def _res2net(depth: int, width: int, scale: int, letter: str = '', cardinality: int = 1) -> ResNetSpec:
    return _resnet(depth, letter, f'{cardinality}x{width}d', block='scale', scale=scale)


def _rs(*stage_sizes: int) -> ResNetSpec:
    """ResNet-RS (Bello et al. 2021, arXiv:2103.07579)."""
    return _resnet(50, 'd', stage_sizes=stage_sizes, stem_pool='conv', attention='se', se_ratio=0.25)


def _legacy_se(depth: int, **options: Any) -> ResNetSpec:
    """A network of the squeeze-and-excitation paper's Caffe code, as in Cadene's pretrained models and timm."""
    settings: dict[str, Any] = {'stem_pool': 'max_ceil_mode', 'attention': 'se'} | options
    return _resnet(depth, **settings)


_SENET154: dict[str, Any] = {'shortcut_kernel_size': 3, 'reduce_first': 2}
_LEGACY_BASIC: dict[str, Any] = {'block': 'legacy_se_basic', 'attention': 'none'}
_CAFFE: dict[str, Any] = {'stride_in_1x1': True}
_SK_BASIC: dict[str, Any] = {'block': 'selective_kernel_basic', 'reduction': 1 / 8, 'divisor': 16}
_SK: dict[str, Any] = {'block': 'selective_kernel_bottleneck'}
_SKNEXT: dict[str, Any] = _SK | {'divisor': 32, 'split_input': False}

# Output channels of each block's convolutions after pruning (Aflalo et al. 2020, arXiv:2002.08258), as in timm's
# published weights. Attention keeps the kernel size of the unpruned network.
_PRUNED_50D = (
    (47, 18, 19),
    (52, 22, 19),
    (64, 35, 19),
    (85, 37, 171),
    (107, 80, 171),
    (120, 85, 171),
    (125, 87, 171),
    (198, 126, 818),
    (255, 232, 818),
    (256, 233, 818),
    (253, 235, 818),
    (256, 225, 818),
    (256, 239, 818),
    (492, 237, 2022),
    (512, 500, 2022),
    (512, 490, 2022),
)
_PRUNED_101D = (
    (45, 25, 26),
    (53, 20, 26),
    (60, 27, 26),
    (81, 24, 142),
    (93, 49, 142),
    (102, 54, 142),
    (122, 78, 142),
    (101, 25, 278),
    (239, 160, 278),
    (234, 156, 278),
    (250, 176, 278),
    (253, 191, 278),
    (251, 175, 278),
    (230, 128, 278),
    (244, 154, 278),
    (244, 159, 278),
    (238, 97, 278),
    (244, 149, 278),
    (253, 181, 278),
    (245, 119, 278),
    (255, 216, 278),
    (256, 201, 278),
    (253, 149, 278),
    (254, 141, 278),
    (256, 190, 278),
    (256, 217, 278),
    (255, 156, 278),
    (256, 155, 278),
    (256, 232, 278),
    (256, 214, 278),
    (499, 289, 2042),
    (512, 512, 2042),
    (512, 502, 2042),
)

IMAGENET: dict[str, ResNetSpec] = {
    # He et al. 2015, with the stride in the 3x3 (v1.5), and GluonCV's variants
    **{f'resnet{depth}': _resnet(depth) for depth in (18, 26, 34, 50, 101, 152, 200)},
    **{f'resnet{depth}c': _resnet(depth, 'c') for depth in (50, 101, 152)},
    **{f'resnet{depth}d': _resnet(depth, 'd') for depth in (18, 26, 34, 50, 101, 152, 200)},
    **{f'resnet{depth}s': _resnet(depth, 's') for depth in (50, 101, 152)},
    **{f'resnet{depth}t': _resnet(depth, 't') for depth in (10, 14, 26, 50)},
    'resnet50_gn': _resnet(50, norm='group'),
    'test_resnet': make_spec(
        ('basic', 'basic', 'bottleneck', 'basic'),
        (1, 1, 1, 1),
        (32, 48, 48, 96),
        stem='deep',
        stem_width=32,
        shortcut='D',
    ),
    'plain18': _resnet(18, block='plain'),
    'plain34': _resnet(34, block='plain'),
    # Zagoruyko and Komodakis 2016 (arXiv:1605.07146), the ImageNet networks
    'wide_resnet50_2': _resnet(50, base_width=128),
    'wide_resnet101_2': _resnet(101, base_width=128),
    # Xie et al. 2017 (arXiv:1611.05431)
    'resnext50_32x4d': _resnet(50, '', '32x4d'),
    'resnext50d_32x4d': _resnet(50, 'd', '32x4d'),
    **{
        f'resnext101_{each}': _resnet(101, '', each)
        for each in ('32x4d', '32x8d', '32x16d', '32x32d', '32x48d', '64x4d')
    },
    # Hu et al. 2018 (arXiv:1709.01507)
    **{f'seresnet{depth}': _resnet(depth, attention='se') for depth in (18, 34, 50, 101, 152)},
    'seresnet50t': _resnet(50, 't', attention='se'),
    **{f'seresnet{depth}d': _resnet(depth, 'd', attention='se') for depth in (152, 200, 269)},
    'seresnext26d_32x4d': _resnet(26, 'd', '32x4d', attention='se'),
    'seresnext26t_32x4d': _resnet(26, 't', '32x4d', attention='se'),
    'seresnext50_32x4d': _resnet(50, '', '32x4d', attention='se'),
    **{f'seresnext101_{each}': _resnet(101, '', each, attention='se') for each in ('32x4d', '32x8d', '64x4d')},
    'seresnext101d_32x8d': _resnet(101, 'd', '32x8d', attention='se'),
    'senet154': _resnet(152, 's', '64x4d', attention='se', **_SENET154),
    'legacy_seresnet18': _legacy_se(18, **_LEGACY_BASIC),
    'legacy_seresnet34': _legacy_se(34, **_LEGACY_BASIC),
    **{f'legacy_seresnet{depth}': _legacy_se(depth, **_CAFFE) for depth in (50, 101, 152)},
    'legacy_seresnext26_32x4d': _legacy_se(26, groups='32x4d'),
    'legacy_seresnext50_32x4d': _legacy_se(50, groups='32x4d'),
    'legacy_seresnext101_32x4d': _legacy_se(101, groups='32x4d'),
    'legacy_senet154': _legacy_se(152, letter='s', groups='64x4d', **_SENET154),
    # Wang et al. 2020 (arXiv:1910.03151)
    'ecaresnet26t': _resnet(26, 't', attention='eca'),
    'ecaresnet50t': _resnet(50, 't', attention='eca'),
    **{f'ecaresnet{depth}d': _resnet(depth, 'd', attention='eca') for depth in (50, 101, 200, 269)},
    'ecaresnet50d_pruned': _resnet(50, 'd', attention='eca', channels=_PRUNED_50D),
    'ecaresnet101d_pruned': _resnet(101, 'd', attention='eca', channels=_PRUNED_101D),
    'ecaresnetlight': _resnet(50, stage_sizes=(1, 1, 11, 3), shortcut='D', attention='eca'),
    'ecaresnext26t_32x4d': _resnet(26, 't', '32x4d', attention='eca'),
    'ecaresnext50t_32x4d': _resnet(50, 't', '32x4d', attention='eca'),
    # Zhang 2019 (arXiv:1904.11486), and averages instead of its filter
    'resnetblur18': _resnet(18, antialias='blur'),
    'resnetblur50': _resnet(50, antialias='blur'),
    'resnetblur50d': _resnet(50, 'd', antialias='blur'),
    'resnetblur101d': _resnet(101, 'd', antialias='blur'),
    'resnetaa34d': _resnet(34, 'd', antialias='average'),
    'resnetaa50': _resnet(50, antialias='average'),
    'resnetaa50d': _resnet(50, 'd', antialias='average'),
    'resnetaa101d': _resnet(101, 'd', antialias='average'),
    'seresnetaa50d': _resnet(50, 'd', attention='se', antialias='average'),
    'seresnextaa101d_32x8d': _resnet(101, 'd', '32x8d', attention='se', antialias='average'),
    'seresnextaa201d_32x8d': _resnet(
        200, 'e', '32x8d', stage_sizes=(3, 24, 36, 4), attention='se', antialias='average'
    ),
    # Bello et al. 2021 (arXiv:2103.07579)
    'resnetrs50': _rs(3, 4, 6, 3),
    'resnetrs101': _rs(3, 4, 23, 3),
    'resnetrs152': _rs(3, 8, 36, 3),
    'resnetrs200': _rs(3, 24, 36, 3),
    'resnetrs270': _rs(4, 29, 53, 4),
    'resnetrs350': _rs(4, 36, 72, 4),
    'resnetrs420': _rs(4, 44, 87, 4),
    # He et al. 2016 (arXiv:1603.05027), with other normalizations, and Big Transfer
    **{f'resnetv2_{depth}': _preact(depth) for depth in (18, 34, 50, 101, 152)},
    **{f'resnetv2_{depth}d': _preact(depth, 'd') for depth in (18, 34, 50, 101, 152)},
    'resnetv2_50t': _preact(50, 't'),
    'resnetv2_50d_gn': _preact(50, 'd', norm='group'),
    'resnetv2_50d_evos': _preact(50, 'd', norm='evo'),
    'resnetv2_50d_frn': _preact(50, 'd', norm='filter_response'),
    **{f'resnetv2_{depth}x{width}_bit': _bit(depth, width) for depth in (50, 101) for width in (1, 3)},
    **{f'resnetv2_152x{width}_bit': _bit(152, width) for width in (2, 4)},
    # Zhang et al. 2020 (arXiv:2004.08955)
    'resnest14d': _resnest(14, 'd'),
    'resnest26d': _resnest(26, 'd'),
    'resnest50d': _resnest(50, 'd'),
    'resnest101e': _resnest(101, 'e'),
    'resnest200e': _resnest(200, 'e'),
    'resnest269e': _resnest(269, 'e'),
    'resnest50d_4s2x40d': _resnest(50, 'd', 4, '2x40d', pool_first=True),
    'resnest50d_1s4x24d': _resnest(50, 'd', 1, '4x24d', pool_first=True),
    # Li et al. 2019 (arXiv:1903.06586)
    'skresnet18': _resnet(18, **_SK_BASIC),
    'skresnet34': _resnet(34, **_SK_BASIC),
    'skresnet50': _resnet(50, **_SK),
    'skresnet50d': _resnet(50, 'd', **_SK),
    'skresnext50_32x4d': _resnet(50, '', '32x4d', **_SKNEXT),
    # Gao et al. 2019 (arXiv:1904.01169)
    'res2net50_26w_4s': _res2net(50, 26, 4),
    'res2net50_26w_6s': _res2net(50, 26, 6),
    'res2net50_26w_8s': _res2net(50, 26, 8),
    'res2net50_48w_2s': _res2net(50, 48, 2),
    'res2net50_14w_8s': _res2net(50, 14, 8),
    'res2net101_26w_4s': _res2net(101, 26, 4),
    'res2next50': _res2net(50, 4, 4, cardinality=8),
    'res2net50d': _res2net(50, 26, 4, 'd'),
    'res2net101d': _res2net(101, 26, 4, 'd'),
}
