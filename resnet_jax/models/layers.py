"""Layers around the blocks' convolutions: stems, shortcuts, stochastic depth, DropBlock."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.checks import check_choice
from resnet_jax.models.compute import Compute, Mode
from resnet_jax.models.conv import Conv
from resnet_jax.models.conv_common import subsample
from resnet_jax.models.example_norm import ExampleNorm
from resnet_jax.models.norm import NORMS, BatchNorm
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

SHORTCUTS = {
    'identity': 'the input itself; an error where the shape changes',
    'A': 'subsampling and zero channels where the shape changes: no parameters',
    'B': '1x1 convolution and normalization where the shape changes',
    'C': '1x1 convolution and normalization in every block',
    'D': '2x2 average pool, then 1x1 convolution and normalization, where the shape changes',
}
STEMS = {
    'imagenet': '7x7 convolution with stride 2, then the pool with stride 2',
    'deep': 'three 3x3 convolutions with half, half and all of the channels, the first with stride 2; then the pool',
    'tiered': 'the same with three eighths, half and all of the channels; then the pool',
    'cifar': '3x3 convolution with stride 1, no pool',
}


@dataclasses.dataclass(frozen=True)
class Normalization:
    """A normalization layer in one mode.

    Attributes:
      layer: the layer, a submodule of the module that created it.
      mode: mode of its calls.
    """

    layer: BatchNorm | ExampleNorm
    mode: Mode

    def __call__(self, x: jax.Array, shortcut: jax.Array | None = None) -> jax.Array:
        """Normalizes ``x [N, H, W, C]`` and adds the shortcut, if one is passed."""
        return self.layer(x, shortcut, train=self.mode.train, update_stats=self.mode.update_stats)

    def after(self, conv: Conv, x: jax.Array, shortcut: jax.Array | None = None) -> jax.Array:
        """The same for ``conv(x)``; both are computed together where that needs fewer passes over the feature maps."""
        layer = self.layer
        if not isinstance(layer, BatchNorm) or not _can_include(layer, conv):
            return self(conv(x), shortcut)
        mode = dataclasses.asdict(self.mode)
        return conv(x, lambda x, bound: layer(x, shortcut, bound, **mode))


def _can_include(layer: BatchNorm, conv: Conv) -> bool:
    """Whether the layer may compute ``conv(x)`` as well, which it does in its own dtype and implementation."""
    if type(conv) is not Conv or conv.use_bias:  # a subclass may compute something else
        return False
    return (jnp.dtype(conv.dtype), conv.implementation) == (jnp.dtype(layer.dtype), layer.implementation)


class Layer(nn.Module, kw_only=True):
    """Base class of modules that are built from convolutions and normalizations.

    Attributes:
      compute: how all of its layers compute.
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
        """Creates a convolution with this name; the other arguments are those of ``conv.Conv``."""
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
        """Creates a normalization with this name, as ``make_normalization`` does."""
        return make_normalization(self.compute, name, mode, relu, zero_init)


def make_normalization(
    compute: Compute, name: str, mode: Mode, relu: bool = False, zero_init: bool = False
) -> Normalization:
    """Creates a normalization layer as a submodule.

    Args:
      compute: how it computes, and which normalization it is.
      name: name of the submodule.
      mode: mode of its calls.
      relu: as in ``norm.BatchNorm``.
      zero_init: as in ``norm.BatchNorm``.

    Returns:
      The normalization in this mode.
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
    return Normalization(layer, mode)


class Stem(Layer):
    """The layers before the first block.

    Attributes:
      kind: a key of ``layers.STEMS``.
      features: number of output channels.
      activate: apply normalization and ReLU after the last convolution; False in pre-activation networks.
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
        """Maps ``[N, H, W, C]`` to ``[N, H', W', features]``; H' is H for ``cifar``, about H / 4 for the others.

        ``train`` and ``update_stats`` are as in ``norm.BatchNorm``.
        """
        mode = Mode(train, update_stats)
        check_choice('stem', self.kind, STEMS)
        features = self.features
        if self.kind in ('imagenet', 'cifar'):
            kernel_size, stride = (7, 2) if self.kind == 'imagenet' else (3, 1)
            conv = self.conv('conv', features, kernel_size, stride)
            x = self.normalization('norm', mode, relu=True).after(conv, x) if self.activate else conv(x)
        else:
            widths = (3 * features // 8 if self.kind == 'tiered' else features // 2, features // 2, features)
            for index, width in enumerate(widths, 1):
                conv = self.conv(f'conv{index}', width, 3, 2 if index == 1 else 1)
                last = index == 3 and not self.activate
                x = conv(x) if last else self.normalization(f'norm{index}', mode, relu=True).after(conv, x)
        return x if self.kind == 'cifar' else self._pool(x, mode)

    def _pool(self, x: jax.Array, mode: Mode) -> jax.Array:
        check_choice('stem_pool', self.pool, STEM_POOLS)
        check_choice('antialias', self.antialias, ANTIALIAS)
        if self.pool == 'conv':
            norm = self.normalization('pool_norm', mode, relu=True)
            if self.antialias == 'none':
                return norm.after(self.conv('pool_conv', self.features, 3, 2), x)
            return norm(antialias(self.conv('pool_conv', self.features, 3)(x), self.antialias, 2))
        if self.antialias == 'average':
            return antialias(x, 'average', 2)
        if self.antialias == 'blur':
            return antialias(nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1))), 'blur', 2)
        if self.pool == 'max_zero_padded':
            return max_pool_zero_padded(x)
        return max_pool_ceil_mode(x) if self.pool == 'max_ceil_mode' else max_pool(x, self.compute.implementation)


