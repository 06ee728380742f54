"""Normalization with batch statistics, as functions, and how each platform computes it.

A training step on an accelerator is limited by memory bandwidth, and normalization moves most of the bytes. Each form
for GPUs avoids some of them. GB that a step of ResNet-50 moves (256 images of 224x224, bfloat16), counted in the
program that XLA compiles for an H100 (``experiments.benchmark --topology=h100``), each row with the forms before it:

    form                                                               elementwise    all
    two-pass moments; gradients with stored masks                             69.9  106.3
    one-pass moments                                                          64.2  100.6
    gradients in two kernels; barrier at the end of a block;
      the place of each maximum (pooling.py); packed stem (conv_gpu.py)       53.0   89.4
    1x1 convolutions that widen, by their input (gram_norm.py)                29.8   72.4
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models.compute import AxisName
from resnet_jax.models.example_norm import expand


def affine(x: jax.Array, mean: jax.Array, slope: jax.Array, bias: jax.Array) -> jax.Array:
    """``slope (x - mean) + bias`` with vectors ``[C]``; ``slope`` is ``scale / sqrt(var + epsilon)``."""
    return (x - expand(mean)) * expand(slope) + expand(bias)


def add_and_activate(y: jax.Array, shortcut: jax.Array | None, relu: bool) -> jax.Array:
    """Adds the shortcut, if there is one, in the dtype of ``y``, and applies the ReLU, if ``relu`` is set."""
    y = y if shortcut is None else y + shortcut.astype(y.dtype)
    return nn.relu(y) if relu else y


def moments_in_two_passes(x: jax.Array, shift: jax.Array, axis_name: AxisName = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of ``x``, float32 ``[N, H, W, C]``, from squared deviations from the mean."""
    mean = _channel_mean(x, axis_name)
    return mean, _channel_mean(jnp.square(x - expand(mean)), axis_name)


def moments_in_one_pass(x: jax.Array, shift: jax.Array, axis_name: AxisName = None) -> tuple[jax.Array, jax.Array]:
    """The same from sums over one pass; XLA's TPU backend computes them while the preceding convolution writes ``x``.

    Deviations are from ``shift``, the running mean: the closer it is to the batch mean, the smaller the cancellation.
    """
    if axis_name is not None:
        shift = lax.pmean(shift, axis_name)  # the running mean may differ between devices
    deviations = x - expand(shift)
    offset = _channel_mean(deviations, axis_name)
    var = _channel_mean(jnp.square(deviations), axis_name) - jnp.square(offset)
    return shift + offset, jnp.maximum(var, 0)


