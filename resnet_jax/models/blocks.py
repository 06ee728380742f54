"""Residual blocks, and the plain block they are compared with.

All take ``[N, H, W, C]`` and give ``[N, ceil(H / stride), ceil(W / stride), features * expansion]``, whatever C is.
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

# Probability that stochastic depth drops a branch: a number, or traced.
DropRate = float | jax.Array
# What follows the last normalization on a branch.
Steps = tuple[Callable[[jax.Array], jax.Array], ...]


class Block(Layer):
    """What every block has; each subclass adds its options as fields, and the order of its layers in ``forward``.

    Subclasses from outside go wherever a block's name does: ``create_model('resnet20', block=MyBlock)``.

    Attributes:
      features: width of the stage: 64, 128, 256, 512 in the ImageNet forms.
      stride: of the block, in one of its convolutions and in its shortcut.
      dilation: of the block's 3x3 convolutions, in pixels.
      first_dilation: that of the first of them; None for ``dilation``.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int | None = None

    # Output channels are features * expansion; pre_activation tells the network where its own last ReLU belongs.
    expansion: ClassVar[int] = 1
    pre_activation: ClassVar[bool] = False

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, update_stats: bool | None = None, drop_rate: DropRate = 0.0
    ) -> jax.Array:
        """One block.

        Args:
          x: ``[N, H, W, C]``.
          train: as in ``norm.BatchNorm``, like ``update_stats``.
          update_stats: see there.
          drop_rate: probability that ``layers.drop_path`` drops the branch in training, with the random stream
            ``dropout``; a float, or a traced number.

        Returns:
          ``[N, ceil(H / stride), ceil(W / stride), out_features]``.
        """
        return self.forward(x, Mode(train, update_stats), drop_rate)

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        """The layers in their order: ``[N, H, W, C]`` to the block's result; as ``__call__``."""
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Channels of the result."""
        return self.features * self.expansion

    @property
    def _first_dilation(self) -> int:
        return self.dilation if self.first_dilation is None else self.first_dilation


def _drops(mode: Mode, drop_rate: DropRate) -> bool:
    """Whether stochastic depth is on; a traced rate is."""
    return mode.train and not (isinstance(drop_rate, int | float) and drop_rate == 0)


class PlainBlock(Block):
    """Two 3x3 convolutions without a shortcut, the control of He et al. 2015 (arXiv:1512.03385, section 3.3)."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        if _drops(mode, drop_rate):
            raise InputError('drop_path_rate is not supported by a plain block, which has no shortcut')
        h = self.conv('conv1', self.features, 3, self.stride, dilation=self._first_dilation)(x)
        h = self.normalization('norm1', mode, relu=True)(h)
        conv = self.conv('conv2', self.features, 3, dilation=self.dilation)
        return finish_block(self, mode, h, None, conv=conv, norm='norm2')


class ResidualBlock(Block):
    """A block with a shortcut.

    Attributes:
      shortcut: a key of ``layers.SHORTCUTS``.
    """

    shortcut: str = 'B'

    def shortcut_of(self, x: jax.Array, mode: Mode, kernel_size: int = 1, normalize: bool = True) -> jax.Array:
        """The input as the shortcut has it; the options are ``layers.Shortcut``'s."""
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
        """Stochastic depth, the last step of a branch; nothing where it is off."""
        if not _drops(mode, drop_rate):
            return ()
        return (lambda h: drop_path(h, drop_rate, self.make_rng('dropout')),)


