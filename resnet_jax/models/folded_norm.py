"""Batch normalization with running statistics, after a convolution.

The normalization is then a linear map of each channel, which can be folded into the kernel and a bias. On a GPU, cuDNN
computes the folded convolution with bias, shortcut and ReLU in one kernel.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.devices import match_varying_axes
from resnet_jax.models.batch_norm import affine
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

    fold = conv is not None and conv.implementation == 'auto' and is_constant(x.shape)
    *vectors, shortcut = match_varying_axes(mean, var, scale, bias, shortcut, x)[:5]

    def affine_relu(x: jax.Array, shortcut: jax.Array | None, *vectors: jax.Array) -> jax.Array:
        y = affine(x.astype(jnp.float32), *vectors, epsilon)
        y = y if shortcut is None else y + shortcut.astype(jnp.float32)
        return (nn.relu(y) if relu else y).astype(x.dtype)

    def offset_relu(x: jax.Array, shortcut: jax.Array | None, *vectors: jax.Array) -> jax.Array:
        mean, var, scale, bias = vectors
        # XLA calls cuDNN once for all of this if every sum has the dtype of the convolution.
        y = x + expand((bias - mean * _slope(var, scale)).astype(x.dtype))
        y = y if shortcut is None else y + shortcut.astype(x.dtype)
        return nn.relu(y) if relu else y

    def _slope(var: jax.Array, scale: jax.Array) -> jax.Array:
        return scale * lax.rsqrt(var + epsilon)

    if fold:
        scaled = lax.platform_dependent(
            conv.kernel,
            _slope(vectors[1], vectors[2]),
            cuda=lambda kernel, slope: kernel * expand(slope),
            default=lambda kernel, slope: kernel,
        )
        conv = dataclasses.replace(conv, kernel=scaled)
    x = x if conv is None else conv(x)
    if not fold:
        return affine_relu(x, shortcut, *vectors)
    return lax.platform_dependent(x, shortcut, *vectors, cuda=offset_relu, default=affine_relu)
