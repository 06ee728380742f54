"""Residual blocks, and the plain block they are compared with.

All take ``[N, H, W, C]`` and give ``[N, ceil(H / stride), ceil(W / stride), features * expansion]``, whatever C is.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.conv import Conv
from resnet_jax.models.layers import Shortcut, shape_changes
from resnet_jax.models.norm import BatchNorm


class Block(nn.Module):
    """What every block has; each subclass adds its options and the order of its layers.

    Attributes:
      features: width of the stage: 64, 128, 256, 512 in the ImageNet forms.
      stride: of the block, in one of its convolutions and in its shortcut.
      dtype: compute dtype; parameters are float32.
      implementation: ``auto`` or ``xla``, as in ``conv.convolution``.
      statistics: as in ``norm.BatchNorm``.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    statistics: str | int = 'global'

    # Output channels are features * expansion; pre_activation tells the network where its own last ReLU belongs.
    expansion: ClassVar[int] = 1
    pre_activation: ClassVar[bool] = False

    @property
    def _how(self) -> dict[str, Any]:
        return {'dtype': self.dtype, 'implementation': self.implementation}

    def _conv(self, index: int, features: int, kernel_size: int, stride: int = 1, groups: int = 1) -> Conv:
        return Conv(features, kernel_size, stride, groups=groups, **self._how, name=f'conv{index}')

    def _norm(self, index: int, mode: dict[str, Any], **options: Any) -> Callable[..., jax.Array]:
        norm = BatchNorm(**options, statistics=self.statistics, **self._how, name=f'norm{index}')
        return functools.partial(norm, **mode)

    def _norm_relu(self, index: int, mode: dict[str, Any], **options: bool) -> Callable[..., jax.Array]:
        return self._norm(index, mode, relu=True, **options)


class PlainBlock(Block):
    """Two 3x3 convolutions without a shortcut, the control of He et al. 2015 (arXiv:1512.03385, section 3.3)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        mode = {'train': train, 'update_stats': update_stats}
        h = self._norm_relu(1, mode)(self._conv(1, self.features, 3, self.stride)(x))
        return self._norm_relu(2, mode)(self._conv(2, self.features, 3)(h))


class ResidualBlock(Block):
    """A block with a shortcut.

    Attributes:
      shortcut: a key of ``layers.SHORTCUTS``.
    """

    shortcut: str = 'B'

    def _shortcut(self, x: jax.Array, mode: dict[str, Any], norm: bool = True) -> jax.Array:
        features = self.features * self.expansion
        options: dict[str, Any] = {'norm': norm, 'statistics': self.statistics, **self._how}
        return Shortcut(features, self.stride, self.shortcut, **options, name='shortcut')(x, **mode)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (He et al. 2015, arXiv:1512.03385, Figure 5 left): ``y = relu(F(x) + shortcut(x))``.

    Attributes:
      zero_init_last: the branch's last normalization starts with scale zero, and so the block as relu(shortcut).
    """

    zero_init_last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        mode = {'train': train, 'update_stats': update_stats}
        h = self._norm_relu(1, mode)(self._conv(1, self.features, 3, self.stride)(x))
        h = self._conv(2, self.features, 3)(h)
        return self._norm_relu(2, mode, zero_init=self.zero_init_last)(h, self._shortcut(x, mode))


class _Bottleneck(ResidualBlock):
    """The width of the 3x3 convolution, common to both orders of the bottleneck.

    Attributes:
      cardinality: G, groups of the 3x3 convolution (Xie et al. 2017, arXiv:1611.05431, Figure 3c).
      base_width: channels of one group where ``features`` is 64.
    """

    cardinality: int = 1
    base_width: int = 64
    expansion: ClassVar[int] = 4

    @property
    def inner_width(self) -> int:
        """Channels of the 3x3 convolution: ``floor(features * base_width / 64) * cardinality``."""
        width = self.features * self.base_width // 64 * self.cardinality
        if not width:
            raise InputError(f'base_width={self.base_width} leaves no channels at a stage width of {self.features}')
        return width


class BottleneckBlock(_Bottleneck):
    """1x1, 3x3 and 1x1 convolutions (He et al. 2015, Figure 5 right): ``y = relu(F(x) + shortcut(x))``.

    With ``cardinality=32, base_width=4`` it is the block of ResNeXt-50 32x4d, with ``base_width=128`` that of
    Wide ResNet-50-2.

    Attributes:
      stride_in_1x1: the stride is in the first 1x1 convolution, as in the paper (v1); by default it is in the 3x3
        (v1.5, as in fb.resnet.torch and torchvision).
      zero_init_last: the branch's last normalization starts with scale zero, and so the block as relu(shortcut).
    """

    stride_in_1x1: bool = False
    zero_init_last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        mode = {'train': train, 'update_stats': update_stats}
        strides = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        h = self._norm_relu(1, mode)(self._conv(1, self.inner_width, 1, strides[0])(x))
        h = self._norm_relu(2, mode)(self._conv(2, self.inner_width, 3, strides[1], self.cardinality)(h))
        h = self._conv(3, self.features * self.expansion, 1)(h)
        return self._norm_relu(3, mode, zero_init=self.zero_init_last)(h, self._shortcut(x, mode))


class _PreActivation(ResidualBlock):
    """The shortcut that both pre-activation blocks have.

    Attributes:
      first: the block follows the stem: its activation comes before the split (He et al. 2016, arXiv:1603.05027,
        appendix), so that its shortcut is activated, too.
    """

    first: bool = False
    pre_activation: ClassVar[bool] = True

    def _activated_or_raw(self, x: jax.Array, h: jax.Array, mode: dict[str, Any]) -> jax.Array:
        """The raw input ``x``, or a projection of the activated one, ``h``.

        He et al. 2016 (section 3) keep the identity path clean of any operation; where the shape changes, their code
        and Wide ResNet's take the shortcut behind the first activation, without normalization.
        """
        changes = shape_changes(x, self.features * self.expansion, self.stride)
        return self._shortcut(h if self.first or changes or self.shortcut == 'C' else x, mode, norm=False)


class PreActBasicBlock(_PreActivation):
    """Pre-activation of the basic block (He et al. 2016, arXiv:1603.05027, Figure 4e): ``y = F(x) + shortcut(x)``."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        mode = {'train': train, 'update_stats': update_stats}
        h = self._norm_relu(1, mode)(x)
        shortcut = self._activated_or_raw(x, h, mode)
        h = self._conv(1, self.features, 3, self.stride)(h)
        h = self._conv(2, self.features, 3)(self._norm_relu(2, mode)(h))
        return h + shortcut


class PreActBottleneckBlock(_PreActivation, _Bottleneck):
    """Pre-activation of the bottleneck (He et al. 2016, section 4, ResNet-164 and 1001); stride in the 3x3."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        mode = {'train': train, 'update_stats': update_stats}
        h = self._norm_relu(1, mode)(x)
        shortcut = self._activated_or_raw(x, h, mode)
        h = self._conv(1, self.inner_width, 1)(h)
        h = self._conv(2, self.inner_width, 3, self.stride, self.cardinality)(self._norm_relu(2, mode)(h))
        h = self._conv(3, self.features * self.expansion, 1)(self._norm_relu(3, mode)(h))
        return h + shortcut


BLOCKS: dict[str, type[Block]] = {
    'plain': PlainBlock,
    'basic': BasicBlock,
    'bottleneck': BottleneckBlock,
    'preact_basic': PreActBasicBlock,
    'preact_bottleneck': PreActBottleneckBlock,
}
