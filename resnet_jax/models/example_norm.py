"""Normalization by each example's own statistics."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import InputError


def expand(channels: jax.Array) -> jax.Array:
    """Reshapes ``[C]`` to ``[1, 1, 1, C]``."""
    return channels[None, None, None]


class ExampleNorm(nn.Module):
    """Base class of normalizations with per-example statistics, which compute the same in training and evaluation.

    Attributes:
      zero_init: initialize ``scale`` to zero.
      relu: apply the activation to the result, after the addition of the shortcut.
      epsilon: added to the mean square or the variance.
      dtype: dtype of the result; parameters and statistics are float32.
    """

    zero_init: bool = False
    relu: bool = False
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, shortcut: jax.Array | None = None, *, train: bool, update_stats: bool | None = None
    ) -> jax.Array:
        """Normalizes ``x``.

        Args:
          x: ``[N, H, W, C]``.
          shortcut: ``[N, H, W, C]`` to add to the result, or None.
          train: ignored; accepted as in ``BatchNorm``.
          update_stats: ignored; accepted as in ``BatchNorm``.

        Returns:
          ``[N, H, W, C]`` of ``dtype``.
        """
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.constant(0.0 if self.zero_init else 1.0), (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        inner = self.relu and shortcut is None
        y = self._normalize(x.astype(jnp.float32), inner) * expand(scale) + expand(bias)
        y = self._activate(y) if inner else y
        if shortcut is not None:
            y = y + shortcut.astype(jnp.float32)
            y = nn.relu(y) if self.relu else y
        return y.astype(self.dtype)

    def _normalize(self, x: jax.Array, activate: bool) -> jax.Array:
        raise NotImplementedError

    def _activate(self, y: jax.Array) -> jax.Array:
        return nn.relu(y)

    def _channel_param(self, name: str, value: float, channels: int) -> jax.Array:
        """Creates a parameter ``[C]`` and returns it as ``[1, 1, 1, C]``."""
        return expand(self.param(name, nn.initializers.constant(value), (channels,), jnp.float32))


class GroupNorm(ExampleNorm):
    """Group normalization (Wu and He 2018, arXiv:1803.08494, Eq. 7), with PyTorch's epsilon.

    Attributes:
      groups: number of groups of consecutive channels, a divisor of C; mean and variance are over H, W and a group.
    """

    groups: int = 32

    def _normalize(self, x: jax.Array, activate: bool) -> jax.Array:
        grouped = _split_channels(x, self.groups)
        deviations = grouped - grouped.mean((1, 2, 4), keepdims=True)
        var = jnp.square(deviations).mean((1, 2, 4), keepdims=True)
        return (deviations * lax.rsqrt(var + self.epsilon)).reshape(x.shape)


class EvoNormS0(ExampleNorm):
    """EvoNorm-S0 (Liu et al. 2020, arXiv:2004.02967): normalization and activation in one, ``x sigmoid(v x) / std``.

    Without activation, it consists only of scale and bias, as in timm's layer of the same name.

    Attributes:
      groups: number of groups of consecutive channels, a divisor of C; std is over H, W and a group.
    """

    groups: int = 32

    def _normalize(self, x: jax.Array, activate: bool) -> jax.Array:
        if not activate:
            return x
        grouped = _split_channels(x, self.groups)
        inverse_std = lax.rsqrt(grouped.var((1, 2, 4), keepdims=True) + self.epsilon)
        gate = nn.sigmoid(x * self._channel_param('v', 1.0, x.shape[-1]))
        return (_split_channels(x * gate, self.groups) * inverse_std).reshape(x.shape)

    def _activate(self, y: jax.Array) -> jax.Array:
        return y


class FilterResponseNorm(ExampleNorm):
    """Filter response normalization (Singh and Krishnan 2019, arXiv:1911.09737): ``max(scale x / rms + bias, tau)``."""

    def _normalize(self, x: jax.Array, activate: bool) -> jax.Array:
        return x * lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + self.epsilon)

    def _activate(self, y: jax.Array) -> jax.Array:
        return jnp.maximum(y, self._channel_param('tau', 0.0, y.shape[-1]))


def _split_channels(x: jax.Array, groups: int) -> jax.Array:
    """Reshapes ``[N, H, W, C]`` to ``[N, H, W, G, C / G]``."""
    if x.shape[-1] % groups:
        raise InputError(f'the channels must be a multiple of {groups} (the groups of the norm), found {x.shape[-1]}')
    return x.reshape(*x.shape[:3], groups, -1)
