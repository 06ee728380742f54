"""Convolution with explicit padding.

Axes, by these letters in every docstring of the project:

    N  examples       H, W  height and width      C  channels
    K  classes        G     groups                kh, kw  kernel height and width

Images and feature maps are ``[N, H, W, C]``, kernels ``[kh, kw, C / G, C_out]``.

Padding is ``(k - 1) // 2 * dilation`` on both sides, as in PyTorch and in the papers' Caffe and Torch code. It is
never ``'SAME'``, which pads a strided convolution on one side more than on the other: same shapes, same
parameter count, other values.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import InputError

# He et al. 2015b (arXiv:1502.01852), Eq. 14: the variance that keeps the gradients' scale through ReLU layers.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1, groups: int = 1) -> jax.Array:
    """Two-dimensional cross-correlation, symmetrically padded.

    Args:
      x: ``[N, H, W, C]``.
      kernel: ``[kh, kw, C / G, C_out]``, of the same dtype as ``x``.
      stride: step of the window along H and W, in pixels.
      dilation: distance between neighbouring taps, in pixels.
      groups: G; input and output channels are split into G groups that do not see each other.

    Returns:
      ``[N, H_out, W_out, C_out]`` with ``H_out = (H + 2 pad - dilation (kh - 1) - 1) // stride + 1``.
    """
    padding = [((size - 1) // 2 * dilation,) * 2 for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


class Conv(nn.Module):
    """Convolution without bias: in this family a normalization follows, whose bias does the same.

    Attributes:
      features: C_out.
      kernel_size: kh = kw.
      stride: in pixels.
      dilation: in pixels.
      groups: G, a divisor of the input's and the output's channels.
      dtype: dtype of the computation; the kernel itself is float32.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` to ``[N, H_out, W_out, features]``.

        Raises:
          InputError: ``groups`` does not divide the channels.
        """
        channels = x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise InputError(
                f'groups={self.groups} must divide the input channels ({channels})'
                f' and the output channels ({self.features})'
            )
        shape = (self.kernel_size, self.kernel_size, channels // self.groups, self.features)
        kernel = self.param('kernel', he_normal_fan_out, shape, jnp.float32)
        return convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.dilation, self.groups)
