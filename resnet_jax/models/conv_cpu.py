"""Convolutions in forms that XLA's CPU backend computes fast.

XLA turns the gradients of a convolution into convolutions over transposed copies of both operands, and those copies
take a third of a ResNet-50's step; strided gradients go to a partly serial kernel, grouped ones to one whose work grows
with the square of the groups. The forms here need neither, and hold for every size, stride and dilation.

Which is taken, and what decided it: milliseconds of one float32 call on two Zen 5 cores, XLA's own form beside it.

    what                        form                                                   here   XLA   case
    1x1                         matrix product over the pixels                          2.2   3.8   64 to 256, 32x32
    1x1, kernel gradient        the same, transposed                                    5.7  14.6   256 to 64, 32x32
    3x3                         Winograd, from 64 channels and enough tiles on          2.4   3.7   256, 8x8
    3x3, kernel gradient        Winograd, from 128 channels on                          2.9   5.8   256, 8x8
    stride 1, kernel gradient   columns of x times rows of dy: all taps in one product  8.6  11.3   64, 32x32
    strided, input gradient     a convolution for each phase of the pixels
    strided, kernel gradient    a product for each tap
    stem, kernel gradient       stride 1 on blocks of s x s pixels as channels
    to 16 channels, stride 1    two or four neighbouring pixels as channels             5.5   7.5   16, 32x32 (*)
    the rest                    convolution, input gradient with the flipped kernel

The batch is 16; (*) 128, on one core. The forms without a time were taken for the transposed copies that they avoid;
all together, with the gradients of ``norm.py``, they take a training step of ResNet-50 from 1,424 to 603 ms.
``docs/performance.md`` has whole networks, and what did not pay.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models import winograd
from resnet_jax.models.conv_common import LAYOUT, pad, plain, subsample

_STEM_CHANNELS = 4  # up to so many channels, strided kernel gradients take pixels as channels
_WINOGRAD_CHANNELS = 64  # from so many channels on, in and out
_WINOGRAD_GRADIENT_CHANNELS = 128
_FEW_CHANNELS = 16  # up to so many output channels, neighbouring pixels are computed together:
_NEIGHBOURS = ((4, 4), (16, 2))  # (input channels at most, pixels)
BLOCK = 32  # channels of the dense blocks of a grouped convolution


def forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """The convolution: ``x [N, H, W, C]``, ``kernel [kh, kw, C, C_out]``."""
    if kernel.shape[:2] == (1, 1):
        x = subsample(x, stride)
        return (_pixels(x) @ kernel[0, 0]).reshape(*x.shape[:3], kernel.shape[3])
    if _suits_winograd(x.shape, kernel, stride, dilation, _WINOGRAD_CHANNELS):
        return winograd.convolution(x, kernel)
    if stride == dilation == 1:
        return _by_neighbours(x, kernel, [(pad(size, 1),) * 2 for size in kernel.shape[:2]])
    return plain(x, kernel, stride, dilation)


def gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, jax.Array]:
    """Gradients with respect to ``x`` and ``kernel``, given ``dy [N, H_out, W_out, C_out]``."""
    return _input_gradient(x, kernel, dy, stride, dilation), _kernel_gradient(x, kernel, dy, stride, dilation)


def _by_neighbours(x: jax.Array, kernel: jax.Array, padding: list[tuple[int, int]]) -> jax.Array:
    """A convolution with stride 1 that gives p neighbouring pixels of a row at once, as p times as many channels.

    Its kernel has p - 1 more columns, zero where a pixel does not look, and its stride is p. XLA's fast kernel takes
    convolutions with more than 16 channels, and more output channels keep it busier.
    """
    kw, channels, features = kernel.shape[1:]
    width = x.shape[2] + sum(padding[1]) - kw + 1
    pixels = next((p for most, p in _NEIGHBOURS if channels <= most), 1) if features <= _FEW_CHANNELS else 1
    if width % pixels:
        pixels = 1
    shifted = [jnp.pad(kernel, ((0, 0), (p, pixels - 1 - p), (0, 0), (0, 0))) for p in range(pixels)]
    wide = jnp.stack(shifted, 3).reshape(kernel.shape[0], kw + pixels - 1, channels, pixels * features)
    y = lax.conv_general_dilated(x, wide, (1, pixels), padding, dimension_numbers=LAYOUT)
    return y.reshape(x.shape[0], y.shape[1], width, features)


def _suits_winograd(shape: tuple[int, ...], kernel: jax.Array, stride: int, dilation: int, channels: int) -> bool:
    """Enough channels for the products to pay the patches' transform, enough tiles to pay the kernel's."""
    if kernel.shape[:2] != (3, 3) or stride > 1 or dilation > 1 or kernel.dtype != jnp.float32:
        return False
    tiles = shape[0] * math.ceil(shape[1] / 2) * math.ceil(shape[2] / 2)
    return min(kernel.shape[2:]) >= channels and tiles >= max(kernel.shape[2:])


def _pixels(x: jax.Array) -> jax.Array:
    """``[N, H, W, C]`` to ``[N H W, C]``."""
    return x.reshape(-1, x.shape[-1])


def _transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a^T b`` of ``[P, A]`` and ``[P, B]``, without a transposed copy."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _flip(kernel: jax.Array) -> jax.Array:
    """The kernel of the transposed convolution: taps reversed, channels exchanged."""
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2)


def _input_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, dilation: int) -> jax.Array:
    shape, (kh, kw) = x.shape, kernel.shape[:2]
    if kh == kw == 1:
        dx = (_pixels(dy) @ kernel[0, 0].T).reshape(*dy.shape[:3], shape[3])
        rest = [size - 1 - stride * (out - 1) for size, out in zip(shape[1:3], dy.shape[1:3], strict=True)]
        spread = [(0, rest[0], stride - 1), (0, rest[1], stride - 1)]
        return dx if stride == 1 else lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    if _suits_winograd(shape, kernel, stride, dilation, _WINOGRAD_CHANNELS):
        return winograd.convolution(dy, kernel, transposed=True)
    if stride == 1:
        padding = [
            (dilation * (k - 1) - pad(k, dilation), size - out + pad(k, dilation))
            for k, size, out in zip((kh, kw), shape[1:3], dy.shape[1:3], strict=True)
        ]
        if dilation == 1:
            return _by_neighbours(dy, _flip(kernel), padding)
        return lax.conv_general_dilated(
            dy, _flip(kernel), (1, 1), padding, rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT
        )
    if dilation == 1:
        return _input_gradient_by_phases(shape, kernel, dy, stride)
    return jax.vjp(lambda x: plain(x, kernel, stride, dilation), x)[1](dy)[0]


def _input_gradient_by_phases(shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    """The pixels ``stride q + a`` of dx see only every stride-th tap: a stride-1 convolution for each phase a."""
    batch, height, width, channels = shape
    quotients = [math.ceil(height / stride), math.ceil(width / stride)]

    def along(phase: int, axis: int) -> tuple[slice, tuple[int, int]] | None:
        """The taps that reach a phase, and the padding of dy, along H (0) or W (1)."""
        size, out = kernel.shape[axis], dy.shape[1 + axis]
        first = (phase + pad(size, 1)) % stride
        count = len(range(first, size, stride))
        last = (phase + pad(size, 1) - first) // stride  # offset in dy that the first tap meets
        return (slice(first, None, stride), (count - 1 - last, quotients[axis] + last - out)) if count else None

    rows = []
    for row_phase in range(stride):
        columns = []
        for column_phase in range(stride):
            row, column = along(row_phase, 0), along(column_phase, 1)
            if row is None or column is None:
                columns.append(jnp.zeros((batch, *quotients, channels), dy.dtype))
            else:
                taps = _flip(kernel[row[0], column[0]])
                columns.append(_padded_convolution(dy, taps, [row[1], column[1]]))
        rows.append(jnp.stack(columns, 3))
    interleaved = jnp.stack(rows, 2).reshape(batch, quotients[0] * stride, quotients[1] * stride, channels)
    return interleaved[:, :height, :width]


def _padded_convolution(x: jax.Array, kernel: jax.Array, padding: list[tuple[int, int]]) -> jax.Array:
    """At stride 1. Negative padding crops beforehand: jaxlib 0.10.2 reads beyond the input otherwise."""
    crop = [(min(low, 0), min(high, 0), 0) for low, high in padding]
    if any(low or high for low, high, _ in crop):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *crop, (0, 0, 0)])
    padding = [(max(low, 0), max(high, 0)) for low, high in padding]
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, dilation: int) -> jax.Array:
    kh, kw, channels, _ = kernel.shape
    if kh == kw == 1:
        return _transposed_product(_pixels(subsample(x, stride)), _pixels(dy))[None, None]
    if _suits_winograd(x.shape, kernel, stride, dilation, _WINOGRAD_GRADIENT_CHANNELS):
        return winograd.kernel_gradient(x, dy)
    if stride > 1 and dilation == 1 and channels <= _STEM_CHANNELS:
        return _kernel_gradient_by_depth(x, kernel.shape, dy, stride)
    if stride == 1 and dy.shape[1:3] == x.shape[1:3]:
        return _kernel_gradient_at_once(x, kernel.shape, dy, dilation, (pad(kh, dilation), pad(kw, dilation)))
    return _kernel_gradient_by_taps(x, kernel.shape, dy, stride, dilation)


def _kernel_gradient_at_once(
    x: jax.Array, shape: tuple[int, ...], dy: jax.Array, dilation: int, padding: tuple[int, int]
) -> jax.Array:
    """``dkernel[u, v] = sum x[. + u, . + v] dy``: the columns v shift x, the rows u shift dy the other way.

    So one product ``[kw C, P] [P, kh C_out]`` holds all taps, and only ``kw + kh`` shifted copies are needed.
    """
    kh, kw, channels, features = shape
    zero = jnp.zeros((), x.dtype)

    def shifted(x: jax.Array, by: int, axis: int, size: int) -> jax.Array:
        """``size`` entries of x along an axis, from entry ``by`` on, and zeros where it has none."""
        edges = [(0, 0, 0)] * 4
        edges[axis] = (-by, by + size - x.shape[axis], 0)
        return lax.pad(x, zero, edges)

    shifted_x = [shifted(x, v * dilation - padding[1], 2, dy.shape[2]) for v in range(kw)]
    shifted_dy = [shifted(dy, padding[0] - u * dilation, 1, x.shape[1]) for u in range(kh)]
    product = _transposed_product(_pixels(jnp.concatenate(shifted_x, -1)), _pixels(jnp.concatenate(shifted_dy, -1)))
    return product.reshape(kw, channels, kh, features).transpose(2, 0, 1, 3)


def _kernel_gradient_by_taps(
    x: jax.Array, shape: tuple[int, ...], dy: jax.Array, stride: int, dilation: int
) -> jax.Array:
    """A product ``[C, P] [P, C_out]`` for each tap."""
    kh, kw = shape[:2]
    spans = [(out - 1) * stride + 1 for out in dy.shape[1:3]]
    padding = [
        (pad(k, dilation), max(span + (k - 1) * dilation - size - pad(k, dilation), 0))
        for k, span, size in zip((kh, kw), spans, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    corners = [(u * dilation, v * dilation) for u in range(kh) for v in range(kw)]
    taps = [x[:, top : top + spans[0] : stride, left : left + spans[1] : stride] for top, left in corners]
    return jnp.stack([_transposed_product(_pixels(tap), _pixels(dy)) for tap in taps]).reshape(shape)


def _kernel_gradient_by_depth(x: jax.Array, shape: tuple[int, ...], dy: jax.Array, stride: int) -> jax.Array:
    """k x k at stride s equals ceil(k / s) x ceil(k / s) at stride 1 on blocks of s x s pixels as channels."""
    kh, kw, channels, features = shape
    batch, out_height, out_width, _ = dy.shape
    taps = [math.ceil(k / stride) for k in (kh, kw)]
    blocks = [out + tap - 1 for out, tap in zip((out_height, out_width), taps, strict=True)]
    around = [
        (pad(k, 1), block * stride - size - pad(k, 1), 0)
        for k, block, size in zip((kh, kw), blocks, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    x = x.reshape(batch, blocks[0], stride, blocks[1], stride, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, *blocks, stride * stride * channels)
    gradient = _kernel_gradient_at_once(x, (*taps, x.shape[-1], features), dy, 1, (0, 0))
    gradient = gradient.reshape(*taps, stride, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return gradient.reshape(taps[0] * stride, taps[1] * stride, channels, features)[:kh, :kw]
