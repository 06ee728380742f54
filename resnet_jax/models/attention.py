"""Channel attention: gates for channels, or for the channels of several branches, from the feature map's mean."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.compute import Mode
from resnet_jax.models.conv import he_normal_fan_out
from resnet_jax.models.layers import Layer


def make_divisible(value: float, divisor: int = 8, least: int | None = None) -> int:
    """Rounds a value to the nearest multiple of ``divisor``, at least ``least`` (None: ``divisor``)."""
    return max(least or divisor, int(value + divisor / 2) // divisor * divisor)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: ``x sigmoid(W2 relu(W1 mean(x)))`` (Hu et al. 2018, arXiv:1709.01507, Eq. 3).

    Attributes:
      reduced: number of channels between the two linear layers.
      dtype: compute dtype; parameters are float32.
    """

    reduced: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, H, W, C]`` to the same shape."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=he_normal_fan_out)
        reduced = nn.relu(dense(self.reduced, name='fc1')(x.mean((1, 2))))
        gate = nn.sigmoid(dense(x.shape[-1], name='fc2')(reduced))
        return x * gate[:, None, None]


class EfficientChannelAttention(nn.Module):
    """``x sigmoid(conv(mean(x)))``, convolving along the channels (Wang et al. 2020, arXiv:1910.03151, Eq. 9).

    Attributes:
      channels: the number of channels that determines the kernel size k: ``|log2(channels) + 1| / 2``, rounded down,
        plus 1 if that is even, and at least 3 (Eq. 12). A pruned network keeps the k of the unpruned one.
      dtype: compute dtype; the kernel ``[k, 1, 1]`` is float32.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, H, W, C]`` to the same shape."""
        taps = int(abs(math.log2(self.channels) + 1) / 2)
        taps = max(taps + 1 - taps % 2, 3)
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        kernel = self.param('kernel', init, (taps, 1, 1), jnp.float32).astype(self.dtype)[:, 0, 0]
        mean = jnp.pad(x.mean((1, 2)), ((0, 0), (taps // 2, taps // 2)))
        gate = sum(kernel[tap] * mean[:, tap : tap + x.shape[-1]] for tap in range(taps))
        return x * nn.sigmoid(gate)[:, None, None]


ATTENTIONS = {
    'none': 'none',
    'se': 'squeeze-and-excitation',
    'eca': 'efficient channel attention',
}


class SplitAttention(Layer):
    """A 3x3 convolution in ``radix`` branches and their softmax-weighted sum (Zhang et al. 2020, arXiv:2004.08955).

    Attributes:
      features: number of output channels.
      radix: number of branches; with one, the softmax is a sigmoid.
      groups: cardinality of each branch.
      stride: stride of the convolution.
      dilation: dilation of the convolution, in pixels.
    """

    features: int
    radix: int = 2
    groups: int = 1
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """Maps ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), features]``.

        ``train`` and ``update_stats`` are as in ``norm.BatchNorm``.
        """
        mode = Mode(train, update_stats)
        radix, groups, features = self.radix, self.groups, self.features
        conv = self.conv('conv', features * radix, 3, self.stride, self.dilation, groups * radix)
        x = self.normalization('norm0', mode, relu=True).after(conv, x)
        branches = x.reshape(*x.shape[:3], radix, features)
        reduced = make_divisible(features * radix / 4, 8, 32)
        gate = branches.sum(3).mean((1, 2), keepdims=True)
        gate = self.conv('fc1', reduced, 1, groups=groups, use_bias=True)(gate)
        gate = self.normalization('norm1', mode, relu=True)(gate)
        gate = self.conv('fc2', features * radix, 1, groups=groups, use_bias=True)(gate)
        if radix == 1:
            return x * nn.sigmoid(gate)
        gate = gate[:, 0, 0].reshape(-1, groups, radix, features // groups).swapaxes(1, 2)
        gate = nn.softmax(gate, 1).reshape(-1, radix, features)[:, None, None]
        return (branches * gate).sum(3)


class SelectiveKernel(Layer):
    """Two 3x3 convolutions, one dilated, and their softmax-weighted sum (Li et al. 2019, arXiv:1903.06586).

    Attributes:
      features: number of output channels.
      reduction: number of channels between the two linear layers, as a fraction of ``features``.
      divisor: that number is rounded to a multiple of this.
      split_input: each convolution takes half of the input channels.
      groups: groups of each convolution.
      stride: stride of both convolutions.
      dilation: dilation of the first convolution, in pixels; that of the second is twice as large.
    """

    features: int
    reduction: float = 1 / 16
    divisor: int = 8
    split_input: bool = True
    groups: int = 1
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """Maps ``[N, H, W, C]`` to ``[N, ceil(H / stride), ceil(W / stride), features]``.

        ``train`` and ``update_stats`` are as in ``norm.BatchNorm``.

        Raises:
          InputError: ``split_input`` with an odd number of channels.
        """
        mode = Mode(train, update_stats)
        if self.split_input and x.shape[-1] % 2:
            raise InputError(f'split_input=True requires an even number of channels, found {x.shape[-1]}')
        paths = []
        for index, part in enumerate(jnp.split(x, 2, -1) if self.split_input else (x, x)):
            dilation, groups = self.dilation * (index + 1), min(self.groups, self.features)
            conv = self.conv(f'path{index + 1}_conv', self.features, 3, self.stride, dilation, groups)
            paths.append(self.normalization(f'path{index + 1}_norm', mode, relu=True).after(conv, part))
        reduced = make_divisible(self.features * self.reduction, self.divisor)
        gate = (paths[0] + paths[1]).mean((1, 2), keepdims=True)
        gate = self.normalization('fc_norm', mode, relu=True).after(self.conv('fc_reduce', reduced, 1), gate)
        gate = self.conv('fc_select', 2 * self.features, 1)(gate)
        # The softmax of two numbers is the sigmoid of their difference.
        first = nn.sigmoid(gate[..., : self.features] - gate[..., self.features :])
        return paths[0] * first + paths[1] * (1 - first)
