"""Batch normalization of a 1x1 convolution by the Gram matrix of its input.

For ``x = u W`` with ``u [N, H, W, C_in]`` and ``W [C_in, C]``, the batch's mean and variance follow from ``u`` alone:

    mean(x) = mean(u) W,    var(x) = diag(W^T Cov(u) W),    Cov(u) = u^T u / n - mean(u) mean(u)^T

So the scale and offset of every channel are known before the convolution runs. They are folded into its kernel, and
convolution, bias, shortcut and ReLU become one kernel of cuDNN: ``x`` is neither written nor read, nor stored for the
gradient. With ``y = relu(x slope + offset + shortcut)``, ``slope = scale / std`` and ``A = u^T dz``, the gradient is

    dbias = sum dz,    dscale = (diag(W^T A) - mean dbias) / std
    dW = slope (A - mean(u) dbias^T - Cov(u) W dscale / std)
    du = dz (W slope)^T - u B + mean(u) B - (slope dbias / n) W^T,    B = W diag(slope dscale / (std n)) W^T

This pays where the convolution widens (``C > C_in``), as at the end of a bottleneck and in projections: the products
read ``u``, which is smaller than ``x``. ``batch_norm.py`` says how many bytes it saves. For small ``x``, the additional
products of ``[C_in, C]`` and ``[C_in, C_in]`` cost more than that. Millions of cycles for the stages of ResNet-50,
forward and backward, 128 images of 224x224 in bfloat16, as estimated by the TPU compiler for v5e:

    elements of x    plain    by Gram matrix
    103 million       42.0              35.2
     51 million       33.1              27.4
     26 million       20.8              17.4
     13 million        7.3               7.5

Nothing was timed on a GPU or TPU yet.

Source: derived from Ioffe and Szegedy 2015 (arXiv:1502.03167, section 3). In float32, values and gradients equal those
of the convolution followed by the normalization up to rounding, as long as the channels of ``u`` have means of at most
a few standard deviations. ``Cov(u)`` is a difference of two products, so the relative error of the variance grows with
the square of this ratio: 2e-6 for 3, 2e-5 for 10, 2e-4 for 30. In bfloat16, errors are up to 1.6 times as large as
those of the plain form, because the rounded kernel is not the one that the statistics belong to (computed on a CPU,
for ratios of 0 to 10).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.devices import match_varying_axes, sharding_spec, with_auto_axes
from resnet_jax.models import batch_norm
from resnet_jax.models.compute import is_constant
from resnet_jax.models.conv import BoundConvolution, convolution, gradients
from resnet_jax.models.conv_common import plain
from resnet_jax.models.example_norm import expand

LARGE = 2**24  # elements of ``x`` from which it pays; see the table


def suits(x: jax.Array, conv: BoundConvolution) -> bool:
    """Whether ``normalize_convolution`` can compute ``conv(x)`` and its normalization, and is faster than both in turn.

    Args:
      x: ``[N, H, W, C_in]``, the input of the convolution.
      conv: the convolution.
    """
    height, width, inputs, features = conv.kernel.shape
    if (height, width, conv.groups) != (1, 1, 1) or features <= inputs or not is_constant(x.shape):
        return False
    rows, columns = (-(-size // conv.stride) for size in x.shape[1:3])
    return x.shape[0] * rows * columns * features > LARGE


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def normalize_convolution(
    u: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    kernel: jax.Array,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Convolves with a 1x1 kernel, then computes ``batch_norm.normalize``; on GPUs, with the Gram matrix of ``u``.

    Args:
      u: ``[N, H, W, C_in]``, of any float dtype.
      scale: float32 ``[C]``.
      bias: float32 ``[C]``.
      shift: float32 ``[C]``, as in ``batch_norm.normalize``.
      shortcut: ``[N, H, W, C]`` or None.
      kernel: float32 ``[1, 1, C_in, C]``.
      epsilon: added to the variance.
      relu: whether to apply the ReLU.

    Returns:
      The result in the dtype of ``u``, and the batch mean and biased variance, float32 ``[C]``.
    """
    return _forward(u, scale, bias, shift, shortcut, kernel, epsilon, relu)[0]


def _forward(
    u: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    kernel: jax.Array,
    epsilon: float,
    relu: bool,
) -> tuple[Any, Any]:
    choose = _choose(forward_by_gram, _forward_plain, epsilon=epsilon, relu=relu)
    split = (sharding_spec(u)[0], None, None, None)
    out_spec = [split, (None,), (None,), split, (None,), (None, None)]
    y, mean, var, *saved = with_auto_axes(choose, u, scale, bias, shift, shortcut, kernel, out_spec=out_spec)
    return (y, mean, var), (u, kernel, y, mean, var, scale, bias, *saved, shortcut is not None)


