"""Baseline networks for benchmarks: the same specification in plain Flax and in PyTorch."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax import InputError, ResNetSpec, get_spec, make_spec
from resnet_jax.models.flat import flat_settings

# Fields that ``residual_network`` reads and the values it supports; every other field must have its default.
_SUPPORTED: dict[str, Any] = {
    'block': ('plain', 'basic', 'bottleneck', 'preact_basic', 'preact_bottleneck'),
    'stem': ('imagenet', 'cifar'),
    'stride_in_1x1': (False, True),
}
_READ = ('stage_sizes', 'widths', 'strides', 'stem_width', 'shortcut', 'cardinality', 'base_width', 'num_classes')
_NOT_TIMED = ('zero_init_last',)  # it changes only the initial values


def check_is_plain(name: str, spec: ResNetSpec) -> None:
    """Raises InputError for a network that ``residual_network`` cannot build."""
    settings = flat_settings(spec.to_json())
    defaults = flat_settings(make_spec('basic', (1, 1, 1, 1)).to_json())
    for field, value in settings.items():
        if field not in (*_READ, *_NOT_TIMED) and value not in _SUPPORTED.get(field, (defaults.get(field),)):
            raise InputError(f'arch={name} has {field}={value!r}, which the baselines do not support; omit --against')


def residual_network(spec: ResNetSpec, layers: Any, images: Any) -> Any:
    """A forward pass of a specification that ``check_is_plain`` accepts, in any library.

    Args:
      spec: the architecture.
      layers: has ``conv(x, features, size, stride=1, groups=1)``, ``norm(x)``, ``relu``, ``max_pool`` (3x3, stride 2),
        ``average`` (2x2, stride 2), ``zero_channels(x, stride, features)``, ``channels`` and ``head(x)``.
      images: the input, in the library's axis order.

    Returns:
      Logits.
    """
    preact, shortcut_kind, block = spec.pre_activation, spec.blocks.shortcut, spec.stages[0].block_class
    expansion = block.expansion
    activated = lambda x: layers.relu(layers.norm(x))  # noqa: E731
    x = layers.conv(images, spec.stem.width, *((7, 2) if spec.stem.kind == 'imagenet' else (3, 1)))
    x = x if preact else activated(x)
    x = layers.max_pool(x) if spec.stem.kind == 'imagenet' else x
    for number, stage in enumerate(spec.stages):
        for index in range(stage.size):
            stride = 1 if index else stage.stride
            width, groups = stage.width, spec.blocks.cardinality
            features = width * expansion
            h = activated(x) if preact else x
            changes = stride > 1 or layers.channels(x) != features
            source = h if preact and (changes or number == index == 0 or shortcut_kind == 'C') else x
            if stage.block == 'plain':
                shortcut = None
            elif shortcut_kind == 'A' and changes:
                shortcut = layers.zero_channels(source, stride, features)
            elif changes or shortcut_kind == 'C':
                pooled = shortcut_kind == 'D' and stride > 1
                source = layers.average(source) if pooled else source
                shortcut = layers.conv(source, features, 1, 1 if pooled else stride)
                shortcut = shortcut if preact else layers.norm(shortcut)
            else:
                shortcut = source
            if expansion == 1:
                h = layers.conv(activated(layers.conv(h, width, 3, stride)), width, 3)
            else:
                inner = width * spec.blocks.base_width // 64 * groups
                strides = (stride, 1) if dict(spec.blocks.options).get('stride_in_1x1') else (1, stride)
                h = activated(layers.conv(h, inner, 1, strides[0]))
                h = layers.conv(activated(layers.conv(h, inner, 3, strides[1], groups)), features, 1)
            h = h if preact else layers.norm(h)
            h = h if shortcut is None else h + shortcut
            x = h if preact else layers.relu(h)
    return layers.head(activated(x) if preact else x)


class FlaxNetwork(nn.Module):
    """Plain ``nn.Conv`` and ``nn.BatchNorm``."""

    spec: ResNetSpec
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of images ``[N, H, W, C]``."""
        return residual_network(self.spec, _FlaxLayers(self.spec.head.num_classes, self.dtype, train), images)


class _FlaxLayers:
    relu = staticmethod(nn.relu)

    def __init__(self, num_classes: int, dtype: Any, train: bool):
        self.num_classes, self.dtype, self.train = num_classes, dtype, train

    def conv(self, x: jax.Array, features: int, size: int, stride: int = 1, groups: int = 1) -> jax.Array:
        options: dict[str, Any] = {'feature_group_count': groups, 'use_bias': False, 'dtype': self.dtype}
        return nn.Conv(features, (size, size), (stride, stride), (size - 1) // 2, **options)(x)

    def norm(self, x: jax.Array) -> jax.Array:
        return nn.BatchNorm(not self.train, momentum=0.9, dtype=self.dtype)(x)

    def max_pool(self, x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    def average(self, x: jax.Array) -> jax.Array:
        return nn.avg_pool(x, (2, 2), (2, 2))

    def zero_channels(self, x: jax.Array, stride: int, features: int) -> jax.Array:
        missing = features - x.shape[-1]
        return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))

    def channels(self, x: jax.Array) -> int:
        return x.shape[-1]

    def head(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes)(x.astype(jnp.float32).mean((1, 2)))


def torch_network(arch: str, spec: ResNetSpec, image_size: int) -> Any:
    """torchvision's network of that name if the specification is unchanged, otherwise one built of PyTorch's layers."""
    import torch
    import torchvision

    if hasattr(torchvision.models, arch) and spec == get_spec(arch):
        return getattr(torchvision.models, arch)()

    class Network(torch.nn.Module):
        """Creates its layers in the first call and reuses them in that order."""

        def __init__(self) -> None:
            super().__init__()
            self.kept = torch.nn.ModuleList()
            self.next = 0

        def take(self, make: Any) -> Any:
            if self.next == len(self.kept):
                self.kept.append(make())
            self.next += 1
            return self.kept[self.next - 1]

        def conv(self, x: Any, features: int, size: int, stride: int = 1, groups: int = 1) -> Any:
            padding = (size - 1) // 2
            make = lambda: torch.nn.Conv2d(x.shape[1], features, size, stride, padding, groups=groups, bias=False)  # noqa: E731
            return self.take(make)(x)

        def norm(self, x: Any) -> Any:
            return self.take(lambda: torch.nn.BatchNorm2d(x.shape[1]))(x)

        relu = staticmethod(functools.partial(torch.nn.functional.relu, inplace=True))
        max_pool = staticmethod(functools.partial(torch.nn.functional.max_pool2d, kernel_size=3, stride=2, padding=1))
        average = staticmethod(functools.partial(torch.nn.functional.avg_pool2d, kernel_size=2))

        def zero_channels(self, x: Any, stride: int, features: int) -> Any:
            missing = features - x.shape[1]
            padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)
            return torch.nn.functional.pad(x[:, :, ::stride, ::stride], padding)

        def channels(self, x: Any) -> int:
            return x.shape[1]

        def head(self, x: Any) -> Any:
            return self.take(lambda: torch.nn.Linear(x.shape[1], spec.head.num_classes))(x.mean((2, 3)))

        def forward(self, images: Any) -> Any:
            self.next = 0
            return residual_network(spec, self, images)

    network = Network()
    with torch.no_grad():
        network(torch.zeros(2, 3, image_size, image_size))
    return network
