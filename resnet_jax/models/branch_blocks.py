"""Blocks whose 3x3 convolution is several: split attention, selective kernels, scales; and the table of all blocks."""

from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.attention import SelectiveKernel, SplitAttention
from resnet_jax.models.blocks import (
    BasicBlock,
    Block,
    BottleneckBlock,
    Cardinality,
    LegacySEBasicBlock,
    PlainBlock,
    PostActivation,
    PreActBasicBlock,
    PreActBottleneckBlock,
)
from resnet_jax.models.layers import shape_changes
from resnet_jax.models.pooling import avg_pool_3x3


class SplitAttentionBlock(Cardinality, PostActivation):
    """The bottleneck of ResNeSt (Zhang et al. 2020, arXiv:2004.08955): its stride is in an average pool.

    timm's block drops its input instead of its branch with stochastic depth; here it is the branch.

    Attributes:
      radix: branches of the 3x3 convolution.
      pool_first: the pool is in front of it instead of behind.
    """

    radix: int = 2
    pool_first: bool = False

    def _forward(self, x: jax.Array, mode: dict[str, Any], drop_rate: float | jax.Array) -> jax.Array:
        if self.radix < 1:
            raise InputError(f'radix={self.radix} must be at least 1')
        h = self.normalization('norm1', mode, relu=True)(self.conv('conv1', self.inner_width, 1)(x))
        if self.stride > 1 and self.pool_first:
            h = avg_pool_3x3(h, self.stride)
        options: dict[str, Any] = {
            'radix': self.radix,
            'groups': self.cardinality,
            'dilation': self._first_dilation,
            **self.how,
        }
        h = self._with_blocks_dropped(SplitAttention(self.inner_width, **options, name='conv2')(h, **mode), mode)
        if self.stride > 1 and not self.pool_first:
            h = avg_pool_3x3(h, self.stride)
        h = self.conv('conv3', self.out_features, 1)(h)
        return self._add_shortcut('norm3', h, x, mode, drop_rate)


class _Selective(PostActivation):
    """What both blocks of selective kernels have.

    Attributes:
      reduction: as in ``attention.SelectiveKernel``, like the two that follow.
      divisor: of the number of reduced channels.
      split_input: each of the two convolutions takes half of the channels.
    """

    reduction: float = 1 / 16
    divisor: int = 8
    split_input: bool = True

    def _selective_kernel(self, name: str, features: int, groups: int) -> SelectiveKernel:
        options: dict[str, Any] = {
            'reduction': self.reduction,
            'divisor': self.divisor,
            'split_input': self.split_input,
        }
        options |= {'groups': groups, 'stride': self.stride, 'dilation': self._first_dilation, **self.how}
        return SelectiveKernel(features, **options, name=name)


class SelectiveKernelBasicBlock(_Selective):
    """The basic block with selective kernels in its first convolution, as in timm's skresnet18 and 34."""

    def _forward(self, x: jax.Array, mode: dict[str, Any], drop_rate: float | jax.Array) -> jax.Array:
        h = self._with_blocks_dropped(self._selective_kernel('conv1', self.features, 1)(x, **mode), mode)
        h = self.conv('conv2', self.features, 3, dilation=self.dilation)(h)
        return self._add_shortcut('norm2', h, x, mode, drop_rate)


class SelectiveKernelBottleneckBlock(_Selective, Cardinality):
    """The bottleneck with selective kernels in its 3x3 convolution (Li et al. 2019, arXiv:1903.06586, section 3.2)."""

    def _forward(self, x: jax.Array, mode: dict[str, Any], drop_rate: float | jax.Array) -> jax.Array:
        h = self.normalization('norm1', mode, relu=True)(self.conv('conv1', self.inner_width, 1)(x))
        h = self._selective_kernel('conv2', self.inner_width, self.cardinality)(h, **mode)
        h = self.conv('conv3', self.out_features, 1)(self._with_blocks_dropped(h, mode))
        return self._add_shortcut('norm3', h, x, mode, drop_rate)


class ScaleBlock(Cardinality, PostActivation):
    """The bottleneck of Res2Net (Gao et al. 2019, arXiv:1904.01169, Eq. 1): the 3x3 convolution in ``scale`` steps.

    Each step convolves its share of the channels plus the result of the step before; the last share passes. In the
    first block of a stage the steps do not add, and the last share is averaged over 3x3 pixels, as in the authors'
    code.

    Attributes:
      scale: shares, each ``inner_width`` channels wide.
    """

    scale: int = 4

    def _forward(self, x: jax.Array, mode: dict[str, Any], drop_rate: float | jax.Array) -> jax.Array:
        if self.scale < 2:
            raise InputError(f'scale={self.scale} must be at least 2')
        width, first = self.inner_width, shape_changes(x, self.out_features, self.stride)
        h = self.normalization('norm1', mode, relu=True)(self.conv('conv1', width * self.scale, 1)(x))
        *shares, last = jnp.split(h, self.scale, -1)
        results: list[jax.Array] = []
        options = {'dilation': self._first_dilation, 'groups': self.cardinality}
        for index, share in enumerate(shares, 1):
            share = share + results[-1] if results and not first else share
            h = self.conv(f'conv2_{index}', width, 3, self.stride, **options)(share)
            results.append(self.normalization(f'norm2_{index}', mode, relu=True)(h))
        results.append(avg_pool_3x3(last, self.stride) if first else last)
        h = self._with_blocks_dropped(jnp.concatenate(results, -1), mode)
        h = self.conv('conv3', self.out_features, 1)(h)
        return self._add_shortcut('norm3', h, x, mode, drop_rate)


BLOCKS: dict[str, type[Block]] = {
    'plain': PlainBlock,
    'basic': BasicBlock,
    'bottleneck': BottleneckBlock,
    'preact_basic': PreActBasicBlock,
    'preact_bottleneck': PreActBottleneckBlock,
    'legacy_se_basic': LegacySEBasicBlock,
    'split_attention': SplitAttentionBlock,
    'selective_kernel_basic': SelectiveKernelBasicBlock,
    'selective_kernel_bottleneck': SelectiveKernelBottleneckBlock,
    'scale': ScaleBlock,
}
