"""Convolutions in forms that XLA's CPU backend computes fast.

XLA computes the gradients of a convolution as convolutions over transposed copies of both operands, and these copies
take a third of a ResNet-50's training step. For strided gradients it has a partly serial kernel, for grouped ones a
kernel whose work grows with the square of the groups. The forms here avoid all of this, for any size, stride and
dilation.

The forms, with the measurements they were chosen by (milliseconds of one float32 call on two Zen 5 cores, compared with
XLA's own form):

    what                        form                                                   here   XLA   case
    1x1                         matrix product over the pixels                          2.2   3.8   64 to 256, 32x32
    1x1, kernel gradient        the same, transposed                                    5.7  14.6   256 to 64, 32x32
    3x3                         Winograd, with at least 64 channels and enough tiles    2.4   3.7   256, 8x8
    3x3, kernel gradient        Winograd, with at least 128 channels                    2.9   5.8   256, 8x8
    stride 1, kernel gradient   columns of x times rows of dy: all taps in one product  8.6  11.3   64, 32x32
    strided, input gradient     one convolution per phase of the pixels
    strided, kernel gradient    one product per tap
    stem, kernel gradient       stride 1 on blocks of s x s pixels as channels
    to 16 channels, stride 1    two or four neighboring pixels as channels              5.5   7.5   16, 32x32 (*)
    the rest                    convolution, input gradient with the flipped kernel

The batch size is 16; (*) 128, on one core. The forms without a time were chosen because they avoid transposed copies.
Together with the gradients of ``norm.py``, these forms reduce a training step of ResNet-50 from 1,424 to 603 ms.
``docs/performance.md`` has measurements of whole networks, and of what did not help.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models import winograd
from resnet_jax.models.conv_common import LAYOUT, pad, plain, subsample

_STEM_CHANNELS = 4  # with at most this many input channels, strided kernel gradients treat pixels as channels
_WINOGRAD_CHANNELS = 64  # minimum number of input and of output channels
_WINOGRAD_GRADIENT_CHANNELS = 128
_FEW_CHANNELS = 16  # with at most this many output channels, neighboring pixels are computed together:
_PIXELS_TOGETHER = ((4, 4), (16, 2))  # (maximum number of input channels, pixels)
BLOCK = 32  # channels of the dense blocks of a grouped convolution


def forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """Computes the convolution of ``x [N, H, W, C]`` and ``kernel [kh, kw, C, C_out]``."""
    if kernel.shape[:2] == (1, 1):
        x = subsample(x, stride)
        return (_pixels(x) @ kernel[0, 0]).reshape(*x.shape[:3], kernel.shape[3])
    if _suits_winograd(x.shape, kernel, stride, dilation, _WINOGRAD_CHANNELS):
        return winograd.convolution(x, kernel)
    if stride == dilation == 1:
        return _several_pixels(x, kernel, [(pad(size, 1),) * 2 for size in kernel.shape[:2]])
    return plain(x, kernel, stride, dilation)


def gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, dilation: int
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients with respect to ``x`` and ``kernel`` from ``dy [N, H_out, W_out, C_out]``."""
    return _input_gradient(x, kernel, dy, stride, dilation), _kernel_gradient(x, kernel, dy, stride, dilation)


def _several_pixels(x: jax.Array, kernel: jax.Array, padding: list[tuple[int, int]]) -> jax.Array:
    """Computes a stride-1 convolution with p neighboring pixels of a row together, as p times as many channels.

    The kernel is widened by p - 1 columns, with zeros outside of each pixel's window, and the stride is p. XLA's fast
    kernel requires more than 16 channels, and more output channels use it better.
    """
    kw, channels, features = kernel.shape[1:]
    width = x.shape[2] + sum(padding[1]) - kw + 1
    pixels = next((p for most, p in _PIXELS_TOGETHER if channels <= most), 1) if features <= _FEW_CHANNELS else 1
    if width % pixels:
        pixels = 1
    shifted = [jnp.pad(kernel, ((0, 0), (p, pixels - 1 - p), (0, 0), (0, 0))) for p in range(pixels)]
    wide = jnp.stack(shifted, 3).reshape(kernel.shape[0], kw + pixels - 1, channels, pixels * features)
    y = lax.conv_general_dilated(x, wide, (1, pixels), padding, dimension_numbers=LAYOUT)
    return y.reshape(x.shape[0], y.shape[1], width, features)


