"""Schedules as types, and learning rates as functions of the step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.errors import InputError
from resnet_jax.settings import Settings, group, setting

# Of torch.optim.lr_scheduler.OneCycleLR: where it ends, and the share of training that it rises for.
_ONE_CYCLE_END = 1e-4
_ONE_CYCLE_RISE = 0.3


@dataclasses.dataclass(frozen=True)
class Warmup(Settings):
    """A linear rise of the learning rate in front of its schedule."""

    warmup_epochs: float = setting(
        help='Duration of the linear warmup; fractions are allowed.', unit='epochs', above=0, off='0'
    )
    warmup_start: float | None = setting(
        None, 'Share of the peak where the warmup starts.', none='one step above 0', at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class Schedule(Settings):
    """What all schedules have."""

    schedule_unit: str = setting(
        'step', 'Whether the learning rate changes with every step or every epoch.', choices=('step', 'epoch')
    )
    warmup: Warmup | None = group(Warmup, None)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The peak, after the warmup."""


@dataclasses.dataclass(frozen=True)
class StepDecay(Schedule):
    """The peak, times a factor at each of some epochs."""

    decay_epochs: tuple[float, ...] = setting((), 'Epochs at which the step schedule decays: 30,60.', unit='epochs')
    decay_factor: float = setting(0.1, 'Factor by which the rate is multiplied at each decay.', at_least=0)


@dataclasses.dataclass(frozen=True)
class Falling(Schedule):
    """A schedule that falls all the way to the end of training."""

    final_learning_rate: float = setting(
        0.0, 'Learning rate at the end of a cosine, linear or polynomial schedule.', at_least=0
    )
    warmup_prefix: bool = setting(
        True, 'Whether a cosine, linear or polynomial schedule starts after the warmup, or at the start of training.'
    )

    def check_together(self) -> None:
        """As in Settings."""
        if not self.warmup_prefix and self.warmup is None:
            raise InputError('warmup_prefix=False has no effect without warmup_epochs')


@dataclasses.dataclass(frozen=True)
class Cosine(Falling):
    """Half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5, without restarts)."""


@dataclasses.dataclass(frozen=True)
class Linear(Falling):
    """A straight line."""


@dataclasses.dataclass(frozen=True)
class Polynomial(Falling):
    """A power of the share of training that is left."""

    schedule_power: float = setting(1.0, 'Exponent of the polynomial schedule.', at_least=0)


@dataclasses.dataclass(frozen=True)
class OneCycle(Settings):
    """A rise and a fall (Smith and Topin 2018, arXiv:1708.07120), as PyTorch's OneCycleLR."""

    schedule_unit: str = setting(
        'step', 'Whether the learning rate changes with every step or every epoch.', choices=('step', 'epoch')
    )
    warmup_epochs: float | None = setting(
        None, 'Duration of the rise.', none='0.3 of training', unit='epochs', at_least=0
    )
    warmup_start: float = setting(1 / 25, 'Share of the peak where it starts.', at_least=0, at_most=1)


SCHEDULES: dict[str, type] = {
    'cosine': Cosine,
    'linear': Linear,
    'polynomial': Polynomial,
    'one_cycle': OneCycle,
    'step': StepDecay,
    'constant': Constant,
}


def warmup_epochs(schedule: Any) -> float:
    """How long a schedule rises; 0 where it does not, or does not say."""
    if isinstance(schedule, OneCycle):
        return schedule.warmup_epochs or 0.0
    warmup = getattr(schedule, 'warmup', None)
    return 0.0 if warmup is None else warmup.warmup_epochs


def learning_rate_schedule(schedule: Any, peak: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step, counted from 0; traceable, float32.

    Time ``t`` is counted in steps, or, with ``schedule_unit='epoch'``, in whole epochs; ``T`` is the end of training,
    ``W`` of the warmup (in steps it is rounded to a whole one). While
    ``t < W`` the rate rises linearly: with ``warmup_start=None`` it is ``(t + 1) / W`` of the peak, with a number f
    ``f + (1 - f) t / W``. Then, with ``p = (t - W) / (T - W)``, or ``p = t / T`` where ``warmup_prefix`` is off, as
    in timm:

    - ``cosine``: ``final + (peak - final) (1 + cos(pi p)) / 2`` (Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5,
      without restarts);
    - ``polynomial``: ``final + (peak - final) (1 - p)^schedule_power``; ``linear``: the same with power 1;
    - ``step``: times ``decay_factor`` at each of ``decay_epochs``, counted from the start of training;
    - ``constant``: the peak.

    ``one_cycle`` has no warmup in front of it, it begins with one (Smith and Topin 2018, arXiv:1708.07120), of the
    shape of PyTorch's OneCycleLR with its defaults: half a cosine from ``warmup_start`` of the peak to
    the peak at ``t = R T - 1`` with ``R`` the warmup's share of training, 0.3 where there is none; then half a cosine
    to 1e-4 of where it started, at ``t = T - 1``.

    A function of the caller's is the learning rate itself, as a schedule of optax's is.

    Torchvision's reference is ``schedule_unit='epoch'`` with ``warmup_start=0.01``: its LinearLR, then its
    CosineAnnealingLR over the epochs that are left.
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
    """The peak, the ends of warmup and training, and an epoch, all three in the unit that time is counted in."""

    peak: float
    warmup: float
    end: int
    epoch: int


def _falling(schedule: Schedule, time: _Time) -> Callable[[jax.Array], jax.Array]:
    """The rate after the warmup as a function of the time."""
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
    """A rate with a linear rise before it."""
    peak, warmup, low = time.peak, time.warmup, None if schedule.warmup is None else schedule.warmup.warmup_start

    def rate(now: jax.Array) -> jax.Array:
        # Epochs may end beyond a fractional warmup: no share above 1.
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
