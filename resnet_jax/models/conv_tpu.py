"""Grouped convolutions in forms that XLA's TPU backend computes fast.

A TPU multiplies tiles of 128 by 128 channels. For groups of few channels, XLA moves the groups to the pixels and uses
the batch as the channel axis. The products are then cheap, but feature maps are copied to this layout and back, and the
adjacent normalizations, which XLA otherwise fuses into the convolutions, pass over the maps again.

Dense convolutions whose kernels are zero between the groups avoid this. Where their products with zeros cost more than
they save, consecutive groups are combined up to the size of a tile; small maps are left to XLA.

Millions of cycles for a whole bottleneck of ResNeXt-50 32x4d, forward and backward, in bfloat16 with a batch of 128, as
estimated by the compiler for v5e (``aot.estimate``), always with the normalization of ``norm.py``:

    3x3 convolution                grouped   one dense   tiles
    128, 56x56                        23.7        16.4    16.4
    256, 56x56, stride 2              31.7        19.3    22.8
    256, 28x28                        11.5         9.1     9.6
    512, 28x28, stride 2                          11.3    11.9
    512, 14x14                         5.3         6.1     4.5
    1024, 14x14, stride 2              8.4         9.3     7.4
    1024, 7x7                          2.7                 2.9

A training step of the whole network takes 155.3 if 7x7 maps use tiles, too, and 184.9 in plain Flax. Nothing was timed
on a TPU. An explicitly requested layout took 4.4 at 512 channels, and more than twice the cycles of the grouped form
with a batch of 32.
"""

import functools

import jax

from resnet_jax.models.conv_common import convolve_blocks, plain

_TILE = 128  # channels
_DENSE = 256  # channels, times the stride, up to which one dense convolution is cheapest
_SMALL = 64  # pixels of a feature map up to which XLA's grouped form is used


def forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int) -> jax.Array:
    """Computes the convolution of ``x [N, H, W, C]`` and ``kernel [kh, kw, C / G, C_out]``; JAX differentiates it."""
    channels, pixels = x.shape[3], x.shape[1] * x.shape[2]
    dense = functools.partial(plain, stride=stride, dilation=dilation)
    if groups in (1, channels):  # no groups, or depthwise, which XLA computes differently
        return dense(x, kernel, groups=groups)
    if channels <= _DENSE * stride:
        return convolve_blocks(dense, x, kernel, groups, channels)
    if pixels > _SMALL and kernel.shape[2] <= _TILE // 2:  # more than one group per tile
        return convolve_blocks(dense, x, kernel, groups, _TILE)
    return dense(x, kernel, groups=groups)
