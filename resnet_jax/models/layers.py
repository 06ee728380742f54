"""What stands around the blocks' convolutions: stems, shortcuts, and what training drops at random."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.checks import check_choice
from resnet_jax.models.compute import Compute, Mode
from resnet_jax.models.conv import Conv
from resnet_jax.models.conv_common import subsample
from resnet_jax.models.norm import NORMS, BatchNorm, ExampleNorm
from resnet_jax.models.pooling import (
    ANTIALIAS,
    STEM_POOLS,
    antialias,
    avg_pool,
    avg_pool_in_place,
    max_pool,
    max_pool_ceil_mode,
    max_pool_zero_padded,
)

# A map and, or not, the shortcut to add to it.
Normalization = Callable[..., jax.Array]

SHORTCUTS = {
    'identity': 'the input as it is; an error where the shape changes',
    'A': 'subsampling and zero channels where the shape changes: no parameters',
    'B': '1x1 convolution and normalization where the shape changes',
    'C': '1x1 convolution and normalization in every block',
    'D': '2x2 average pool, then 1x1 convolution and normalization, where the shape changes',
}
STEMS = {
    'imagenet': '7x7 convolution with stride 2, then the pool with stride 2',
    'deep': 'three 3x3 convolutions, the first with stride 2, of half, half and all channels; then the pool',
    'tiered': 'the same with three eighths, half and all channels; then the pool',
    'cifar': '3x3 convolution with stride 1, no pool',
}


class Layer(nn.Module, kw_only=True):
    """What everything that is built of convolutions and normalizations shares.

    Attributes:
      compute: how, in all of its layers.
    """

    compute: Compute = Compute()

    def conv(
        self,
        name: str,
        features: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = False,
    ) -> Conv:
        """A convolution of this name; the rest is ``conv.Conv``'s."""
        return Conv(
            features,
            kernel_size,
            stride,
            dilation,
            groups,
            use_bias,
            self.compute.standardize,
            self.compute.dtype,
            self.compute.implementation,
            name=name,
        )

    def normalization(self, name: str, mode: Mode, relu: bool = False, zero_init: bool = False) -> Normalization:
        """A normalization of this name, as ``make_normalization``."""
        return make_normalization(self.compute, name, mode, relu, zero_init)


def make_normalization(
    compute: Compute, name: str, mode: Mode, relu: bool = False, zero_init: bool = False
) -> Normalization:
    """A submodule that normalizes, in one mode, as a function of a map and of a shortcut to add.

    Args:
      compute: how; says also which normalization.
      name: of the submodule.
      mode: of the call.
      relu: as in ``norm.BatchNorm``.
      zero_init: see there.
    """
    kind = NORMS[compute.norm]
    layer: BatchNorm | ExampleNorm
    if issubclass(kind, BatchNorm):
        layer = kind(
            zero_init=zero_init,
            relu=relu,
            statistics=compute.statistics,
            dtype=compute.dtype,
            implementation=compute.implementation,
            axis_name=compute.axis_name,
            name=name,
        )
    else:
        layer = kind(zero_init=zero_init, relu=relu, dtype=compute.dtype, name=name)
    return lambda x, shortcut=None: layer(x, shortcut, train=mode.train, update_stats=mode.update_stats)


class Stem(Layer):
    """The layers before the first block.

    Attributes:
      kind: a key of STEMS.
      features: channels of the result.
      activate: normalization and ReLU after the last convolution; pre-activation networks have neither.
      pool: a key of ``pooling.STEM_POOLS``.
      antialias: a key of ``pooling.ANTIALIAS``, for the pool.
    """

    kind: str
    features: int
    activate: bool = True
    pool: str = 'max'
    antialias: str = 'none'

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """``[N, H, W, 3]`` to ``[N, H', W', features]``; H' is H for ``cifar``, about H / 4 for the others."""
        mode = Mode(train, update_stats)
        check_choice('stem', self.kind, STEMS)
        features = self.features
        if self.kind in ('imagenet', 'cifar'):
            kernel_size, stride = (7, 2) if self.kind == 'imagenet' else (3, 1)
            x = self.conv('conv', features, kernel_size, stride)(x)
            x = self.normalization('norm', mode, relu=True)(x) if self.activate else x
        else:
            widths = (3 * features // 8 if self.kind == 'tiered' else features // 2, features // 2, features)
            for index, width in enumerate(widths, 1):
                x = self.conv(f'conv{index}', width, 3, 2 if index == 1 else 1)(x)
                if index < 3 or self.activate:
                    x = self.normalization(f'norm{index}', mode, relu=True)(x)
        return x if self.kind == 'cifar' else self._pooled(x, mode)

    def _pooled(self, x: jax.Array, mode: Mode) -> jax.Array:
        check_choice('stem_pool', self.pool, STEM_POOLS)
        check_choice('antialias', self.antialias, ANTIALIAS)
        if self.pool == 'conv':
            x = self.conv('pool_conv', self.features, 3, 2 if self.antialias == 'none' else 1)(x)
            x = x if self.antialias == 'none' else antialias(x, self.antialias, 2)
            return self.normalization('pool_norm', mode, relu=True)(x)
        if self.antialias == 'average':
            return antialias(x, 'average', 2)
        if self.antialias == 'blur':
            return antialias(nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))), 'blur', 2)
        if self.pool == 'max_zero_padded':
            return max_pool_zero_padded(x)
        return max_pool_ceil_mode(x) if self.pool == 'max_ceil_mode' else max_pool(x, self.compute.implementation)


