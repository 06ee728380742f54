"""Pooling and anti-aliasing: functions without parameters on ``[N, H, W, C]``."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.devices import match_varying_axes
from resnet_jax.errors import InputError
from resnet_jax.models.compute import explaining_forward_mode, is_constant

STEM_POOLS = {
    'max': '3x3 max pool with stride 2, padded with -inf on all sides',
    'max_zero_padded': 'the same, padded with zeros, which can be the maximum (BiT)',
    'max_ceil_mode': '3x3 max pool with stride 2, padded only at the right and bottom, if necessary (Caffe)',
    'conv': '3x3 convolution with stride 2, normalization and ReLU instead of a pool (ResNet-RS)',
}
ANTIALIAS = {
    'none': 'the stride is in the convolution or the pool',
    'blur': 'stride 1, then a binomial 3x3 filter with the stride (Zhang 2019, arXiv:1904.11486)',
    'average': 'stride 1, then an average over windows as wide as the stride; in the stem, instead of the max pool',
}


def max_pool(x: jax.Array, implementation: str = 'auto') -> jax.Array:
    """3x3 max pool with stride 2, padded with one pixel of -inf: ``[N, H, W, C]`` to ``[N, (H+1)//2, (W+1)//2, C]``.

    The gradient goes to the first maximum of each window. ``implementation`` is as in ``conv.convolution``.
    """
    if implementation == 'xla':
        return _plain_max_pool(x)
    with explaining_forward_mode():
        return _max_pool(x)


def _plain_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    return _max_pool_forward(x)[0]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns the result and the residuals: ``x`` and, on a GPU, the index of each window's maximum, uint8."""

    def without_index(y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return y, match_varying_axes(jnp.zeros_like(y, jnp.uint8), y)[0]

    y, index = lax.platform_dependent(
        x,
        cpu=lambda x: without_index(functools.reduce(jnp.maximum, _windows(x))),
        cuda=max_pool_with_index,
        default=lambda x: without_index(_plain_max_pool(x)),
    )
    return y, (x, index)


def max_pool_with_index(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the result of ``max_pool`` and the index of each window's first maximum, uint8 in row-major order."""
    best, *others = _windows(x)
    index = match_varying_axes(jnp.zeros_like(best, jnp.uint8), best)[0]
    for number, pixel in enumerate(others, 1):
        index = jnp.where(pixel > best, jnp.uint8(number), index)
        best = jnp.maximum(best, pixel)
    return best, lax.optimization_barrier(index)  # XLA would compute it again for every use


def _windows(x: jax.Array, size: int = 3, stride: int = 2, before: int = 1, fill: float = -jnp.inf) -> list[jax.Array]:
    """Returns the pixels of every window as ``size * size`` arrays ``[N, H', W', C]``, in row-major order.

    H' is ``(H - 1) // stride + 1``. The first window starts ``before`` pixels outside of the map; pixels outside have
    the value ``fill``.
    """
    spans = [(length - 1) // stride * stride for length in x.shape[1:3]]  # from the first window to the last
    edges = [(before, span + size - before - length, 0) for span, length in zip(spans, x.shape[1:3], strict=True)]
    x = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def at(row: int, column: int) -> jax.Array:
        limits = (x.shape[0], row + spans[0] + 1, column + spans[1] + 1, x.shape[3])
        return lax.slice(x, (0, row, column, 0), limits, (1, stride, stride, 1))

    return [at(row, column) for row in range(size) for column in range(size)]


def _max_pool_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array]:
    def on_cpu(x: jax.Array, index: jax.Array, dy: jax.Array) -> jax.Array:
        """Finds the maximum again by comparison, because XLA would recompute a stored index for every use.

        XLA's own gradient scatters element by element.
        """
        pixels, parts = _windows(x), []
        for number, pixel in enumerate(pixels):
            first = [pixel > other for other in pixels[:number]] + [pixel >= other for other in pixels[number + 1 :]]
            parts.append(jnp.where(functools.reduce(jnp.logical_and, first), dy, 0))
        return _spread(parts, x)

    def by_xla(x: jax.Array, index: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(_plain_max_pool, x)[1](dy)[0]

    return (lax.platform_dependent(*saved, dy, cpu=on_cpu, cuda=max_pool_gradient, default=by_xla),)


def max_pool_gradient(x: jax.Array, index: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient of ``x`` from the indices that ``max_pool_with_index`` returns; XLA's own would read ``x`` as well."""
    parts = [jnp.where(index == number, dy, 0).astype(jnp.float32) for number in range(9)]
    return _spread(parts, x).astype(x.dtype)


def _spread(parts: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Adds nine arrays ``[N, H', W', C]``, one for each position in a window, to the pixels of a map like ``x``."""
    total = jnp.zeros_like(x, parts[0].dtype)
    for number, part in enumerate(parts):
        edges = [
            (offset - 1, size + 2 - offset - 2 * windows, 1)
            for offset, size, windows in zip(divmod(number, 3), x.shape[1:3], part.shape[1:3], strict=True)
        ]
        total += lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    return total


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    """2x2 average pool: ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), C]``.

    A window that extends beyond the right or bottom edge is averaged over its pixels inside of the map
    (PyTorch: ``AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)``).
    """

    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def counts(length: int) -> jax.Array:
        """Number of pixels inside of the map, for each window along one axis."""
        return jnp.minimum(2, length - stride * jnp.arange((length - 1) // stride + 1)).astype(dtype)

    rows, columns = map(counts, x.shape[1:3])
    # A sum of shifted maps: jaxlib 0.10.2's window sum is wrong on a CPU for large maps one pixel high or wide.
    total = functools.reduce(jnp.add, _windows(x.astype(dtype), 2, stride, before=0, fill=0))
    return (total / (rows[None, :, None, None] * columns[None, None, :, None])).astype(x.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over H and W, accumulated in float32: ``[N, H, W, C]`` to float32 ``[N, C]``."""
    return x.astype(jnp.float32).mean((1, 2))


def max_pool_zero_padded(x: jax.Array) -> jax.Array:
    """3x3 max pool with stride 2, padded with one pixel of zeros, instead of -inf, on all sides."""
    return nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))


def max_pool_ceil_mode(x: jax.Array) -> jax.Array:
    """3x3 max pool with stride 2 whose first window starts at the first pixel: to ``[N, H', W', C]``.

    H' is ``max(H // 2, 1)``. The last window may extend beyond the right or bottom edge
    (PyTorch: ``MaxPool2d(3, 2, ceil_mode=True)``).
    """
    windows = [max(size // 2, 1) if is_constant([size]) else size // 2 for size in x.shape[1:3]]
    edges = [(0, 2 * count + 1 - size, 0) for count, size in zip(windows, x.shape[1:3], strict=True)]
    return nn.max_pool(lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), [(0, 0, 0), *edges, (0, 0, 0)]), (3, 3), (2, 2))


def avg_pool_3x3(x: jax.Array, stride: int) -> jax.Array:
    """3x3 average pool over the map and one pixel of zero padding (PyTorch: ``AvgPool2d(3, stride, 1)``).

    ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), C]``.
    """
    return nn.avg_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))


