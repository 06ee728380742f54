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
from resnet_jax.models.compute import AxisName, explaining_forward_mode, is_constant
from resnet_jax.models.example_norm import EvoNormS0, ExampleNorm, FilterResponseNorm, GroupNorm, expand


def _affine(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """``scale (x - mean) / sqrt(var + epsilon) + bias`` with vectors ``[C]``."""
    return (x - expand(mean)) * expand(scale * lax.rsqrt(var + epsilon)) + expand(bias)


def _moments_in_two_passes(x: jax.Array, shift: jax.Array, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of ``x``, float32 ``[N, H, W, C]``, from squared deviations from the mean."""
    mean = _channel_mean(x, axis_name)
    return mean, _channel_mean(jnp.square(x - expand(mean)), axis_name)


def _moments_in_one_pass(x: jax.Array, shift: jax.Array, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """The same from sums that XLA's TPU backend computes while the preceding convolution writes ``x``.

    Deviations are from ``shift``, the running mean: the closer it is to the batch mean, the smaller the cancellation.
    """
    if axis_name is not None:
        shift = lax.pmean(shift, axis_name)  # the running mean may differ between devices
    deviations = x - expand(shift)
    offset = _channel_mean(deviations, axis_name)
    var = _channel_mean(jnp.square(deviations), axis_name) - jnp.square(offset)
    return shift + offset, jnp.maximum(var, 0)


def _channel_mean(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Mean over N, H and W, and over the devices of ``axis_name`` unless it is None."""
    mean = x.mean((0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    epsilon: float,
    relu: bool,
    axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes with the batch statistics, then adds the shortcut, then applies the ReLU.

    Args:
      x: ``[N, H, W, C]``, of any float dtype.
      scale: float32 ``[C]``.
      bias: float32 ``[C]``.
      shift: float32 ``[C]``, an estimate of the mean, which affects only rounding errors.
      shortcut: ``[N, H, W, C]`` or None.
      epsilon: added to the variance.
      relu: whether to apply the ReLU.
      axis_name: None, or the device axes over which the statistics are computed.

    Returns:
      The result in the dtype of ``x``, and the batch mean and biased variance, float32 ``[C]``.
    """
    x32 = x.astype(jnp.float32)
    forms = {'tpu': _moments_in_one_pass, 'default': _moments_in_two_passes}
    forms = {platform: functools.partial(form, axis_name=axis_name) for platform, form in forms.items()}
    mean, var = lax.platform_dependent(x32, shift, **forms)
    y = _affine(x32, mean, var, scale, bias, epsilon)
    if shortcut is not None:
        y = y + shortcut.astype(jnp.float32)
    return (nn.relu(y) if relu else y).astype(x.dtype), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _batch_norm_vjp(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
    shortcut: jax.Array | None,
    epsilon: float,
    relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``_batch_norm`` with a hand-written gradient: two passes over the map; automatic differentiation makes about six.

    It has no ``axis_name``: a hand-written gradient cannot communicate where JAX differentiates a ``jax.vmap`` that
    names its axis, because the axis is unknown outside of it.
    """
    return _batch_norm(x, scale, bias, shift, shortcut, epsilon, relu)


def _batch_norm_forward(x: jax.Array, scale: jax.Array, *rest: Any) -> tuple[Any, Any]:
    """Returns the result and the residuals; ``rest`` are the arguments of ``_batch_norm`` after ``scale``."""
    y, mean, var = _batch_norm(x, scale, *rest)
    shortcut = rest[2]
    return (y, mean, var), (x, y, mean, var, scale, shortcut is not None)


def _batch_norm_backward(epsilon: float, relu: bool, saved: Any, cotangents: Any) -> tuple[Any, ...]:
    """Computes the gradient (Ioffe and Szegedy 2015, section 3), with xhat = (x - mean) / std and sums over N, H and W:

    dbias = sum dz,  dscale = sum dz xhat,  dx = scale / std (dz - dbias / n - xhat dscale / n)

    The ReLU's mask is computed from its output, which the next convolution stores anyway. The statistics have no
    gradient.
    """
    x, y, mean, var, scale, has_shortcut = saved
    dy = cotangents[0].astype(jnp.float32)
    dz = jnp.where(y > 0, dy, 0) if relu else dy
    inverse_std = lax.rsqrt(var + epsilon)
    centered = x.astype(jnp.float32) - expand(mean)
    dbias = dz.sum((0, 1, 2))
    dscale = (dz * centered).sum((0, 1, 2)) * inverse_std
    count = x.size // x.shape[-1]
    slope, offset = scale * inverse_std, dscale * inverse_std / count
    dx = expand(slope) * (dz - expand(dbias / count) - centered * expand(offset))
    return dx.astype(x.dtype), dscale, dbias, jnp.zeros_like(dbias), dz.astype(y.dtype) if has_shortcut else None


_batch_norm_vjp.defvjp(_batch_norm_forward, _batch_norm_backward)


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
    - The variance is the mean of squared deviations (two passes), so it cannot become negative. On a TPU, both
      implementations compute mean and variance in one pass, from deviations from the running mean, and set a negative
      variance to zero.
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
        self, x: jax.Array, shortcut: jax.Array | None = None, *, train: bool, update_stats: bool | None = None
    ) -> jax.Array:
        """Normalizes ``x``.

        Args:
          x: ``[N, H, W, C]``.
          shortcut: ``[N, H, W, C]`` to add to the result, or None.
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
        channels = x.shape[-1]
        init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        scale = self.param('scale', init, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)

        x = x.astype(self.dtype)
        if frozen:
            y = _affine(x.astype(jnp.float32), running_mean.value, running_var.value, scale, bias, self.epsilon)
            y = y if shortcut is None else y + shortcut.astype(jnp.float32)
            return (nn.relu(y) if self.relu else y).astype(self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name  # not bound during initialization
        num_devices = _axis_size(axis_name)
        ghost = self.statistics if isinstance(self.statistics, int) else None
        # Ghost batches stay within a device.
        function: Callable[..., Any] = functools.partial(_batch_norm, axis_name=axis_name if ghost is None else None)
        if self.implementation == 'auto' and (axis_name is None or ghost is not None):
            function = _batch_norm_vjp
        count = _count_values(x.shape, self.statistics, num_devices, self.is_initializing())
        normalize = functools.partial(function, epsilon=self.epsilon, relu=self.relu)
        x, shortcut, *vectors = match_varying_axes(x, shortcut, scale, bias, lax.stop_gradient(running_mean.value))
        with explaining_forward_mode():
            if ghost is None:
                y, mean, var = normalize(x, *vectors, shortcut)
            else:
                y, mean, var = _ghost_batch_norm(x, vectors, shortcut, ghost, normalize)
        if update_stats is not False and not self.is_initializing():
            if ghost is not None and axis_name is not None:
                mean, var = lax.pmean((mean, var), axis_name)
            mean, unbiased = lax.stop_gradient((mean, _unbiased(var, count)))
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * unbiased
        return y


NORMS: dict[str, type[BatchNorm] | type[ExampleNorm]] = {
    'batch': BatchNorm,
    'group': GroupNorm,
    'evo': EvoNormS0,
    'filter_response': FilterResponseNorm,
}
