"""Helpers that the platforms' convolutions share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def pad(size: int, dilation: int) -> int:
    """Returns the padding on each side, in pixels, for a kernel of this size."""
    return (size - 1) // 2 * dilation


def plain(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int = 1) -> jax.Array:
    """XLA's own convolution, with the padding of ``conv.convolution``."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(pad(size, dilation),) * 2 for size in kernel.shape[:2]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def subsample(x: jax.Array, stride: int) -> jax.Array:
    """Takes every stride-th pixel along H and W: ``[N, (H - 1) // stride + 1, (W - 1) // stride + 1, C]``.

    Equals ``x[:, ::stride, ::stride]``, but gives symbolic sizes the same form as a convolution does.
    """
    return x if stride == 1 else lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))


def dense_blocks(kernel: jax.Array, groups: int, channels: int) -> jax.Array:
    """Converts a grouped kernel to dense ones, each for several consecutive groups, with zeros between the groups.

    Args:
      kernel: ``[kh, kw, C / G, C_out]``.
      groups: G.
      channels: maximum number of input channels per block; a single group may have more.

    Returns:
      ``[blocks, kh, kw, C / blocks, C_out / blocks]``.
    """
    kh, kw, inputs, outputs = *kernel.shape[:3], kernel.shape[3] // groups
    together = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * inputs <= channels))
    columns = kernel.reshape(kh, kw, inputs, groups // together, together * outputs).transpose(3, 0, 1, 2, 4)
    diagonal = np.kron(np.eye(together), np.ones((inputs, outputs))) == 1
    return jnp.where(diagonal[None, None, None], jnp.tile(columns, (1, 1, 1, together, 1)), 0)


def convolve_blocks(
    convolve: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, kernel: jax.Array, groups: int, channels: int
) -> jax.Array:
    """Computes a grouped convolution by ``convolve(part, block)`` for each of the ``dense_blocks``."""
    blocks = dense_blocks(kernel, groups, channels)
    parts = lax.split(x, [blocks.shape[3]] * len(blocks), 3)
    return jnp.concatenate([convolve(part, block) for part, block in zip(parts, blocks, strict=True)], 3)