class PostActivation(ResidualBlock):
    """A block in the order of 2015: the activation follows the addition of branch and shortcut.

    Attributes:
      shortcut_kernel_size: of a projection where the block has a stride: 3 in SENet-154.
      attention: a key of ``attention.ATTENTIONS``, on the branch before the addition.
      se_ratio: the share of channels between the two layers of squeeze and excitation.
      drop_block: None, or rate, size and scale of ``layers.drop_block`` after the strided 3x3 convolution.
      zero_init_last: the branch's last normalization starts with scale zero, and so the block as relu(shortcut).
    """

    shortcut_kernel_size: int = 1
    attention: str = 'none'
    se_ratio: float = 1 / 16
    drop_block: tuple[float, int, float] | None = None
    zero_init_last: bool = False

    def _with_blocks_dropped(self, h: jax.Array, mode: Mode) -> jax.Array:
        if self.drop_block is None or not self.drop_block[0] or not mode.train:
            return h
        return drop_block(h, *self.drop_block, self.make_rng('dropout'))

    def _finish(self, h: jax.Array, x: jax.Array, mode: Mode, drop_rate: DropRate, conv: Conv, norm: str) -> jax.Array:
        """The end of the block: ``h`` is the branch in front of its last convolution, ``x`` the block's input."""
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
        """Attention over so many channels; nothing where there is none."""
        check_choice('attention', self.attention, ATTENTIONS)
        if self.attention == 'se':
            reduced = make_divisible(channels * self.se_ratio)
            return (SqueezeExcite(reduced, self.compute.dtype, name='attention'),)
        if self.attention == 'eca':
            whole = self.features * self.expansion  # a pruned network keeps the width of the whole one
            return (EfficientChannelAttention(whole, self.compute.dtype, name='attention'),)
        return ()


class Antialiased(PostActivation):
    """A block whose 3x3 convolution has the stride, or leaves it to a filter.

    Attributes:
      antialias: a key of ``pooling.ANTIALIAS``.
    """

    antialias: str = 'none'

    def _strided(self, name: str, norm: str, x: jax.Array, features: int, groups: int, mode: Mode) -> jax.Array:
        """The 3x3 convolution that has the block's stride, with normalization, ReLU, DropBlock and anti-aliasing."""
        check_choice('antialias', self.antialias, ANTIALIAS)
        dilation = self._first_dilation
        filtered = self.antialias != 'none' and (self.stride > 1 or dilation != self.dilation)
        if filtered and self.antialias == 'average' and any(size % self.stride for size in x.shape[1:3]):
            size = 'x'.join(map(str, x.shape[1:3]))  # averages would leave fewer pixels than the shortcut has
            raise InputError(
                f"antialias='average': height and width must be multiples of {self.stride} (the stride), found {size}"
            )
        stride = 1 if filtered else self.stride
        h = self.normalization(norm, mode, relu=True)(
            self.conv(name, features, 3, stride, dilation=dilation, groups=groups)(x)
        )
        h = self._with_blocks_dropped(h, mode)
        return antialias(h, self.antialias, self.stride) if filtered else h


class BasicBlock(Antialiased):
    """Two 3x3 convolutions (He et al. 2015, arXiv:1512.03385, Figure 5 left): ``y = relu(F(x) + shortcut(x))``."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self._strided('conv1', 'norm1', x, self.features, 1, mode)
        conv = self.conv('conv2', self.features, 3, dilation=self.dilation)
        return self._finish(h, x, mode, drop_rate, conv, 'norm2')


class LegacySEBasicBlock(ResidualBlock):
    """The basic block of legacy_seresnet18 and 34: a ReLU more, in front of the gate, which has C / 16 channels.

    Their published weights depend on both, which the paper (arXiv:1709.01507) does not have.
    """

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self.conv('conv1', self.features, 3, self.stride, dilation=self._first_dilation)(x)
        h = self.normalization('norm1', mode, relu=True)(h)
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
    """The width of the 3x3 convolution, common to all orders of the bottleneck.

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
            raise InputError(
                f'base_width={self.base_width} is too small: a width of {self.features} leaves no channels'
            )
        return width


