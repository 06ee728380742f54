"""Batch normalization."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.errors import InputError


class BatchNorm(nn.Module):
    """Batch normalization over N, H and W (Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2).

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``

    What to know about its numbers:

    - ``decay`` is the weight of the *old* running value: 0.9 here is ``momentum=0.1`` in PyTorch.
    - A batch is normalized with its biased variance; the running variance collects the unbiased one
      (``n / (n - 1)``), as in the paper's Algorithm 2 and in PyTorch. Flax's own layer keeps the biased one.
    - The variance is the mean of squared deviations (two passes), so it cannot become negative.
    - Statistics are float32 whatever the compute dtype.
    - Under ``jit`` with a batch sharded over devices, mean and variance are those of the global batch.

    Attributes:
      decay: weight of the old running statistics at an update.
      epsilon: added to the variance.
      zero_init: start ``scale`` at zero, which makes a residual branch that ends here start as zero
        (Goyal et al. 2017, arXiv:1706.02677, section 5.1). The original ResNets start at one.
      dtype: dtype of the result; parameters and statistics are float32.
    """

    decay: float = 0.9
    epsilon: float = 1e-5
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, update_stats: bool | None = None) -> jax.Array:
        """Normalizes ``x``, of shape ``[N, H, W, C]``.

        Args:
          x: ``[N, H, W, C]``.
          train: normalize with the batch's statistics; otherwise with the running ones.
          update_stats: whether to move the running statistics (the ``batch_stats`` collection must then be
            mutable). None means: when training.

        Returns:
          ``[N, H, W, C]`` of ``dtype``.

        Raises:
          InputError: ``update_stats`` without ``train``.
        """
        if update_stats and not train:
            raise InputError('update_stats=True needs train=True: without it there are no batch statistics')
        channels = x.shape[-1]
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param('scale', init, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)

        x = x.astype(jnp.float32)
        if train:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - _broadcast(mean)).mean((0, 1, 2))
            if (train if update_stats is None else update_stats) and not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
                running_var.value = self.decay * running_var.value + (1 - self.decay) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        y = (x - _broadcast(mean)) * _broadcast(scale * lax.rsqrt(var + self.epsilon)) + _broadcast(bias)
        return y.astype(self.dtype)


def _broadcast(channels: jax.Array) -> jax.Array:
    """``[C]`` to ``[1, 1, 1, C]``."""
    return channels[None, None, None]
