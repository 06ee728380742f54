"""Grouped convolutions in forms that XLA's TPU backend computes fast.

A TPU multiplies tiles of 128 by 128 channels. XLA computes groups of a few channels with the groups among the pixels
and the batch where channels were: the products are cheap then, but maps are copied into that layout and back, and the
normalizations around, which XLA otherwise computes inside of the convolutions, go over the maps again.

Dense convolutions, whose kernels are zero between the groups, need none of that. Beyond _DENSE channels their products
with zeros cost more than they save, and neighbouring groups are taken together up to a tile.

TABLE
"""

import functools

import jax

from resnet_jax.models.conv_common import by_blocks, plain

_TILE = 128  # channels
_DENSE = 256  # channels at stride 1 up to which one dense convolution is cheaper than one a tile; twice that at 2


def forward(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int) -> jax.Array:
    """The convolution: ``x [N, H, W, C]``, ``kernel [kh, kw, C / G, C_out]``; its gradients are JAX's."""
    channels = x.shape[3]
    if groups in (1, channels):  # dense already, or a channel at a time, for which XLA has other means
        return plain(x, kernel, stride, dilation, groups)
    most = channels if channels <= _DENSE * stride else _TILE
    dense = functools.partial(plain, stride=stride, dilation=dilation)
    return by_blocks(dense, x, kernel, groups, most)
