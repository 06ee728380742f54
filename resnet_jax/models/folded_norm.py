"""Batch normalization with running statistics, after a convolution.

The normalization is then a linear map of each channel, which can be folded into the kernel and a bias. On a GPU, cuDNN
computes the folded convolution with bias, shortcut and ReLU in one kernel.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.devices import match_varying_axes
from resnet_jax.models.batch_norm import add_and_activate, affine
from resnet_jax.models.compute import is_constant
from resnet_jax.models.conv import BoundConvolution
from resnet_jax.models.example_norm import expand


def normalize(
    x: jax.Array,
    conv: BoundConvolution | None,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    epsilon: float,
    relu: bool,
) -> jax.Array:
    """Computes ``scale (conv(x) - mean) / sqrt(var + epsilon) + bias``, adds the shortcut and applies the ReLU.

    Args:
      x: ``[N, H, W, C_in]``, of any float dtype.
      conv: the convolution; None is the identity.
      mean: float32 ``[C]``.
      var: float32 ``[C]``.
      scale: float32 ``[C]``.
      bias: float32 ``[C]``.
      shortcut: ``[N, H, W, C]`` or None.
      epsilon: added to the variance.
      relu: whether to apply the ReLU.

    Returns:
      ``[N, H, W, C]`` in the dtype of ``x``.
    """
    finish = functools.partial(_affine, relu=relu)
    if conv is None or conv.implementation == 'xla' or not is_constant(x.shape):
        return finish(x if conv is None else conv(x), shortcut, mean, scale * lax.rsqrt(var + epsilon), bias)
    operands = match_varying_axes(conv.kernel, mean, var, scale, bias, shortcut, x)
    kernel, mean, var, scale, bias, shortcut, _ = operands
    slope = scale * lax.rsqrt(var + epsilon)
    folded = lax.platform_dependent(
        kernel, slope, cuda=lambda kernel, slope: kernel * expand(slope), default=lambda kernel, slope: kernel
    )
    y = dataclasses.replace(conv, kernel=folded)(x)
    on_gpu = functools.partial(_add_offset, relu=relu)
    return lax.platform_dependent(y, shortcut, mean, slope, bias, cuda=on_gpu, default=finish)


def _affine(
    x: jax.Array, shortcut: jax.Array | None, mean: jax.Array, slope: jax.Array, bias: jax.Array, *, relu: bool
) -> jax.Array:
    return add_and_activate(affine(x.astype(jnp.float32), mean, slope, bias), shortcut, relu).astype(x.dtype)


def _add_offset(
    x: jax.Array, shortcut: jax.Array | None, mean: jax.Array, slope: jax.Array, bias: jax.Array, *, relu: bool
) -> jax.Array:
    """As ``_affine``, for the convolution by the kernel times ``slope``.

    Every sum has the dtype of the convolution: otherwise, XLA would not call cuDNN once for all of this.
    """
    return add_and_activate(x + expand((bias - mean * slope).astype(x.dtype)), shortcut, relu)
