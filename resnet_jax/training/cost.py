"""The cost of a run: parameters, compute, memory and speed."""

import dataclasses
import pathlib
import warnings
from typing import Any

import jax

from resnet_jax.training.peaks import PEAKS

# Steps to skip before profiling, because the first steps allocate memory.
_PROFILE_FROM = 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a training step.

    Attributes:
      num_parameters: parameters of the network.
      multiply_adds: of a forward pass for one training image.
      step_bytes: memory per device that a step needs in addition to its arguments and results, mostly activations.
      compile_seconds: time spent on compilation so far.
      device_kind: the devices' kind in JAX.
      num_devices: number of devices.
    """

    num_parameters: int
    multiply_adds: int
    step_bytes: int
    compile_seconds: float
    device_kind: str
    num_devices: int

    def peak_share(self, examples_per_second: float) -> float | None:
        """Fraction of the devices' peak bfloat16 FLOP/s that the network reaches; None if the peak is unknown.

        A backward pass counts as two forward passes; only the network is counted.
        """
        limits = PEAKS.get(self.device_kind)
        peak = None if limits is None else limits.bfloat16
        flops = 6 * self.multiply_adds * examples_per_second
        return None if peak is None else flops / (peak * self.num_devices)

    def card(self) -> str:
        """One line with the cost that is known before the first step."""
        return (
            f'cost: {self.num_parameters:,} parameters, {self.multiply_adds / 1e6:,.1f} M multiply-adds per image,'
            f' {self.step_bytes / 2**20:,.1f} MiB per step, compiled in {self.compile_seconds:.1f} s'
        )

    def speed(self, examples_per_second: float) -> str:
        """One line with the first measured speed."""
        share = self.peak_share(examples_per_second)
        known = '' if share is None else f', {100 * share:.1f} % of the bfloat16 peak'
        rate = 6e-9 * self.multiply_adds * examples_per_second
        return f'speed: {examples_per_second:,.0f} images/s, {rate:,.1f} GFLOP/s{known}'

    def record(self, examples_per_second: float, num_seeds: int = 1) -> dict[str, Any]:
        """Entries of ``result.json``; ``examples_per_second`` is that of each of ``num_seeds`` seeds."""
        return {
            'num_parameters': self.num_parameters,
            'multiply_adds': self.multiply_adds,
            'step_bytes': self.step_bytes,
            'compile_seconds': self.compile_seconds,
            'examples_per_second': examples_per_second,
            'peak_share': self.peak_share(examples_per_second * num_seeds),
        }


class Profile:
    """Context manager that traces some steps, after the first few, for TensorBoard or Perfetto.

    Args:
      workdir: the trace is written to its folder ``profile``.
      num_steps: number of steps to trace; 0 disables tracing.
    """

    def __init__(self, workdir: pathlib.Path, num_steps: int):
        self._folder, self._num_steps = workdir / 'profile', num_steps
        self._first: int | None = None  # the first step that was traced
        self._open = False

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self._num_steps and self._first is None and kind is None:
            warnings.warn(
                f'profile_steps={self._num_steps}: nothing was traced, because tracing starts after {_PROFILE_FROM}'
                ' steps and the run ended before',
                stacklevel=2,
            )
        if self._open:
            jax.profiler.stop_trace()
            self._open = False

    def at(self, step: int) -> None:
        """Must be called before each step, with the number of steps since this process started."""
        if self._num_steps and self._first is None and step >= _PROFILE_FROM:
            jax.profiler.start_trace(self._folder)
            self._first, self._open = step, True
        elif self._first is not None and step >= self._first + self._num_steps:
            self.__exit__()
