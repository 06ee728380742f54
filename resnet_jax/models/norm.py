"""Batch normalization, and the normalizations by name."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.devices import match_varying_axes, sharding_spec, with_auto_axes
from resnet_jax.errors import InputError
from resnet_jax.models import batch_norm, folded_norm, gram_norm
from resnet_jax.models.compute import AxisName, explaining_forward_mode, is_constant
from resnet_jax.models.conv import BoundConvolution
from resnet_jax.models.conv_common import subsample
from resnet_jax.models.example_norm import EvoNormS0, ExampleNorm, FilterResponseNorm, GroupNorm


def _axis_size(axis_name: AxisName) -> int:
    """Number of parts into which ``axis_name`` splits a batch; 1 without an axis.

    Raises:
      InputError: the axis is not bound.
    """
    try:
        return 1 if axis_name is None else lax.psum(1, axis_name)
    except NameError as error:
        raise InputError(
            f'axis_name={axis_name!r} is not bound; call the network inside jax.shard_map, jax.pmap or jax.vmap with'
            ' this axis name'
        ) from error


def _unbiased(var: jax.Array, count: Any) -> jax.Array:
    """Converts a biased variance of n = ``count`` values by ``n / (n - 1)``; that of a single value stays 0."""
    if is_constant([count]):
        return var * (count / max(count - 1, 1))
    count = jnp.asarray(count).astype(jnp.float32)
    return var * (count / jnp.maximum(count - 1, 1))


def _check_statistics(statistics: str | int) -> None:
    """Raises InputError for an invalid value of ``BatchNorm.statistics``."""
    if statistics not in ('global', 'frozen') and (
        isinstance(statistics, bool) or not isinstance(statistics, int) or statistics < 1
    ):
        raise InputError(f'statistics={statistics!r} must be global, frozen, or a positive integer')


def _count_values(shape: Sequence[int], statistics: str | int, num_devices: int, initializing: bool) -> Any:
    """Returns the number of values that a mean is computed from.

    Raises:
      InputError: it is one, so that the result would be 0 for any input.
    """
    ghost = isinstance(statistics, int)
    count = (statistics if ghost else shape[0] * num_devices) * shape[1] * shape[2]
    if is_constant([count]) and count == 1 and not initializing:
        raise InputError(
            f'batch normalization needs more than one value per channel in training, found {list(shape)} with'
            f" statistics={statistics!r}; use larger batches or images, statistics='frozen', or another norm"
        )
    return count


def _ghost_batch_norm(
    x: jax.Array,
    vectors: Sequence[jax.Array],
    shortcut: jax.Array | None,
    size: int,
    normalize: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies ``normalize`` to each ``size`` consecutive examples; mean and variance are averaged over these parts."""
    if x.shape[0] % size:
        raise InputError(
            f'the batch size must be a multiple of statistics={size} (the ghost batch), found {x.shape[0]}'
        )

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, size, *x.shape[1:])

    def compute(x: jax.Array, shortcut: jax.Array | None, *vectors: jax.Array) -> tuple[jax.Array, ...]:
        axes = (0, None, None, None, None if shortcut is None else 0)
        y, mean, var = jax.vmap(normalize, axes)(split(x), *vectors, None if shortcut is None else split(shortcut))
        return y.reshape(x.shape), mean.mean(0), var.mean(0)

    # A ghost batch may be split over several devices.
    return with_auto_axes(compute, x, shortcut, *vectors, out_spec=[sharding_spec(x), (None,), (None,)])