def shape_changes(x: jax.Array, features: int, stride: int) -> bool:
    """Whether a block with ``features`` output channels and this stride needs more than an identity shortcut."""
    return stride != 1 or x.shape[-1] != features


class Shortcut(Layer):
    """The path around a block's layers (He et al. 2015, arXiv:1512.03385, sections 3.2 and 4.1).

    ``y = F(x) + x`` (Eq. 1) requires equal shapes; where they differ, ``y = F(x) + W_s x`` (Eq. 2). Options A, B and
    C are the paper's; D is the average-pool projection of He et al. 2018 (arXiv:1812.01187, Figure 2c).
    Option A adds half of the zero channels before the input's channels and half after them.

    Attributes:
      features: number of output channels.
      stride: stride of the block.
      kind: a key of ``layers.SHORTCUTS``.
      kernel_size: kernel size of the projections B and C; always 1 where the block has neither stride nor dilation.
      dilation: dilation of the block, in pixels.
      first_dilation: dilation of the block's first 3x3 convolution, and of a projection larger than 1x1.
      normalize: normalize after the projection; False in pre-activation networks.
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
        """Maps ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), features]``.

        ``train`` and ``update_stats`` are as in ``norm.BatchNorm``.

        Raises:
          InputError: the kind is unknown, an identity shortcut would have to change the shape, or option A would have
            to reduce the channels.
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
        conv, x = self._projection(x)
        mode = Mode(train, update_stats)
        return self.normalization('norm', mode).after(conv, x) if self.normalize else conv(x)

    def _projection(self, x: jax.Array) -> tuple[Conv, jax.Array]:
        """The convolution of the projection, and its input."""
        if self.kind == 'D':
            if self.stride > 1:
                x = avg_pool(x, self.stride)
            elif self.dilation > 1:  # as in timm: the pool remains if dilation replaces its stride
                x = avg_pool_in_place(x)
            return self.conv('conv', self.features, 1), x
        if self.kernel_size == 1 or (self.stride == 1 and self.dilation == 1):
            return self.conv('conv', self.features, 1, self.stride), x
        conv = self.conv('conv', self.features, self.kernel_size, self.stride, dilation=self.first_dilation)
        return conv, x


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014): sets random values to zero and divides the others by ``1 - rate``.

    The draws are those of ``nn.Dropout``, but do not depend on ``jax_enable_x64``. The mask is a factor, because
    selecting needs arrays that are split alike under explicit mesh axes.

    Attributes:
      rate: probability of a zero, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Drops values of ``x``, of any shape; needs the random key ``dropout``."""
        kept = jax.random.bernoulli(self.make_rng('dropout'), jnp.float32(1 - self.rate), x.shape)
        return x * (kept.astype(x.dtype) / jnp.asarray(1 - self.rate, x.dtype))


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): drops the branch of randomly chosen examples.

    Args:
      x: ``[N, H, W, C]``, the output of a branch.
      rate: probability of dropping an example's branch, in [0, 1).
      key: a typed PRNG key.

    Returns:
      ``[N, H, W, C]``: zero for the dropped examples, ``x / (1 - rate)`` for the others.
    """
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, (x.shape[0], 1, 1, 1))
    return x * (kept / keep).astype(x.dtype)


def drop_block(x: jax.Array, rate: float, size: int, scale: float, key: jax.Array) -> jax.Array:
    """DropBlock (Ghiasi et al. 2018, arXiv:1810.12890): sets random squares to zero, the same ones in all channels.

    Args:
      x: ``[N, H, W, C]``.
      rate: approximate fraction of pixels to drop, in [0, 1), before ``scale``; overlapping squares reduce it.
      size: side length of the squares, in pixels; clipped to the size of the map.
      scale: factor on the probability that a square starts at a pixel, as in timm.
      key: a typed PRNG key.

    Returns:
      ``[N, H, W, C]``, rescaled by the inverse of the fraction of pixels kept in the batch.
    """
    height, width = x.shape[1:3]
    rows, columns = min(size, height), min(size, width)
    starts = height - rows + 1, width - columns + 1  # where a whole square fits, as in the paper's Algorithm 1
    gamma = scale * rate * height * width / (rows * columns * math.prod(starts))
    seeds = jax.random.bernoulli(key, jnp.float32(gamma), (x.shape[0], *starts, 1)).astype(jnp.float32)
    padding = [(side - 1, side - 1) for side in (rows, columns)]
    keep = 1 - nn.max_pool(seeds, (rows, columns), (1, 1), padding)
    return x * (keep / jnp.maximum(keep.mean(), 1e-7)).astype(x.dtype)