def _suits_winograd(shape: tuple[int, ...], kernel: jax.Array, stride: int, dilation: int, channels: int) -> bool:
    """Whether there are enough channels to amortize the transform of the patches, and enough tiles for the kernel's."""
    if kernel.shape[:2] != (3, 3) or stride > 1 or dilation > 1 or kernel.dtype != jnp.float32:
        return False
    tiles = shape[0] * math.ceil(shape[1] / 2) * math.ceil(shape[2] / 2)
    return min(kernel.shape[2:]) >= channels and tiles >= max(kernel.shape[2:])


def _pixels(x: jax.Array) -> jax.Array:
    """Reshapes ``[N, H, W, C]`` to ``[N H W, C]``."""
    return x.reshape(-1, x.shape[-1])


def _transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes ``a^T b`` of ``[P, A]`` and ``[P, B]``, without a transposed copy."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _flip(kernel: jax.Array) -> jax.Array:
    """Returns the kernel of the transposed convolution: taps reversed, channel axes swapped."""
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
            return _several_pixels(dy, _flip(kernel), padding)
        return lax.conv_general_dilated(
            dy, _flip(kernel), (1, 1), padding, rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT
        )
    if dilation == 1:
        return _input_gradient_by_phases(shape, kernel, dy, stride)
    return jax.vjp(lambda x: plain(x, kernel, stride, dilation), x)[1](dy)[0]


def _input_gradient_by_phases(shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, stride: int) -> jax.Array:
    """One stride-1 convolution per phase a: the pixels ``stride q + a`` of dx depend only on every stride-th tap."""
    batch, height, width, channels = shape
    quotients = [math.ceil(height / stride), math.ceil(width / stride)]

    def along(phase: int, axis: int) -> tuple[slice, tuple[int, int]] | None:
        """The taps of a phase, and the padding of dy, along H (0) or W (1); None if there are no taps."""
        size, out = kernel.shape[axis], dy.shape[1 + axis]
        first = (phase + pad(size, 1)) % stride
        count = len(range(first, size, stride))
        last = (phase + pad(size, 1) - first) // stride  # offset in dy at the first tap
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
    """A stride-1 convolution. Negative padding is cropped first: jaxlib 0.10.2 would read beyond the input."""
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
        return _kernel_gradient_by_space_to_depth(x, kernel.shape, dy, stride)
    if stride == 1 and dy.shape[1:3] == x.shape[1:3]:
        return _kernel_gradient_by_one_product(x, kernel.shape, dy, dilation, (pad(kh, dilation), pad(kw, dilation)))
    return _kernel_gradient_by_taps(x, kernel.shape, dy, stride, dilation)


def _kernel_gradient_by_one_product(
    x: jax.Array, shape: tuple[int, ...], dy: jax.Array, dilation: int, padding: tuple[int, int]
) -> jax.Array:
    """Computes ``dkernel[u, v] = sum x[. + u, . + v] dy`` for all taps in one product ``[kw C, P] [P, kh C_out]``.

    For the columns v, x is shifted; for the rows u, dy is shifted in the opposite direction. This needs only
    ``kw + kh`` shifted copies.
    """
    kh, kw, channels, features = shape
    zero = jnp.zeros((), x.dtype)

    def shifted(x: jax.Array, by: int, axis: int, size: int) -> jax.Array:
        """``size`` entries of x along an axis, starting at entry ``by``, and zeros beyond its ends."""
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
    """Computes one product ``[C, P] [P, C_out]`` per tap."""
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


def _kernel_gradient_by_space_to_depth(x: jax.Array, shape: tuple[int, ...], dy: jax.Array, stride: int) -> jax.Array:
    """Space to depth: k x k at stride s equals ceil(k / s) x ceil(k / s) at stride 1 with s x s pixels as channels."""
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
    gradient = _kernel_gradient_by_one_product(x, (*taps, x.shape[-1], features), dy, 1, (0, 0))
    gradient = gradient.reshape(*taps, stride, stride, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return gradient.reshape(taps[0] * stride, taps[1] * stride, channels, features)[:kh, :kw]