class BatchNorm(nn.Module):
    """Batch normalization over N, H and W (Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2).

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``

    Details that differ between implementations:

    - ``decay`` is the weight of the *old* running value: 0.9 here is ``momentum=0.1`` in PyTorch.
    - A batch is normalized with its biased variance; the running variance averages the unbiased one
      (``n / (n - 1)``), as in the paper's Algorithm 2 and in PyTorch. Flax's own layer averages the biased one.
    - The variance is the mean of squared deviations (two passes), so it cannot become negative. On GPUs and TPUs, all
      implementations compute mean and variance in one pass, from deviations from the running mean, or from the
      covariance of the input of a preceding 1x1 convolution, and set a negative variance to zero.
    - Statistics are float32 for any compute dtype.
    - Under ``jit`` with a batch sharded over devices, mean and variance are those of the global batch, unless
      ``statistics`` is set otherwise.

    Attributes:
      decay: weight of the old running statistics in an update.
      epsilon: added to the variance.
      zero_init: initialize ``scale`` to zero, so that a residual branch that ends here starts at zero
        (Goyal et al. 2017, arXiv:1706.02677, section 5.1). The original ResNets initialize it to one.
      relu: apply a ReLU to the result, after the addition of the shortcut.
      statistics: the statistics used in training. ``global``: those of the whole batch. ``frozen``: the running
        statistics, which are then not updated (fine-tuning, detection). An integer k: those of each k consecutive
        examples (ghost batches, Hoffer et al. 2017, arXiv:1705.08741, Algorithm 1, except that the running statistics
        are updated once, with the average over the ghost batches). With k examples per device, this is what other
        frameworks call unsynchronized batch normalization.
      dtype: dtype of the result; parameters and statistics are float32.
      implementation: ``auto`` has a hand-written gradient; ``xla`` is differentiated by JAX and also supports
        forward mode.
      axis_name: None, or one or several device axes of ``jax.shard_map`` or ``jax.pmap``, over which the batch is
        split: global statistics are then computed over these axes. Ghost batches stay within a device, and the running
        statistics are updated with the average over the devices. Not needed under ``jit``.
    """

    decay: float = 0.9
    epsilon: float = 1e-5
    zero_init: bool = False
    relu: bool = False
    statistics: str | int = 'global'
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    axis_name: AxisName = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        shortcut: jax.Array | None = None,
        conv: BoundConvolution | None = None,
        *,
        train: bool,
        update_stats: bool | None = None,
    ) -> jax.Array:
        """Normalizes ``x``, or ``conv(x)`` if a convolution is passed.

        Args:
          x: ``[N, H, W, C]``, or the input of the convolution.
          shortcut: ``[N, H, W, C]`` to add to the result, or None.
          conv: None, or the convolution that precedes the normalization.
          train: normalize with the batch statistics; otherwise with the running statistics.
          update_stats: whether to update the running statistics (the ``batch_stats`` collection must then be
            mutable). None means in training, unless ``statistics`` is ``frozen``.

        Returns:
          ``[N, H, W, C]`` of ``dtype``.

        Raises:
          InputError: ``update_stats=True`` without batch statistics, an invalid value of ``statistics``, a batch that
            cannot be split into ghost batches of equal size, or a single value per channel, whose normalized value is
            always 0 (PyTorch raises as well).
        """
        _check_statistics(self.statistics)
        frozen = not train or self.statistics == 'frozen'
        if update_stats and frozen:
            raise InputError("update_stats=True requires train=True and statistics other than 'frozen'")
        channels = x.shape[-1] if conv is None else conv.kernel.shape[-1]
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param('scale', init, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)

        x = x.astype(self.dtype)
        if frozen:
            statistics = running_mean.value, running_var.value
            return folded_norm.normalize(x, conv, *statistics, scale, bias, shortcut, self.epsilon, self.relu)
        shift = lax.stop_gradient(running_mean.value)
        y, mean, var, count = self._normalize(x, conv, scale, bias, shift, shortcut)
        if update_stats is not False and not self.is_initializing():
            mean, unbiased = lax.stop_gradient((mean, _unbiased(var, count)))
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * unbiased
        return y

    def _normalize(
        self,
        x: jax.Array,
        conv: BoundConvolution | None,
        scale: jax.Array,
        bias: jax.Array,
        shift: jax.Array,
        shortcut: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """Returns the result with batch statistics, their mean and variance, and the number of values."""
        kernel = None
        ours = self.statistics == 'global' and self.axis_name is None and self.implementation == 'auto'
        if conv is not None and ours and gram_norm.suits(x, conv):
            x, kernel = subsample(x, conv.stride), conv.kernel
        elif conv is not None:
            x = conv(x)
        axis_name = None if self.is_initializing() else self.axis_name  # not bound during initialization
        count = _count_values(x.shape, self.statistics, _axis_size(axis_name), self.is_initializing())
        ghost = self.statistics if isinstance(self.statistics, int) else None
        # Ghost batches stay within a device.
        function: Callable[..., Any] = functools.partial(
            batch_norm.normalize, axis_name=axis_name if ghost is None else None
        )
        if self.implementation == 'auto' and (axis_name is None or ghost is not None):
            function = batch_norm.normalize_vjp
        x, shortcut, kernel, *vectors = match_varying_axes(x, shortcut, kernel, scale, bias, shift)
        if kernel is not None:
            function = functools.partial(gram_norm.normalize_convolution, kernel=kernel)
        normalize = functools.partial(function, epsilon=self.epsilon, relu=self.relu)
        with explaining_forward_mode():
            if ghost is None:
                return *normalize(x, *vectors, shortcut), count
            y, mean, var = _ghost_batch_norm(x, vectors, shortcut, ghost, normalize)
        if axis_name is not None:
            mean, var = lax.pmean((mean, var), axis_name)
        return y, mean, var, count


NORMS: dict[str, type[BatchNorm] | type[ExampleNorm]] = {
    'batch': BatchNorm,
    'group': GroupNorm,
    'evo': EvoNormS0,
    'filter_response': FilterResponseNorm,
}