def avg_pool_in_place(x: jax.Array) -> jax.Array:
    """2x2 average pool with stride 1 over the map and one pixel of zero padding at the right and bottom."""
    return nn.avg_pool(x, (2, 2), (1, 1), ((0, 1), (0, 1)))


def blur(x: jax.Array, stride: int = 2) -> jax.Array:
    """Binomial 3x3 filter per channel, with reflected edges: ``[N, H, W, C]`` to ``[N, ceil(H/stride), …]``."""
    for axis in (1, 2):
        size = x.shape[axis]
        x = _reflect_pad(x, axis)
        before, at, after = (lax.slice_in_dim(x, start, start + size, stride, axis) for start in range(3))
        x = (before + after) / 4 + at / 2
    return x


def _reflect_pad(x: jax.Array, axis: int) -> jax.Array:
    """Pads both ends of an axis with one pixel by reflection; the pixel of a map of size 1 is repeated."""
    if is_constant(x.shape):
        return jnp.pad(x, [(int(axis == each),) * 2 for each in range(4)], mode='reflect')
    starts = 1, jnp.asarray(x.shape[axis] - 2)  # dynamic_slice clamps them to the map
    inner = [lax.dynamic_slice_in_dim(x, start, 1, axis) for start in starts]
    return jnp.concatenate([inner[0], x, inner[1]], axis)


def antialias(x: jax.Array, kind: str, stride: int) -> jax.Array:
    """Downsamples a feature map by a key of ``ANTIALIAS`` other than ``none``.

    ``blur`` returns ``[N, ceil(H / stride), ceil(W / stride), C]``; ``average`` drops windows that extend beyond an
    edge and returns ``[N, floor(H / stride), floor(W / stride), C]``.

    Raises:
      InputError: the map is smaller than a window of the average.
    """
    if kind == 'blur':
        return blur(x, stride)
    if is_constant(x.shape) and min(x.shape[1:3]) < stride:
        size = 'x'.join(map(str, x.shape[1:3]))
        raise InputError(f'antialias={kind!r}: height and width must be at least {stride} (the stride), found {size}')
    return nn.avg_pool(x, (stride, stride), (stride, stride))