def shape_changes(x: jax.Array, features: int, stride: int) -> bool:
    """Whether a block that gives ``features`` channels at ``stride`` needs more than the identity as shortcut."""
    return stride != 1 or x.shape[-1] != features


class Shortcut(Layer):
    """The path around a block's layers (He et al. 2015, arXiv:1512.03385, sections 3.2 and 4.1).

    ``y = F(x) + x`` (Eq. 1) needs equal shapes; where they differ, ``y = F(x) + W_s x`` (Eq. 2). Options A, B and
    C are the paper's; D is the average-pool projection of He et al. 2018 (arXiv:1812.01187, Figure 2c).
    Option A puts half of the zero channels before and half behind the input's.

    Attributes:
      features: channels of the result.
      stride: of the block.
      kind: a key of SHORTCUTS.
      kernel_size: of the projections B and C; it is 1 all the same where the block has neither stride nor dilation.
      dilation: of the block.
      first_dilation: of the block's first 3x3 convolution, and of a projection of more than one pixel.
      normalize: normalization after the projection; pre-activation networks have none.
    """

    features: int
    stride: int = 1
    kind: str = 'B'
    kernel_size: int = 1
    dilation: int = 1
    first_dilation: int = 1
    normalize: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), features]``.

        Raises:
          InputError: an unknown kind, an identity over a change of shape, or option A with fewer channels.
        """
        check_choice('shortcut', self.kind, SHORTCUTS)
        channels, stride = x.shape[-1], self.stride
        changes = shape_changes(x, self.features, stride)
        if self.kind == 'identity' and changes:
            raise InputError(
                f'an identity shortcut cannot map {channels} channels to {self.features} at stride {stride};'
                ' use shortcut A (zero channels), B or C (1x1 convolution) or D (average pool and 1x1 convolution)'
            )
        if self.kind == 'A' and changes:
            missing = self.features - channels
            if missing < 0:
                raise InputError(f'shortcut A cannot reduce {channels} channels to {self.features}; use shortcut B')
            before = missing // 2
            return jnp.pad(subsample(x, stride), ((0, 0), (0, 0), (0, 0), (before, missing - before)))
        if not changes and self.kind != 'C':
            return x
        x = self._projected(x)
        mode = Mode(train, update_stats)
        return self.normalization('norm', mode)(x) if self.normalize else x

    def _projected(self, x: jax.Array) -> jax.Array:
        if self.kind == 'D':
            if self.stride > 1:
                x = avg_pool(x, self.stride)
            elif self.dilation > 1:  # as timm: the pool stays where its stride has become a dilation
                x = avg_pool_in_place(x)
            return self.conv('conv', self.features, 1)(x)
        if self.kernel_size == 1 or (self.stride == 1 and self.dilation == 1):
            return self.conv('conv', self.features, 1, self.stride)(x)
        return self.conv('conv', self.features, self.kernel_size, self.stride, dilation=self.first_dilation)(x)


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): a branch is zero for a share of the examples.

    Args:
      x: ``[N, H, W, C]``, what a branch adds to its shortcut.
      rate: probability of zero, in [0, 1).
      key: a typed key.

    Returns:
      ``x / (1 - rate)``, or zero, for each example alone.
    """
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, (x.shape[0], 1, 1, 1))
    return x * (kept / keep).astype(x.dtype)


def drop_block(x: jax.Array, rate: float, size: int, scale: float, key: jax.Array) -> jax.Array:
    """DropBlock (Ghiasi et al. 2018, arXiv:1810.12890): squares of a map are zero, the same in all channels.

    Args:
      x: ``[N, H, W, C]``.
      rate: about the share of pixels to drop, in [0, 1), before ``scale``; squares that overlap make it less.
      size: side of a square, in pixels; at most the map's.
      scale: factor on the probability that a square starts somewhere, as timm has it.
      key: a typed key.

    Returns:
      ``[N, H, W, C]``, scaled so that the mean over the batch's pixels stays.
    """
    height, width = x.shape[1:3]
    rows, columns = min(size, height), min(size, width)
    starts = height - rows + 1, width - columns + 1  # where a whole square fits, as in the paper's Algorithm 1
    gamma = scale * rate * height * width / (rows * columns * math.prod(starts))
    seeds = jax.random.bernoulli(key, gamma, (x.shape[0], *starts, 1)).astype(jnp.float32)
    padding = [(side - 1, side - 1) for side in (rows, columns)]
    keep = 1 - nn.max_pool(seeds, (rows, columns), (1, 1), padding)
    return x * (keep / jnp.maximum(keep.mean(), 1e-7)).astype(x.dtype)
