"""What stands around the blocks' convolutions: pooling, stems and shortcuts."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.conv import Conv
from resnet_jax.models.norm import BatchNorm

SHORTCUTS = {
    'identity': 'the input as it is; an error where the shape changes',
    'A': 'subsampling and zero channels where the shape changes: no parameters',
    'B': '1x1 convolution and normalization where the shape changes',
    'C': '1x1 convolution and normalization in every block',
    'D': '2x2 average pool, then 1x1 convolution and normalization, where the shape changes',
}
STEMS = {
    'imagenet': '7x7 convolution with stride 2, then 3x3 max-pool with stride 2',
    'cifar': '3x3 convolution with stride 1, no pool',
}


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2, padded by one pixel of -inf: ``[N, H, W, C]`` to ``[N, (H+1)//2, (W+1)//2, C]``."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def avg_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    """Average over 2x2 windows: ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), C]``.

    A window that reaches over the right or lower edge is divided by the pixels it has
    (PyTorch: ``AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)``).
    """
    overhangs = [(math.ceil(length / stride) - 1) * stride + 2 - length for length in x.shape[1:3]]
    padding = tuple((0, max(overhang, 0)) for overhang in overhangs)
    return nn.avg_pool(x, (2, 2), (stride, stride), padding, count_include_pad=False)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over H and W, accumulated in float32: ``[N, H, W, C]`` to float32 ``[N, C]``."""
    return x.astype(jnp.float32).mean((1, 2))


class Stem(nn.Module):
    """The layers before the first block.

    Attributes:
      kind: a key of STEMS.
      features: channels of the result.
      norm: normalization and ReLU after the convolution; pre-activation networks have neither.
      dtype: compute dtype.
    """

    kind: str
    features: int
    norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """``[N, H, W, 3]`` to ``[N, H', W', features]``; H' is H for ``cifar``, about H / 4 for ``imagenet``."""
        if self.kind not in STEMS:
            raise InputError(f'unknown stem {self.kind!r}; known: {", ".join(STEMS)}')
        kernel_size, stride = (7, 2) if self.kind == 'imagenet' else (3, 1)
        x = Conv(self.features, kernel_size, stride, dtype=self.dtype, name='conv')(x)
        if self.norm:
            x = BatchNorm(dtype=self.dtype, name='norm')(x, train=train, update_stats=update_stats)
            x = nn.relu(x)
        return max_pool(x) if self.kind == 'imagenet' else x


def shape_changes(x: jax.Array, features: int, stride: int) -> bool:
    """Whether a block that gives ``features`` channels at ``stride`` needs more than the identity as shortcut."""
    return stride != 1 or x.shape[-1] != features


class Shortcut(nn.Module):
    """The path around a block's layers (He et al. 2015, arXiv:1512.03385, sections 3.2 and 4.1).

    ``y = F(x) + x`` (Eq. 1) needs equal shapes; where they differ, ``y = F(x) + W_s x`` (Eq. 2). Options A, B and
    C are the paper's; D is the average-pool projection of He et al. 2018 (arXiv:1812.01187, Figure 2c).
    Option A puts half of the zero channels before and half behind the input's.

    Attributes:
      features: channels of the result.
      stride: of the block.
      kind: a key of SHORTCUTS.
      norm: normalization after the projection; pre-activation networks have none.
      dtype: compute dtype.
    """

    features: int
    stride: int = 1
    kind: str = 'B'
    norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), features]``.

        Raises:
          InputError: an unknown kind, an identity over a change of shape, or option A with fewer channels.
        """
        if self.kind not in SHORTCUTS:
            raise InputError(f'unknown shortcut {self.kind!r}; known: {", ".join(SHORTCUTS)}')
        channels, stride = x.shape[-1], self.stride
        changes = shape_changes(x, self.features, stride)
        if self.kind == 'identity' and changes:
            raise InputError(
                f'an identity shortcut cannot take {channels} channels to {self.features} at stride {stride}:'
                ' use shortcut A (zero channels), B or C (1x1 convolution) or D (average pool and 1x1 convolution)'
            )
        if self.kind == 'A' and changes:
            missing = self.features - channels
            if missing < 0:
                raise InputError(f'shortcut A cannot take {channels} channels to fewer ({self.features}): use B')
            before = missing // 2
            return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (before, missing - before)))
        if not changes and self.kind != 'C':
            return x
        if self.kind == 'D' and stride > 1:
            x, stride = avg_pool(x, stride), 1
        x = Conv(self.features, 1, stride, dtype=self.dtype, name='conv')(x)
        if self.norm:
            x = BatchNorm(dtype=self.dtype, name='norm')(x, train=train, update_stats=update_stats)
        return x
