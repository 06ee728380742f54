"""Learning rates as functions of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.training.config import TrainConfig

# Of torch.optim.lr_scheduler.OneCycleLR: where it starts, where it ends, and the share of training that it rises for.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1e-4
_ONE_CYCLE_RISE = 0.3


def learning_rate_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step, counted from 0; traceable, float32.

    Time ``t`` is counted in steps, or, with ``schedule_unit='epoch'``, in whole epochs; ``T`` is the end of training,
    ``W`` of the warmup (in steps it is rounded to a whole one). The peak is ``config.peak_learning_rate``. While
    ``t < W`` the rate rises linearly: with ``warmup_start=None`` it is ``(t + 1) / W`` of the peak, with a number f
    ``f + (1 - f) t / W``. Then, with ``p = (t - W) / (T - W)``, or ``p = t / T`` where ``warmup_prefix`` is off, as
    in timm:

    - ``cosine``: ``final + (peak - final) (1 + cos(pi p)) / 2`` (Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5,
      without restarts);
    - ``polynomial``: ``final + (peak - final) (1 - p)^schedule_power``; ``linear``: the same with power 1;
    - ``step``: times ``decay_factor`` at each of ``decay_epochs``, counted from the start of training;
    - ``constant``: the peak.

    ``one_cycle`` has no warmup in front of it, it begins with one (Smith and Topin 2018, arXiv:1708.07120), of the
    shape of PyTorch's OneCycleLR with its defaults: half a cosine from ``warmup_start`` (None: 1/25) of the peak to
    the peak at ``t = R T - 1`` with ``R`` the warmup's share of training, 0.3 where there is none; then half a cosine
    to 1e-4 of where it started, at ``t = T - 1``.

    Torchvision's reference is ``schedule_unit='epoch'`` with ``warmup_start=0.01``: its LinearLR, then its
    CosineAnnealingLR over the epochs that are left.
    """
    peak, by_epoch = config.peak_learning_rate, config.schedule_unit == 'epoch'
    unit = 1 if by_epoch else steps_per_epoch
    end = config.epochs * unit
    warmup = config.warmup_epochs if by_epoch else round(config.warmup_epochs * unit)
    if config.schedule == 'one_cycle':
        rate = _one_cycle(config, peak, warmup, end)
    else:
        falling = _falling(config, peak, warmup, end, unit)
        rate = falling if warmup == 0 else _warmed_up(falling, config, peak, warmup)

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step)
        return rate(step // steps_per_epoch if by_epoch else step)

    return schedule


def _falling(config: TrainConfig, peak: float, warmup: float, end: int, unit: int) -> Callable[[jax.Array], jax.Array]:
    """The rate after the warmup as a function of the time."""
    start = warmup if config.warmup_prefix else 0
    final, remaining = config.final_learning_rate, max(end - start, 1)
    boundaries = np.array(config.decay_epochs, np.float64) * unit
    boundaries = boundaries if config.schedule_unit == 'epoch' else np.round(boundaries)
    power = config.schedule_power if config.schedule == 'polynomial' else 1.0

    def rate(time: jax.Array) -> jax.Array:
        progress = jnp.clip((time - start) / remaining, 0.0, 1.0)
        if config.schedule == 'cosine':
            return final + (peak - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
        if config.schedule in ('linear', 'polynomial'):
            return final + (peak - final) * (1 - progress) ** power
        if config.schedule == 'step':
            return peak * config.decay_factor ** jnp.sum(time >= jnp.asarray(boundaries, jnp.float32))
        return jnp.full_like(progress, peak)

    return rate


def _warmed_up(
    after: Callable[[jax.Array], jax.Array], config: TrainConfig, peak: float, warmup: float
) -> Callable[[jax.Array], jax.Array]:
    """A rate with a linear rise before it."""
    low = config.warmup_start

    def rate(time: jax.Array) -> jax.Array:
        # Epochs may end beyond a fractional warmup: no share above 1.
        share = jnp.minimum((time + 1) / warmup, 1.0) if low is None else low + (1 - low) * time / warmup
        return jnp.where(time < warmup, peak * share, after(time))

    return rate


def _one_cycle(config: TrainConfig, peak: float, warmup: float, end: int) -> Callable[[jax.Array], jax.Array]:
    low = peak * (_ONE_CYCLE_START if config.warmup_start is None else config.warmup_start)
    top, last = max((warmup or _ONE_CYCLE_RISE * end) - 1, 0), end - 1

    def between(first: float, second: float, progress: jax.Array) -> jax.Array:
        return second + (first - second) * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))) / 2

    def rate(time: jax.Array) -> jax.Array:
        down = between(peak, low * _ONE_CYCLE_END, (time - top) / max(last - top, 1e-6))
        return jnp.where(time < top, between(low, peak, time / max(top, 1e-6)), down)

    return rate
