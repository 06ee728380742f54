"""What stands around the blocks' convolutions: pooling, stems and shortcuts."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

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


def max_pool(x: jax.Array, implementation: str = 'auto') -> jax.Array:
    """3x3 maximum with stride 2, padded by one pixel of -inf: ``[N, H, W, C]`` to ``[N, (H+1)//2, (W+1)//2, C]``.

    The gradient goes to the first maximum of each window. ``implementation`` is that of ``conv.convolution``.
    """
    return _plain_max_pool(x) if implementation == 'xla' else _max_pool(x)


def _plain_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, cpu=lambda x: functools.reduce(jnp.maximum, _windows(x)), default=_plain_max_pool)


def _windows(x: jax.Array) -> list[jax.Array]:
    """The nine pixels of every 3x3 window at stride 2, in row-major order."""
    height, width = ((size + 1) // 2 * 2 for size in x.shape[1:3])
    bottom, right = height - x.shape[1] + 1, width - x.shape[2] + 1
    x = jnp.pad(x, ((0, 0), (1, bottom), (1, right), (0, 0)), constant_values=-jnp.inf)
    return [x[:, u : u + height - 1 : 2, v : v + width - 1 : 2] for u in range(3) for v in range(3)]


def _max_pool_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    def on_cpu(x: jax.Array, dy: jax.Array) -> jax.Array:
        """XLA scatters element by element; here each of a window's nine places sends dy where it is the maximum.

        Whether it is, is compared anew, since XLA would compute a stored winner again for every use of it.
        """
        pixels = _windows(x)
        dx = jnp.zeros_like(x)
        for place, pixel in enumerate(pixels):
            first = [pixel > other for other in pixels[:place]] + [pixel >= other for other in pixels[place + 1 :]]
            part = jnp.where(functools.reduce(jnp.logical_and, first), dy, 0)
            edges = [
                (offset - 1, size + 2 - offset - 2 * windows, 1)
                for offset, size, windows in zip(divmod(place, 3), x.shape[1:3], dy.shape[1:3], strict=True)
            ]
            dx += lax.pad(part, jnp.zeros((), dy.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        return dx

    def by_xla(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(_plain_max_pool, x)[1](dy)[0]

    return (lax.platform_dependent(x, dy, cpu=on_cpu, default=by_xla),)


_max_pool.defvjp(lambda x: (_max_pool(x), x), _max_pool_backward)


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
      implementation: ``auto`` or ``xla``, as in ``conv.convolution``.
      statistics: as in ``norm.BatchNorm``.
    """

    kind: str
    features: int
    norm: bool = True
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    statistics: str | int = 'global'

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """``[N, H, W, 3]`` to ``[N, H', W', features]``; H' is H for ``cifar``, about H / 4 for ``imagenet``."""
        if self.kind not in STEMS:
            raise InputError(f'unknown stem {self.kind!r}; known: {", ".join(STEMS)}')
        kernel_size, stride = (7, 2) if self.kind == 'imagenet' else (3, 1)
        how: dict[str, Any] = {'dtype': self.dtype, 'implementation': self.implementation}
        x = Conv(self.features, kernel_size, stride, **how, name='conv')(x)
        if self.norm:
            x = BatchNorm(relu=True, statistics=self.statistics, **how, name='norm')(
                x, train=train, update_stats=update_stats
            )
        return max_pool(x, self.implementation) if self.kind == 'imagenet' else x


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
      implementation: ``auto`` or ``xla``, as in ``conv.convolution``.
      statistics: as in ``norm.BatchNorm``.
    """

    features: int
    stride: int = 1
    kind: str = 'B'
    norm: bool = True
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    statistics: str | int = 'global'

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
        how: dict[str, Any] = {'dtype': self.dtype, 'implementation': self.implementation}
        x = Conv(self.features, 1, stride, **how, name='conv')(x)
        if self.norm:
            x = BatchNorm(statistics=self.statistics, **how, name='norm')(x, train=train, update_stats=update_stats)
        return x
