"""Schedules as dataclasses, and learning rates as functions of the step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.errors import InputError
from resnet_jax.settings import Settings, group, setting

# Defaults of torch.optim.lr_scheduler.OneCycleLR: final rate over initial rate, and fraction of training spent rising.
_ONE_CYCLE_END = 1e-4
_ONE_CYCLE_RISE = 0.3


@dataclasses.dataclass(frozen=True)
class Warmup(Settings):
    """A linear warmup before the schedule."""

    warmup_epochs: float = setting(
        help='Duration of the linear warmup; may be fractional.', unit='epochs', above=0, off='0'
    )
    warmup_start: float | None = setting(
        None,
        'Initial learning rate of the warmup, as a fraction of the peak.',
        none='one step above 0',
        at_least=0,
        at_most=1,
    )


@dataclasses.dataclass(frozen=True)
class Schedule(Settings):
    """Settings of all schedules."""

    schedule_unit: str = setting('step', 'How often the learning rate changes.', choices=('step', 'epoch'))
    warmup: Warmup | None = group(Warmup, None)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The peak learning rate, after the warmup."""


@dataclasses.dataclass(frozen=True)
class StepDecay(Schedule):
    """The peak learning rate, multiplied by a factor at some epochs."""

    decay_epochs: tuple[float, ...] = setting(
        (), 'Epochs at which the step schedule decays the rate: 30,60.', unit='epochs', at_least=0
    )
    decay_factor: float = setting(0.1, 'Factor of the step schedule at each decay.', at_least=0)


@dataclasses.dataclass(frozen=True)
class Falling(Schedule):
    """A schedule that decays until the end of training."""

    final_learning_rate: float = setting(
        0.0, 'Learning rate at the end of a cosine, linear or polynomial schedule.', at_least=0
    )
    warmup_prefix: bool = setting(
        True, 'Start a cosine, linear or polynomial schedule after the warmup instead of at the start of training.'
    )

    def check_together(self) -> None:
        """As in Settings."""
        if not self.warmup_prefix and self.warmup is None:
            raise InputError('warmup_prefix=False has no effect without warmup_epochs')


@dataclasses.dataclass(frozen=True)
class Cosine(Falling):
    """Cosine decay (Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5, without restarts)."""


@dataclasses.dataclass(frozen=True)
class Linear(Falling):
    """Linear decay."""


@dataclasses.dataclass(frozen=True)
class Polynomial(Falling):
    """Polynomial decay: a power of the remaining fraction of training."""

    schedule_power: float = setting(1.0, 'Exponent of the polynomial schedule.', at_least=0)


@dataclasses.dataclass(frozen=True)
class OneCycle(Settings):
    """One-cycle schedule (Smith and Topin 2018, arXiv:1708.07120), as PyTorch's OneCycleLR."""

    schedule_unit: str = setting('step', 'How often the learning rate changes.', choices=('step', 'epoch'))
    warmup_epochs: float | None = setting(
        None, 'Duration of the increase.', none='0.3 of training', unit='epochs', at_least=0
    )
    warmup_start: float = setting(1 / 25, 'Initial learning rate, as a fraction of the peak.', at_least=0, at_most=1)


SCHEDULES: dict[str, type] = {
    'cosine': Cosine,
    'linear': Linear,
    'polynomial': Polynomial,
    'one_cycle': OneCycle,
    'step': StepDecay,
    'constant': Constant,
}


def warmup_epochs(schedule: Any) -> float:
    """The warmup epochs of a schedule; 0 if it has none or does not specify them."""
    if isinstance(schedule, OneCycle):
        return schedule.warmup_epochs or 0.0
    warmup = getattr(schedule, 'warmup', None)
    return 0.0 if warmup is None else warmup.warmup_epochs


