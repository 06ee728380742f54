"""Residual blocks, and the plain block they are compared with.

All map ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), features * expansion]``, for any C.
"""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from resnet_jax.errors import InputError
from resnet_jax.models.attention import ATTENTIONS, EfficientChannelAttention, SqueezeExcite, make_divisible
from resnet_jax.models.block_end import finish_block
from resnet_jax.models.checks import check_choice
from resnet_jax.models.compute import Mode
from resnet_jax.models.conv import Conv
from resnet_jax.models.layers import Layer, Shortcut, drop_block, drop_path, shape_changes
from resnet_jax.models.pooling import ANTIALIAS, antialias

# Probability that stochastic depth drops a branch: a Python number or a traced value.
DropRate = float | jax.Array
# Functions applied to a branch after its last normalization.
Steps = tuple[Callable[[jax.Array], jax.Array], ...]


class Block(Layer):
    """Base class of all blocks; subclasses add their options as fields and their layers in ``forward``.

    A custom block can be used wherever the name of a block is accepted: ``create_model('resnet20', block=MyBlock)``.

    Attributes:
      features: width of the stage: 64, 128, 256, 512 in the ImageNet networks.
      stride: stride of the block, in one of its convolutions and in its shortcut.
      dilation: dilation of the 3x3 convolutions, in pixels.
      first_dilation: dilation of the first 3x3 convolution; None for ``dilation``.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int | None = None

    # The output has features * expansion channels. With pre_activation, the network itself ends in a norm and a ReLU.
    expansion: ClassVar[int] = 1
    pre_activation: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, update_stats: bool | None = None, drop_rate: DropRate = 0.0
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: ``[N, H, W, C]``.
          train: as in ``norm.BatchNorm``.
          update_stats: as in ``norm.BatchNorm``.
          drop_rate: probability that ``layers.drop_path`` drops the branch in training, a float or a traced value;
            random numbers come from the stream ``dropout``.

        Returns:
          ``[N, ceil(H / stride), ceil(W / stride), out_features]``.
        """
        return self.forward(x, Mode(train, update_stats), drop_rate)

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        """Applies the block's layers; subclasses implement this.

        Args:
          x: ``[N, H, W, C]``.
          mode: ``train`` and ``update_stats`` of the call.
          drop_rate: as in ``__call__``.

        Returns:
          ``[N, ceil(H / stride), ceil(W / stride), out_features]``.
        """
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return self.features * self.expansion

    @property
    def _first_dilation(self) -> int:
        return self.dilation if self.first_dilation is None else self.first_dilation


def _is_dropping(mode: Mode, drop_rate: DropRate) -> bool:
    """Whether stochastic depth is active; with a traced rate it is."""
    return mode.train and not (isinstance(drop_rate, int | float) and drop_rate == 0)


class PlainBlock(Block):
    """Two 3x3 convolutions without a shortcut, the baseline of He et al. 2015 (arXiv:1512.03385, section 3.3)."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        if _is_dropping(mode, drop_rate):
            raise InputError('drop_path_rate is not supported by a plain block, which has no shortcut')
        conv = self.conv('conv1', self.features, 3, self.stride, dilation=self._first_dilation)
        h = self.normalization('norm1', mode, relu=True).after(conv, x)
        conv = self.conv('conv2', self.features, 3, dilation=self.dilation)
        return finish_block(self, mode, h, None, conv=conv, norm='norm2')


class ResidualBlock(Block):
    """Base class of blocks with a shortcut.

    Attributes:
      shortcut: a key of ``layers.SHORTCUTS``.
    """

    shortcut: str = 'B'

    def shortcut_of(self, x: jax.Array, mode: Mode, kernel_size: int = 1, normalize: bool = True) -> jax.Array:
        """Applies the shortcut to the block's input; the options are those of ``layers.Shortcut``."""
        shortcut = Shortcut(
            self.out_features,
            self.stride,
            self.shortcut,
            kernel_size,
            self.dilation,
            self._first_dilation,
            normalize,
            compute=self.compute,
            name='shortcut',
        )
        return shortcut(x, train=mode.train, update_stats=mode.update_stats)

    def drop_steps(self, mode: Mode, drop_rate: DropRate) -> Steps:
        """Returns stochastic depth as the last step of a branch, or no steps if it is inactive."""
        if not _is_dropping(mode, drop_rate):
            return ()
        return (lambda h: drop_path(h, drop_rate, self.make_rng('dropout')),)


