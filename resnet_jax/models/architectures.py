"""The architectures by name.

ImageNet networks have the names of torchvision and timm (``imagenet.py``), CIFAR networks those of the papers:

- He et al. 2015 (arXiv:1512.03385, section 4.2): three stages of n blocks with 16, 32 and 64 channels and shortcut A,
  depth 6n + 2.
- He et al. 2016 (arXiv:1603.05027): the same with pre-activation; the 164- and 1001-layer networks use bottlenecks,
  depth 9n + 2.
- Wide ResNet (arXiv:1605.07146): pre-activation, k times as wide, depth 6n + 4.
- ResNeXt-29 (arXiv:1611.05431, section 5.3).

``…_cifar`` is an ImageNet network with a 3x3 stem.
"""

import fnmatch
from typing import Any

import jax.numpy as jnp

from resnet_jax.errors import InputError, nearest
from resnet_jax.models.checks import check_dtype
from resnet_jax.models.conv import check_implementation
from resnet_jax.models.flat import make_spec, with_changes
from resnet_jax.models.imagenet import IMAGENET
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.spec import ResNetSpec


def _cifar(block: str, blocks_per_stage: int, **options: Any) -> ResNetSpec:
    """Three stages with 16, 32 and 64 channels, for 32x32 images."""
    defaults: dict[str, Any] = {
        'widths': (16, 32, 64),
        'strides': (1, 2, 2),
        'stem': 'cifar',
        'stem_width': 16,
        'num_classes': 10,
    }
    settings = defaults | options
    return make_spec(block, (blocks_per_stage,) * 3, **settings)


def _wide(depth: int, widen_factor: int) -> ResNetSpec:
    widths = (16 * widen_factor, 32 * widen_factor, 64 * widen_factor)
    return _cifar('preact_basic', (depth - 4) // 6, widths=widths)


def _resnext29(cardinality: int) -> ResNetSpec:
    return _cifar('bottleneck', 3, widths=(64, 128, 256), stem_width=64, cardinality=cardinality)


_RESNET18, _RESNET34, _RESNET50 = (IMAGENET[name] for name in ('resnet18', 'resnet34', 'resnet50'))
_SMALL_IMAGES: dict[str, Any] = {'stem': 'cifar', 'num_classes': 10}

CIFAR: dict[str, ResNetSpec] = {
    'resnet20': _cifar('basic', 3, shortcut='A'),
    'resnet32': _cifar('basic', 5, shortcut='A'),
    'resnet44': _cifar('basic', 7, shortcut='A'),
    'resnet56': _cifar('basic', 9, shortcut='A'),
    'resnet110': _cifar('basic', 18, shortcut='A'),
    'resnet1202': _cifar('basic', 200, shortcut='A'),
    'plain20': _cifar('plain', 3),
    'plain32': _cifar('plain', 5),
    'plain44': _cifar('plain', 7),
    'plain56': _cifar('plain', 9),
    'plain110': _cifar('plain', 18),
    'preact_resnet20': _cifar('preact_basic', 3, shortcut='A'),
    'preact_resnet56': _cifar('preact_basic', 9, shortcut='A'),
    'preact_resnet110': _cifar('preact_basic', 18, shortcut='A'),
    'preact_resnet164': _cifar('preact_bottleneck', 18),
    'preact_resnet1001': _cifar('preact_bottleneck', 111),
    'wrn16_8': _wide(16, 8),
    'wrn28_10': _wide(28, 10),
    'wrn40_2': _wide(40, 2),
    'wrn40_10': _wide(40, 10),
    'resnext29_8x64d': _resnext29(8),
    'resnext29_16x64d': _resnext29(16),
    'resnet18_cifar': with_changes(_RESNET18, **_SMALL_IMAGES),
    'resnet34_cifar': with_changes(_RESNET34, **_SMALL_IMAGES),
    'resnet50_cifar': with_changes(_RESNET50, **_SMALL_IMAGES),
    'resnext50_32x4d_cifar': with_changes(IMAGENET['resnext50_32x4d'], **_SMALL_IMAGES),
    # A ten-layer plain network for first experiments: a stem convolution, four stages of two each, a linear layer.
    'plain10': make_spec('plain', (1, 1, 1, 1), **_SMALL_IMAGES),
}

ARCHITECTURES: dict[str, ResNetSpec] = IMAGENET | CIFAR


def list_models(pattern: str = '*') -> list[str]:
    """Lists the names of the architectures.

    Args:
      pattern: a shell pattern such as ``'resnext*'``.

    Returns:
      The names that match, sorted.

    Raises:
      InputError: the pattern is not a string.
    """
    if not isinstance(pattern, str):
        raise InputError(f'pattern={pattern!r} must be a string')
    return sorted(fnmatch.filter(ARCHITECTURES, pattern))


def get_spec(name: str, **overrides: Any) -> ResNetSpec:
    """Returns the specification of a named architecture, with some settings replaced.

    Args:
      name: one of ``list_models()``.
      **overrides: settings to replace, as in ``create_model``.

    Raises:
      InputError: the name or a setting is unknown, or ``ResNetSpec`` rejects a value.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(
            f'unknown architecture {name!r}; {nearest(name, ARCHITECTURES)}; list_models() returns all names'
        )
    return with_changes(ARCHITECTURES[name], **overrides)


def name_of(spec: ResNetSpec) -> str | None:
    """The name of the architecture with this specification, apart from the head and regularization; None if unnamed."""
    plain = _without_training_options(spec)
    return next((name for name, known in ARCHITECTURES.items() if _without_training_options(known) == plain), None)


def _without_training_options(spec: ResNetSpec) -> ResNetSpec:
    options = {'drop_path_rate': 0.0, 'drop_block_rate': 0.0, 'dropout_rate': 0.0, 'zero_init_last': False}
    return with_changes(spec, num_classes=1, **options)


def create_model(
    name: str,
    num_classes: int | None = None,
    dtype: Any = jnp.float32,
    implementation: str = 'auto',
    **overrides: Any,
) -> ResNet:
    """Creates a network by name.

    Args:
      name: one of ``list_models()``.
      num_classes: K, the number of outputs; None keeps that of the published network (1000 on ImageNet, 10 on CIFAR).
      dtype: compute dtype, such as ``jnp.bfloat16``; parameters and logits stay float32.
      implementation: ``auto`` uses fast implementations for each platform and supports only reverse-mode
        differentiation; ``xla`` uses XLA's own operations and also supports forward mode, which ``jax.jvp``,
        ``jax.jacfwd`` and ``jax.hessian`` need.
      **overrides: architecture settings by their flat names (``flat.make_spec``), such as ``shortcut='C'``,
        ``stem_width=32``, ``block=MyBlock`` with a subclass of ``Block``, or fields that are specific to the block.

    Returns:
      A Linen module; ``init_variables`` creates its variables, and
      ``model.apply(variables, images, train=False)`` returns the logits.

    Raises:
      InputError: as ``get_spec``, or the dtype or the implementation is not supported.
    """
    check_implementation(implementation)
    check_dtype('dtype', dtype)
    if num_classes is not None:
        overrides['num_classes'] = num_classes
    return ResNet(get_spec(name, **overrides), dtype, implementation)