def learning_rate_schedule(schedule: Any, peak: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0; traceable, float32.

    Time ``t`` is counted in steps or, with ``schedule_unit='epoch'``, in whole epochs. ``T`` is the end of training and
    ``W`` the end of the warmup (rounded to whole steps). While ``t < W`` the rate rises linearly: it is ``(t + 1) / W``
    of the peak with ``warmup_start=None``, otherwise ``f + (1 - f) t / W`` with ``f = warmup_start``. After that, with
    ``p = (t - W) / (T - W)``, or ``p = t / T`` if ``warmup_prefix`` is off, as in timm:

    - ``cosine``: ``final + (peak - final) (1 + cos(pi p)) / 2`` (Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5,
      without restarts);
    - ``polynomial``: ``final + (peak - final) (1 - p)^schedule_power``; ``linear``: the same with power 1;
    - ``step``: multiplied by ``decay_factor`` at each of ``decay_epochs``, counted from the start of training;
    - ``constant``: the peak.

    ``one_cycle`` (Smith and Topin 2018, arXiv:1708.07120) includes its warmup. It has the shape of PyTorch's OneCycleLR
    with its defaults: half a cosine from ``warmup_start`` of the peak up to the peak at ``t = R T - 1``, where ``R`` is
    the warmup's fraction of training, 0.3 by default; then half a cosine down to 1e-4 of its initial value at
    ``t = T - 1``.

    A custom function is used as the learning rate itself, like a schedule of optax.

    Torchvision's reference corresponds to ``schedule_unit='epoch'`` with ``warmup_start=0.01``: its LinearLR, then its
    CosineAnnealingLR over the remaining epochs.
    """
    if not isinstance(schedule, Schedule | OneCycle):
        return schedule
    by_epoch = schedule.schedule_unit == 'epoch'
    unit = 1 if by_epoch else steps_per_epoch
    warmup = warmup_epochs(schedule) if by_epoch else round(warmup_epochs(schedule) * unit)
    time = _Time(peak, warmup, epochs * unit, unit)
    if isinstance(schedule, OneCycle):
        rate = _one_cycle(schedule, time)
    else:
        falling = _falling(schedule, time)
        rate = falling if warmup == 0 else _warmed_up(falling, schedule, time)

    def of_step(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step)
        return rate(step // steps_per_epoch if by_epoch else step)

    return of_step


@dataclasses.dataclass(frozen=True)
class _Time:
    """The peak rate, and the ends of warmup and training and the length of an epoch in the unit of time."""

    peak: float
    warmup: float
    end: int
    epoch: int


def _falling(schedule: Schedule, time: _Time) -> Callable[[jax.Array], jax.Array]:
    """The rate after the warmup as a function of time."""
    peak, start = time.peak, time.warmup
    if isinstance(schedule, StepDecay):
        boundaries = np.array(schedule.decay_epochs, np.float64) * time.epoch
        boundaries = boundaries if schedule.schedule_unit == 'epoch' else np.round(boundaries)
        factor = schedule.decay_factor
        return lambda now: peak * factor ** jnp.sum(now >= jnp.asarray(boundaries, jnp.float32))
    if not isinstance(schedule, Falling):
        return lambda now: jnp.full(jnp.shape(now), peak, jnp.float32)
    start = time.warmup if schedule.warmup_prefix else 0
    final, remaining = schedule.final_learning_rate, max(time.end - start, 1)
    power = schedule.schedule_power if isinstance(schedule, Polynomial) else 1.0

    def rate(now: jax.Array) -> jax.Array:
        progress = jnp.clip((now - start) / remaining, 0.0, 1.0)
        if isinstance(schedule, Cosine):
            return final + (peak - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return final + (peak - final) * (1 - progress) ** power

    return rate


def _warmed_up(
    after: Callable[[jax.Array], jax.Array], schedule: Schedule, time: _Time
) -> Callable[[jax.Array], jax.Array]:
    """A rate preceded by a linear warmup."""
    peak, warmup, low = time.peak, time.warmup, None if schedule.warmup is None else schedule.warmup.warmup_start

    def rate(now: jax.Array) -> jax.Array:
        # A whole epoch may exceed a fractional warmup: limit the fraction to 1.
        share = jnp.minimum((now + 1) / warmup, 1.0) if low is None else low + (1 - low) * now / warmup
        return jnp.where(now < warmup, peak * share, after(now))

    return rate


def _one_cycle(schedule: OneCycle, time: _Time) -> Callable[[jax.Array], jax.Array]:
    peak, low = time.peak, time.peak * schedule.warmup_start
    top, last = max((time.warmup or _ONE_CYCLE_RISE * time.end) - 1, 0), time.end - 1

    def between(first: float, second: float, progress: jax.Array) -> jax.Array:
        return second + (first - second) * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))) / 2

    def rate(now: jax.Array) -> jax.Array:
        down = between(peak, low * _ONE_CYCLE_END, (now - top) / max(last - top, 1e-6))
        return jnp.where(now < top, between(low, peak, now / max(top, 1e-6)), down)

    return rate