def _channel_mean(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Mean over N, H and W, and over the devices of ``axis_name`` unless it is None."""
    mean = x.mean((0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    epsilon: float,
    relu: bool,
    axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes with the batch statistics, then adds the shortcut, then applies the ReLU.

    Args:
      x: ``[N, H, W, C]``, of any float dtype.
      scale: float32 ``[C]``.
      bias: float32 ``[C]``.
      shift: float32 ``[C]``, an estimate of the mean, which affects only rounding errors.
      shortcut: ``[N, H, W, C]`` or None.
      epsilon: added to the variance.
      relu: whether to apply the ReLU.
      axis_name: None, or the device axes over which the statistics are computed.

    Returns:
      The result in the dtype of ``x``, and the batch mean and biased variance, float32 ``[C]``.
    """

    x32 = x.astype(jnp.float32)
    in_one, in_two = (functools.partial(f, axis_name=axis_name) for f in (moments_in_one_pass, moments_in_two_passes))
    mean, var = lax.platform_dependent(x32, shift, cuda=in_one, tpu=in_one, default=in_two)
    y = affine(x32, mean, scale * lax.rsqrt(var + epsilon), bias)
    y = add_and_activate(y, shortcut, relu).astype(x.dtype)
    if shortcut is not None and relu:
        # Otherwise, XLA's GPU backend removes the rounding to bfloat16 between the sums of consecutive blocks: it then
        # stores the sums in float32, or recomputes earlier ones.
        y = lax.platform_dependent(y, cuda=lax.optimization_barrier, default=lambda y: y)
    return y, mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def normalize_vjp(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``normalize`` with a hand-written gradient: two passes over the map; automatic differentiation makes about six.

    It has no ``axis_name``: a hand-written gradient cannot communicate where JAX differentiates a ``jax.vmap`` that
    names its axis, because the axis is unknown outside of it.
    """
    return normalize(x, scale, bias, shift, shortcut, epsilon, relu)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, *rest: Any) -> tuple[Any, Any]:
    """Returns the result and the residuals; ``rest`` are the arguments of ``normalize`` after ``bias``."""
    y, mean, var = normalize(x, scale, bias, *rest)
    shortcut = rest[1]
    return (y, mean, var), (x, y, mean, var, scale, bias, shortcut is not None)


def _backward(epsilon: float, relu: bool, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    x, y, mean, var, scale, bias, has_shortcut = saved
    dx, dscale, dbias, dz = gradients(x, y, mean, var, scale, bias, cotangents[0], epsilon, relu, has_shortcut)
    return dx, dscale, dbias, jnp.zeros_like(dbias), dz


normalize_vjp.defvjp(_forward, _backward)


def gradients(
    x: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    dy: jax.Array,
    epsilon: float,
    relu: bool,
    has_shortcut: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Computes the gradient (Ioffe and Szegedy 2015, section 3), with xhat = (x - mean) / std and sums over N, H and W:

    dbias = sum dz,  dscale = sum dz xhat,  dx = scale / std (dz - dbias / n - xhat dscale / n)

    ``dz`` is the gradient before the ReLU, and that of the shortcut. The statistics have no gradient.

    Args:
      x: ``[N, H, W, C]``, the argument of ``normalize``.
      y: ``[N, H, W, C]``, its result.
      mean: float32 ``[C]``, the mean of the batch.
      var: float32 ``[C]``, its variance.
      scale: float32 ``[C]``.
      bias: float32 ``[C]``.
      dy: ``[N, H, W, C]``, the gradient of ``y``.
      epsilon: as in ``normalize``.
      relu: as in ``normalize``.
      has_shortcut: whether a shortcut was added.

    Returns:
      ``dx`` in the dtype of ``x``, ``dscale`` and ``dbias``, and ``dz`` in the dtype of ``x``, None without a shortcut.
    """
    options: dict[str, Any] = {'epsilon': epsilon, 'relu': relu, 'has_shortcut': has_shortcut}
    forms = {'cuda': gradients_on_gpu, 'default': gradients_from_result}
    bound = {platform: functools.partial(form, **options) for platform, form in forms.items()}
    return lax.platform_dependent(x, y, mean, var, scale, bias, dy, **bound)


def gradients_from_result(
    x: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    dy: jax.Array,
    *,
    epsilon: float,
    relu: bool,
    has_shortcut: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """``gradients`` with the ReLU's mask from its output, which the next convolution stores anyway."""
    dy = dy.astype(jnp.float32)
    dz = jnp.where(y > 0, dy, 0) if relu else dy
    centered = x.astype(jnp.float32) - expand(mean)
    dbias, dscale = dz.sum((0, 1, 2)), (dz * centered).sum((0, 1, 2)) * lax.rsqrt(var + epsilon)
    dx = _input_gradient(x, dz, centered, *_slopes(x, var, scale, dscale, epsilon), dbias)
    return dx, dscale, dbias, dz.astype(x.dtype) if has_shortcut else None


def gradients_on_gpu(
    x: jax.Array,
    y: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    dy: jax.Array,
    *,
    epsilon: float,
    relu: bool,
    has_shortcut: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """``gradients`` in two kernels, one for the sums and one for ``dx``, that read and write as little as possible.

    Without a shortcut, both compute the ReLU's mask from ``x``, which they read anyway. With a shortcut, the first one
    writes ``dz``, which the second one reads instead of ``dy`` and ``y``. XLA would merge these computations across
    kernels and store masks and float32 maps; the barriers prevent this. The mask is a factor, because XLA stores a
    mask of booleans that several kernels use, but recomputes a float.
    """

    def masked(x: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        x32, dz = x.astype(jnp.float32), dy.astype(jnp.float32)
        if relu:
            slope = scale * lax.rsqrt(var + epsilon)
            result = y.astype(jnp.float32) if has_shortcut else affine(x32, mean, slope, bias)
            dz = dz * jnp.sign(nn.relu(result))
        return dz, x32 - expand(mean)

    if has_shortcut:
        x, y, dy = lax.optimization_barrier((x, y, dy))
    else:  # y is not used, and a barrier would keep it alive
        x, _ = lax.optimization_barrier((x, dy))
    dz, centered = masked(x, dy)
    zero = jnp.zeros((), jnp.float32)
    dbias, dscale = lax.reduce((dz, dz * centered), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (0, 1, 2))
    dscale = dscale * lax.rsqrt(var + epsilon)
    slope, offset = _slopes(x, var, scale, dscale, epsilon)
    if has_shortcut:
        x, dy = lax.optimization_barrier((x, dz.astype(x.dtype)))  # exact: dy or zero
        dz, centered = dy.astype(jnp.float32), x.astype(jnp.float32) - expand(mean)
    else:
        x, dy, dbias, offset = lax.optimization_barrier((x, dy, dbias, offset))
        dz, centered = masked(x, dy)
    dx = _input_gradient(x, dz, centered, slope, offset, dbias)
    return dx, dscale, dbias, dy if has_shortcut else None


def _slopes(
    x: jax.Array, var: jax.Array, scale: jax.Array, dscale: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """``scale / std`` and ``dscale / (std n)``."""
    inverse_std = lax.rsqrt(var + epsilon)
    return scale * inverse_std, dscale * inverse_std / (x.size // x.shape[-1])


def _input_gradient(
    x: jax.Array, dz: jax.Array, centered: jax.Array, slope: jax.Array, offset: jax.Array, dbias: jax.Array
) -> jax.Array:
    count = x.size // x.shape[-1]
    return (expand(slope) * (dz - expand(dbias / count) - centered * expand(offset))).astype(x.dtype)