class PostActivation(ResidualBlock):
    """Base class of post-activation blocks (He et al. 2015): the activation follows the addition of the shortcut.

    Attributes:
      shortcut_kernel_size: kernel size of the projection in blocks with a stride or dilation: 3 in SENet-154.
      attention: a key of ``attention.ATTENTIONS``, applied to the branch before the addition.
      se_ratio: channels between the two layers of squeeze-and-excitation, as a fraction of the branch's channels.
      drop_block: None, or rate, size and scale of ``layers.drop_block`` after the strided 3x3 convolution.
      zero_init_last: initialize the scale of the branch's last normalization to zero, so the block starts as
        ``relu(shortcut(x))``.
    """

    shortcut_kernel_size: int = 1
    attention: str = 'none'
    se_ratio: float = 1 / 16
    drop_block: tuple[float, int, float] | None = None
    zero_init_last: bool = False

    def _apply_drop_block(self, h: jax.Array, mode: Mode) -> jax.Array:
        if self.drop_block is None or not self.drop_block[0] or not mode.train:
            return h
        return drop_block(h, *self.drop_block, self.make_rng('dropout'))

    def _finish(self, h: jax.Array, x: jax.Array, mode: Mode, drop_rate: DropRate, conv: Conv, norm: str) -> jax.Array:
        """Computes the end of the block; ``h`` is the branch before its last convolution, ``x`` the block's input."""
        return finish_block(
            self,
            mode,
            h,
            self.shortcut_of(x, mode, self.shortcut_kernel_size),
            conv=conv,
            norm=norm,
            zero_init=self.zero_init_last,
            branch=self._attention_steps(conv.features) + self.drop_steps(mode, drop_rate),
        )

    def _attention_steps(self, channels: int) -> Steps:
        """Returns attention over ``channels`` channels as a step of the branch, or no steps without attention."""
        check_choice('attention', self.attention, ATTENTIONS)
        if self.attention == 'se':
            reduced = make_divisible(channels * self.se_ratio)
            return (SqueezeExcite(reduced, self.compute.dtype, name='attention'),)
        if self.attention == 'eca':
            unpruned = self.features * self.expansion  # a pruned network keeps its kernel size
            return (EfficientChannelAttention(unpruned, self.compute.dtype, name='attention'),)
        return ()


class Antialiased(PostActivation):
    """Base class of blocks whose stride is in a 3x3 convolution or, with anti-aliasing, in a filter after it.

    Attributes:
      antialias: a key of ``pooling.ANTIALIAS``.
    """

    antialias: str = 'none'

    def _strided_conv(self, name: str, norm: str, x: jax.Array, features: int, groups: int, mode: Mode) -> jax.Array:
        """Applies the 3x3 convolution with the block's stride, normalization, ReLU, DropBlock and anti-aliasing."""
        check_choice('antialias', self.antialias, ANTIALIAS)
        dilation = self._first_dilation
        filtered = self.antialias != 'none' and (self.stride > 1 or dilation != self.dilation)
        if filtered and self.antialias == 'average' and any(size % self.stride for size in x.shape[1:3]):
            size = 'x'.join(map(str, x.shape[1:3]))  # otherwise, the average is smaller than the shortcut
            raise InputError(
                f"antialias='average': height and width must be multiples of {self.stride} (the stride), found {size}"
            )
        stride = 1 if filtered else self.stride
        conv = self.conv(name, features, 3, stride, dilation=dilation, groups=groups)
        h = self.normalization(norm, mode, relu=True).after(conv, x)
        h = self._apply_drop_block(h, mode)
        return antialias(h, self.antialias, self.stride) if filtered else h