def _backward(epsilon: float, relu: bool, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    *arrays, has_shortcut = saved
    u, kernel, y, _, _, scale = arrays[:6]
    choose = _choose(gradients_by_gram, _gradients_plain, epsilon=epsilon, relu=relu, has_shortcut=has_shortcut)
    out_spec = [sharding_spec(x) for x in (u, kernel, scale, scale, *([y] if has_shortcut else []))]
    du, dkernel, dscale, dbias, *dz = with_auto_axes(choose, *arrays, cotangents[0], out_spec=out_spec)
    return du, dscale, dbias, jnp.zeros_like(dbias), dz[0] if has_shortcut else None, dkernel


normalize_convolution.defvjp(_forward, _backward)


def _choose(by_gram: Callable[..., Any], plain: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function of the operands that computes one form on GPUs and TPUs, the other one elsewhere."""
    on_gpu = functools.partial(by_gram, barrier=lax.optimization_barrier, **options)
    on_tpu = functools.partial(by_gram, barrier=_no_barrier, **options)
    return functools.partial(
        lax.platform_dependent, cuda=on_gpu, tpu=on_tpu, default=functools.partial(plain, **options)
    )


def _no_barrier(operands: Any) -> Any:
    return operands


# The residuals of both forms: the map before the normalization, which only the plain form needs, and mean and
# covariance of ``u``, which only the other form needs. Each form returns zeros for the other's, which compilers remove.


def _forward_plain(
    u: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    kernel: jax.Array,
    *,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, ...]:
    x = convolution(u, kernel.astype(u.dtype))
    y, mean, var = batch_norm.normalize(x, scale, bias, shift, shortcut, epsilon, relu)
    channels = u.shape[-1]
    unused, zeros = jnp.zeros(channels, jnp.float32), jnp.zeros((channels, channels), jnp.float32)
    return y, mean, var, x, *match_varying_axes(unused, zeros, y)[:2]


def _gradients_plain(
    u: jax.Array,
    kernel: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    x: jax.Array,
    input_mean: jax.Array,
    covariance: jax.Array,
    dy: jax.Array,
    *,
    epsilon: float,
    relu: bool,
    has_shortcut: bool,
) -> tuple[jax.Array, ...]:
    options: dict[str, Any] = {'epsilon': epsilon, 'relu': relu, 'has_shortcut': has_shortcut}
    dx, dscale, dbias, dz = batch_norm.gradients_from_result(x, y, mean, var, scale, bias, dy, **options)
    du, dkernel = gradients(u, kernel.astype(u.dtype), dx)
    return du, dkernel.astype(kernel.dtype), dscale, dbias, *([] if dz is None else [dz])


def forward_by_gram(
    u: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    kernel: jax.Array,
    *,
    epsilon: float,
    relu: bool,
    barrier: Callable[[Any], Any],
) -> tuple[jax.Array, ...]:
    """``normalize_convolution``; also returns the residuals: zeros, and the mean ``[C_in]`` and covariance of ``u``."""
    w = kernel[0, 0]
    count = u.size // u.shape[-1]
    input_mean = u.astype(jnp.float32).mean((0, 1, 2))
    # In float32, GPUs would round the factors to TF32, which a difference of large numbers does not bear.
    covariance = _pixel_products(u, u, lax.Precision.HIGHEST) / count - jnp.outer(input_mean, input_mean)
    mean = _product(input_mean, w)
    var = jnp.maximum((_product(covariance, w) * w).sum(0), 0)
    slope = scale * lax.rsqrt(var + epsilon)
    # XLA calls cuDNN once for all of this if every sum has the dtype of the convolution.
    y = _pointwise(u, w * slope[None]) + expand((bias - mean * slope).astype(u.dtype))
    y = barrier(batch_norm.add_and_activate(y, shortcut, relu))
    return y, mean, var, match_varying_axes(jnp.zeros(y.shape, y.dtype), y)[0], input_mean, covariance


def gradients_by_gram(
    u: jax.Array,
    kernel: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    x: jax.Array,
    input_mean: jax.Array,
    covariance: jax.Array,
    dy: jax.Array,
    *,
    epsilon: float,
    relu: bool,
    has_shortcut: bool,
    barrier: Callable[[Any], Any],
) -> tuple[jax.Array, ...]:
    """Gradients of ``u``, the kernel, scale, bias and, if there is one, of the shortcut: ``x`` is not used."""
    w = kernel[0, 0]
    count = u.size // u.shape[-1]
    inverse_std = lax.rsqrt(var + epsilon)
    slope = scale * inverse_std
    dz = dy
    if relu:  # a factor and barriers, as in batch_norm.gradients_on_gpu
        y, dy = barrier((y, dy))
        dz32 = dy.astype(jnp.float32) * jnp.sign(y.astype(jnp.float32))
        dbias = dz32.sum((0, 1, 2))
        dz = barrier(dz32.astype(u.dtype))
    else:
        dbias = dz.astype(jnp.float32).sum((0, 1, 2))
    products = _pixel_products(u, dz)
    dscale = inverse_std * ((w * products).sum(0) - mean * dbias)
    relative = inverse_std * dscale
    dw = slope[None] * (products - jnp.outer(input_mean, dbias) - _product(covariance, w) * relative[None])
    back = _product(w * (slope * relative / count)[None], w.T)
    constant = _product(input_mean, back) - _product(w, slope * dbias / count)
    rest = _pointwise(u, -back) + expand(constant.astype(u.dtype))
    du = _pointwise(dz, (w * slope[None]).T) + rest
    return du, dw[None, None], dscale, dbias, *([dz] if has_shortcut else [])


def _pointwise(x: jax.Array, w: jax.Array) -> jax.Array:
    """1x1 convolution with the matrix ``w [C_in, C]``, rounded to the dtype of ``x``."""
    return plain(x, w[None, None].astype(x.dtype), 1, 1)


def _pixel_products(a: jax.Array, b: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    """``a^T b`` over all pixels: ``[N, H, W, C]`` and ``[N, H, W, D]`` to float32 ``[C, D]``."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    dimensions = ((0,), (0,)), ((), ())
    return lax.dot_general(a, b, dimensions, precision, preferred_element_type=jnp.float32)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product in float32; its cost does not depend on the number of pixels."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
