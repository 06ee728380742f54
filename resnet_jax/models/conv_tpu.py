"""Grouped convolutions in forms that XLA's TPU backend computes fast.

A TPU multiplies tiles of 128 by 128 channels. XLA computes groups of a few channels with the groups among the pixels
and the batch where channels were: the products are cheap then, but maps are copied into that layout and back, and the
normalizations around, which XLA otherwise computes inside of the convolutions, go over the maps again.

Dense convolutions, whose kernels are zero between the groups, need none of that. Where their products with zeros cost
more than they save, neighbouring groups are taken together up to a tile; small maps are left to XLA.

Millions of cycles of a whole bottleneck of ResNeXt-50 32x4d, forward and back, in bfloat16 and a batch of 128, by the
estimate of the compiler for v5e (``aot.estimate``), with the normalization of ``norm.py`` throughout:

    3x3 convolution                grouped   one dense   tiles
    128, 56x56                        23.7        16.4    16.4
    256, 56x56, stride 2              31.7        19.3    22.8
    256, 28x28                        11.5         9.1     9.6
    512, 28x28, stride 2                          11.3    11.9
    512, 14x14                         5.3         6.1     4.5
    1024, 14x14, stride 2              8.4         9.3     7.4
    1024, 7x7                          2.7                 2.9

The step of the whole network takes 155.3 with tiles for 7x7, too; plain Flax's takes 184.9. Nothing was timed on a TPU.
A layout asked for by hand gave 4.4 at 512 channels, and more than twice the grouped form's cycles at a batch of 32.
"""

import functools

import jax

from resnet_jax.models.conv_common import by_blocks, plain

_TILE = 128  # channels
_DENSE = 256  # channels, times the stride, up to which one dense convolution is the cheapest
_SMALL = 64  # pixels of a map up to which the groups are left to XLA


def forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int) -> jax.Array:
    """The convolution: ``x [N, H, W, C]``, ``kernel [kh, kw, C / G, C_out]``; its gradients are JAX's."""
    channels, pixels = x.shape[3], x.shape[1] * x.shape[2]
    dense = functools.partial(plain, stride=stride, dilation=dilation)
    if groups in (1, channels):  # nothing to do, and depthwise, for which XLA has other means
        return dense(x, kernel, groups=groups)
    if channels <= _DENSE * stride:
        return by_blocks(dense, x, kernel, groups, channels)
    if pixels > _SMALL and kernel.shape[2] <= _TILE // 2:  # more than one group to a tile
        return by_blocks(dense, x, kernel, groups, _TILE)
    return dense(x, kernel, groups=groups)