class BottleneckBlock(Cardinality, Antialiased):
    """1x1, 3x3 and 1x1 convolutions (He et al. 2015, Figure 5 right): ``y = relu(F(x) + shortcut(x))``.

    With ``cardinality=32, base_width=4`` it is the block of ResNeXt-50 32x4d, with ``base_width=128`` that of
    Wide ResNet-50-2.

    Attributes:
      stride_in_1x1: the stride is in the first 1x1 convolution, as in the paper (v1); by default it is in the 3x3
        (v1.5, as in fb.resnet.torch and torchvision).
      reduce_first: the first convolution has so many times fewer channels than the second: 2 in SENet-154.
      channels: None, or the output channels of the three convolutions of a pruned block.
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
        h = self.conv('conv1', first, 1, self.stride if self.stride_in_1x1 else 1)(x)
        h = self.normalization('norm1', mode, relu=True)(h)
        if self.stride_in_1x1:
            h = self.conv('conv2', second, 3, dilation=self._first_dilation, groups=self.cardinality)(h)
            h = self._with_blocks_dropped(self.normalization('norm2', mode, relu=True)(h), mode)
        else:
            h = self._strided('conv2', 'norm2', h, second, self.cardinality, mode)
        return self._finish(h, x, mode, drop_rate, self.conv('conv3', last, 1), 'norm3')

    @property
    def out_features(self) -> int:
        """As ``Block.out_features``, or what pruning left."""
        return self.channels[-1] if self.channels else super().out_features


class PreActivation(ResidualBlock):
    """The shortcut that both pre-activation blocks have.

    Attributes:
      first: the block follows the stem: its activation comes before the split (He et al. 2016, arXiv:1603.05027,
        appendix), so that its shortcut is activated, too.
      clean_first: that block's shortcut stays raw all the same, as in timm's resnetv2_18 and 34.
    """

    first: bool = False
    clean_first: bool = False
    pre_activation: ClassVar[bool] = True

    def _activated_or_raw(self, x: jax.Array, h: jax.Array, mode: Mode) -> jax.Array:
        """The raw input ``x``, or a projection of the activated one, ``h``.

        He et al. 2016 (section 3) keep the identity path clean of any operation; where the shape changes, their code
        and Wide ResNet's take the shortcut behind the first activation, without normalization.
        """
        changes = shape_changes(x, self.out_features, self.stride)
        activated = changes or self.shortcut == 'C' or (self.first and not self.clean_first)
        return self.shortcut_of(h if activated else x, mode, normalize=False)

    def _finish(self, h: jax.Array, shortcut: jax.Array, mode: Mode, drop_rate: DropRate, conv: Conv) -> jax.Array:
        """The end of the block: neither normalization nor activation follow the last convolution."""
        steps = self.drop_steps(mode, drop_rate)
        return finish_block(self, mode, h, shortcut, conv=conv, norm=None, branch=steps, relu=False)


class PreActBasicBlock(PreActivation):
    """Pre-activation of the basic block (He et al. 2016, arXiv:1603.05027, Figure 4e): ``y = F(x) + shortcut(x)``."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self.normalization('norm1', mode, relu=True)(x)
        shortcut = self._activated_or_raw(x, h, mode)
        h = self.conv('conv1', self.features, 3, self.stride, dilation=self._first_dilation)(h)
        h = self.normalization('norm2', mode, relu=True)(h)
        conv = self.conv('conv2', self.features, 3, dilation=self.dilation)
        return self._finish(h, shortcut, mode, drop_rate, conv)


class PreActBottleneckBlock(PreActivation, Cardinality):
    """Pre-activation of the bottleneck (He et al. 2016, section 4, ResNet-164 and 1001); stride in the 3x3."""

    def forward(self, x: jax.Array, mode: Mode, drop_rate: DropRate) -> jax.Array:
        h = self.normalization('norm1', mode, relu=True)(x)
        shortcut = self._activated_or_raw(x, h, mode)
        h = self.normalization('norm2', mode, relu=True)(self.conv('conv1', self.inner_width, 1)(h))
        h = self.conv('conv2', self.inner_width, 3, self.stride, self._first_dilation, self.cardinality)(h)
        h = self.normalization('norm3', mode, relu=True)(h)
        return self._finish(h, shortcut, mode, drop_rate, self.conv('conv3', self.out_features, 1))
