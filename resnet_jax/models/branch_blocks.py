"""Blocks with several 3x3 convolutions: ResNeSt, selective kernels, Res2Net; and the table of all blocks."""

import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.attention import SelectiveKernel, SplitAttention
from resnet_jax.models.blocks import (
    BasicBlock,
    Block,
    BottleneckBlock,
    Cardinality,
    DropRate,
    LegacySEBasicBlock,
    PlainBlock,
    PostActivation,
    PreActBasicBlock,
    PreActBottleneckBlock,
)
from resnet_jax.models.compute import Mode
from resnet_jax.models.layers import shape_changes
from resnet_jax.models.pooling import avg_pool_3x3


class SplitAttentionBlock(Cardinality, PostActivation):
    """The bottleneck of ResNeSt (Zhang et al. 2020, arXiv:2004.08955); its stride is in an average pool.

    Stochastic depth drops the branch; in timm's block it drops the input instead.

    Attributes:
      radix: number of branches of the 3x3 convolution.
      pool_first: put the pool before the 3x3 convolution instead of after it.
    """

    radix: int = 2
    pool_first: bool = False

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        if self.radix < 1:
            raise InputError(f'radix={self.radix} must be at least 1')
        h = self.normalization('norm1', mode, relu=True).after(self.conv('conv1', self.inner_width, 1), x)
        if self.stride > 1 and self.pool_first:
            h = avg_pool_3x3(h, self.stride)
        attention = SplitAttention(
            self.inner_width,
            self.radix,
            self.cardinality,
            dilation=self._first_dilation,
            compute=self.compute,
            name='conv2',
        )
        h = attention(h, train=mode.train, update_stats=mode.update_stats)
        h = self._apply_drop_block(h, mode)
        if self.stride > 1 and not self.pool_first:
            h = avg_pool_3x3(h, self.stride)
        return self._finish(h, x, mode, drop_rate, self.conv('conv3', self.out_features, 1), 'norm3')


class _SelectiveKernelBlock(PostActivation):
    """Base class of both blocks with selective kernels.

    Attributes:
      reduction: as in ``attention.SelectiveKernel``.
      divisor: as in ``attention.SelectiveKernel``.
      split_input: as in ``attention.SelectiveKernel``.
    """

    reduction: float = 1 / 16
    divisor: int = 8
    split_input: bool = True

    def _selective_kernel(self, name: str, x: jax.Array, features: int, groups: int, mode: Mode) -> jax.Array:
        kernel = SelectiveKernel(
            features,
            self.reduction,
            self.divisor,
            self.split_input,
            groups,
            self.stride,
            self._first_dilation,
            compute=self.compute,
            name=name,
        )
        return kernel(x, train=mode.train, update_stats=mode.update_stats)


class SelectiveKernelBasicBlock(_SelectiveKernelBlock):
    """The basic block with selective kernels in its first convolution, as in timm's skresnet18 and skresnet34."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self._apply_drop_block(self._selective_kernel('conv1', x, self.features, 1, mode), mode)
        conv = self.conv('conv2', self.features, 3, dilation=self.dilation)
        return self._finish(h, x, mode, drop_rate, conv, 'norm2')


class SelectiveKernelBottleneckBlock(_SelectiveKernelBlock, Cardinality):
    """The bottleneck with selective kernels in its 3x3 convolution (Li et al. 2019, arXiv:1903.06586, section 3.2)."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self.normalization('norm1', mode, relu=True).after(self.conv('conv1', self.inner_width, 1), x)
        h = self._selective_kernel('conv2', h, self.inner_width, self.cardinality, mode)
        h = self._apply_drop_block(h, mode)
        return self._finish(h, x, mode, drop_rate, self.conv('conv3', self.out_features, 1), 'norm3')


class Res2NetBlock(Cardinality, PostActivation):
    """The bottleneck of Res2Net (Gao et al. 2019, arXiv:1904.01169, Eq. 1): a 3x3 convolution in ``scale`` steps.

    Each step convolves its group of channels plus the result of the previous step; the last group passes unchanged.
    In the first block of a stage, the steps do not add the previous result, and the last group is averaged over 3x3
    pixels, as in the authors' code.

    Attributes:
      scale: number of channel groups, each with ``inner_width`` channels.
    """

    scale: int = 4

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        if self.scale < 2:
            raise InputError(f'scale={self.scale} must be at least 2')
        width, first = self.inner_width, shape_changes(x, self.out_features, self.stride)
        h = self.normalization('norm1', mode, relu=True).after(self.conv('conv1', width * self.scale, 1), x)
        *splits, last = jnp.split(h, self.scale, -1)
        results: list[jax.Array] = []
        for index, split in enumerate(splits, 1):
            split = split + results[-1] if results and not first else split
            conv = self.conv(f'conv2_{index}', width, 3, self.stride, self._first_dilation, self.cardinality)
            results.append(self.normalization(f'norm2_{index}', mode, relu=True).after(conv, split))
        results.append(avg_pool_3x3(last, self.stride) if first else last)
        h = self._apply_drop_block(jnp.concatenate(results, -1), mode)
        return self._finish(h, x, mode, drop_rate, self.conv('conv3', self.out_features, 1), 'norm3')


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
    'scale': Res2NetBlock,
}