class BasicBlock(Antialiased):
    """Two 3x3 convolutions (He et al. 2015, arXiv:1512.03385, Figure 5 left): ``y = relu(F(x) + shortcut(x))``."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self._strided_conv('conv1', 'norm1', x, self.features, 1, mode)
        conv = self.conv('conv2', self.features, 3, dilation=self.dilation)
        return self._finish(h, x, mode, drop_rate, conv, 'norm2')


class LegacySEBasicBlock(ResidualBlock):
    """The basic block of legacy_seresnet18 and legacy_seresnet34, as their published weights require.

    Unlike in ``BasicBlock`` and in the paper (arXiv:1709.01507), a ReLU precedes the squeeze-and-excitation, which has
    exactly C / 16 channels between its layers.
    """

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        conv = self.conv('conv1', self.features, 3, self.stride, dilation=self._first_dilation)
        h = self.normalization('norm1', mode, relu=True).after(conv, x)
        attention = SqueezeExcite(max(self.features // 16, 1), self.compute.dtype, name='attention')
        return finish_block(
            self,
            mode,
            h,
            self.shortcut_of(x, mode),
            conv=self.conv('conv2', self.features, 3, dilation=self.dilation),
            norm='norm2',
            relu_in_branch=True,
            branch=(attention, *self.drop_steps(mode, drop_rate)),
        )


class Cardinality(ResidualBlock):
    """Base class of all bottlenecks: the width of the 3x3 convolution.

    Attributes:
      cardinality: G, groups of the 3x3 convolution (Xie et al. 2017, arXiv:1611.05431, Figure 3c).
      base_width: channels per group if ``features`` is 64.
    """

    cardinality: int = 1
    base_width: int = 64
    expansion: ClassVar[int] = 4

    @property
    def inner_width(self) -> int:
        """Channels of the 3x3 convolution: ``floor(features * base_width / 64) * cardinality``.

        Raises:
          InputError: there are none.
        """
        width = self.features * self.base_width // 64 * self.cardinality
        if not width:
            raise InputError(
                f'base_width={self.base_width} is too small: a width of {self.features} leaves no channels'
            )
        return width


class BottleneckBlock(Cardinality, Antialiased):
    """1x1, 3x3 and 1x1 convolutions (He et al. 2015, Figure 5 right): ``y = relu(F(x) + shortcut(x))``.

    With ``cardinality=32, base_width=4`` it is the block of ResNeXt-50 32x4d, with ``base_width=128`` that of
    Wide ResNet-50-2.

    Attributes:
      stride_in_1x1: put the stride into the first 1x1 convolution, as in the paper (v1), instead of the 3x3
        convolution (v1.5, as in fb.resnet.torch and torchvision).
      reduce_first: ratio of the second convolution's channels to the first's: 2 in SENet-154.
      channels: None, or the output channels of the three convolutions in a pruned block.
    """

    stride_in_1x1: bool = False
    reduce_first: int = 1
    channels: tuple[int, ...] | None = None

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        inner = self.inner_width
        if not 1 <= self.reduce_first <= inner:
            raise InputError(f'reduce_first={self.reduce_first} must be from 1 to {inner} (the inner width)')
        if self.stride_in_1x1 and self.antialias != 'none':
            raise InputError(f'antialias={self.antialias!r} is not supported with stride_in_1x1=True')
        first, second, last = self.channels or (inner // self.reduce_first, inner, self.out_features)
        conv = self.conv('conv1', first, 1, self.stride if self.stride_in_1x1 else 1)
        h = self.normalization('norm1', mode, relu=True).after(conv, x)
        if self.stride_in_1x1:
            conv = self.conv('conv2', second, 3, dilation=self._first_dilation, groups=self.cardinality)
            h = self._apply_drop_block(self.normalization('norm2', mode, relu=True).after(conv, h), mode)
        else:
            h = self._strided_conv('conv2', 'norm2', h, second, self.cardinality, mode)
        return self._finish(h, x, mode, drop_rate, self.conv('conv3', last, 1), 'norm3')

    @property
    def out_features(self) -> int:
        """Number of output channels, after pruning if ``channels`` is set."""
        return self.channels[-1] if self.channels else super().out_features


class PreActivation(ResidualBlock):
    """Base class of pre-activation blocks.

    Attributes:
      first: the block follows the stem and applies its first activation before the split into branch and shortcut,
        so its shortcut is activated, too (He et al. 2016, arXiv:1603.05027, appendix).
      clean_first: keep the first block's shortcut raw nevertheless, as in timm's resnetv2_18 and resnetv2_34.
    """

    first: bool = False
    clean_first: bool = False
    pre_activation: ClassVar[bool] = True

    def _preactivation_shortcut(self, x: jax.Array, h: jax.Array, mode: Mode) -> jax.Array:
        """Applies the shortcut to the raw input ``x`` or to the activated input ``h``.

        He et al. 2016 (section 3) keep the identity path free of any operation. Where the shape changes, their code
        and that of Wide ResNet take the shortcut after the first activation, without normalization.
        """
        changes = shape_changes(x, self.out_features, self.stride)
        activated = changes or self.shortcut == 'C' or (self.first and not self.clean_first)
        return self.shortcut_of(h if activated else x, mode, normalize=False)

    def _finish(self, h: jax.Array, shortcut: jax.Array, mode: Mode, drop_rate: DropRate, conv: Conv) -> jax.Array:
        """Computes the end of the block; neither normalization nor activation follows the last convolution."""
        steps = self.drop_steps(mode, drop_rate)
        return finish_block(self, mode, h, shortcut, conv=conv, norm=None, branch=steps, relu=False)


class PreActBasicBlock(PreActivation):
    """Pre-activation basic block (He et al. 2016, arXiv:1603.05027, Figure 4e): ``y = F(x) + shortcut(x)``."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self.normalization('norm1', mode, relu=True)(x)
        shortcut = self._preactivation_shortcut(x, h, mode)
        conv = self.conv('conv1', self.features, 3, self.stride, dilation=self._first_dilation)
        h = self.normalization('norm2', mode, relu=True).after(conv, h)
        conv = self.conv('conv2', self.features, 3, dilation=self.dilation)
        return self._finish(h, shortcut, mode, drop_rate, conv)


class PreActBottleneckBlock(PreActivation, Cardinality):
    """Pre-activation bottleneck (He et al. 2016, section 4, ResNet-164 and ResNet-1001); its stride is in the 3x3."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self.normalization('norm1', mode, relu=True)(x)
        shortcut = self._preactivation_shortcut(x, h, mode)
        h = self.normalization('norm2', mode, relu=True).after(self.conv('conv1', self.inner_width, 1), h)
        conv = self.conv('conv2', self.inner_width, 3, self.stride, self._first_dilation, self.cardinality)
        h = self.normalization('norm3', mode, relu=True).after(conv, h)
        return self._finish(h, shortcut, mode, drop_rate, self.conv('conv3', self.out_features, 1))
