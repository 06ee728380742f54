"""What a run costs: known before its first step, but for the speed."""

import dataclasses
import pathlib
from typing import Any

import jax

# Peak of one device in bfloat16 with dense operands, in FLOP/s, by what JAX calls its kind: cloud.google.com/tpu/docs
# and NVIDIA's data sheets. Other dtypes have less.
PEAK_FLOPS = {
    'TPU v2': 22.5e12,  # a core, which is a device there, as of v3
    'TPU v3': 61.5e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v5p': 459e12,
    'TPU v6 lite': 918e12,
    'NVIDIA A100-SXM4-40GB': 312e12,
    'NVIDIA A100-SXM4-80GB': 312e12,
    'NVIDIA H100 80GB HBM3': 989e12,
    'NVIDIA H200': 989e12,
}

# Steps of a process before those that are traced: the first ones allocate.
_PROFILE_FROM = 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a training step.

    Attributes:
      num_parameters: of the network.
      multiply_adds: of a forward pass for one training image.
      step_bytes: of each device's memory, that a step takes beside its arguments and results: mostly activations.
      compile_seconds: so far.
      device_kind: as JAX calls it.
      num_devices: how many.
    """

    num_parameters: int
    multiply_adds: int
    step_bytes: int
    compile_seconds: float
    device_kind: str
    num_devices: int

    def peak_share(self, examples_per_second: float) -> float | None:
        """Which share of the devices' peak the network's arithmetic is at a speed; None where no peak is known.

        A backward pass is counted as two forward passes, and nothing but the network is counted.
        """
        peak = PEAK_FLOPS.get(self.device_kind)
        flops = 6 * self.multiply_adds * examples_per_second
        return None if peak is None else flops / (peak * self.num_devices)

    def card(self) -> str:
        """A line of what is known before the first step."""
        return (
            f'cost: {self.num_parameters:,} parameters, {self.multiply_adds / 1e6:,.1f} M multiply-adds an image,'
            f' {self.step_bytes / 2**20:,.1f} MiB for a step, compiled in {self.compile_seconds:.1f} s'
        )

    def speed(self, examples_per_second: float) -> str:
        """A line of what a first measurement shows."""
        share = self.peak_share(examples_per_second)
        known = '' if share is None else f', {100 * share:.1f} % of the peak in bfloat16'
        rate = 6e-9 * self.multiply_adds * examples_per_second
        return f'speed: {examples_per_second:,.0f} images/s, {rate:,.1f} GFLOP/s{known}'

    def record(self, examples_per_second: float, num_seeds: int = 1) -> dict[str, Any]:
        """What the result of one of several seeds says, each of which takes so many examples."""
        return {
            'num_parameters': self.num_parameters,
            'multiply_adds': self.multiply_adds,
            'step_bytes': self.step_bytes,
            'compile_seconds': self.compile_seconds,
            'examples_per_second': examples_per_second,
            'peak_share': self.peak_share(examples_per_second * num_seeds),
        }


class Profile:
    """Traces some steps, after the first few, for TensorBoard or Perfetto; a context manager.

    Args:
      workdir: gets a folder ``profile``.
      num_steps: how many; 0 for none.
    """

    def __init__(self, workdir: pathlib.Path, num_steps: int):
        self._folder, self._num_steps = workdir / 'profile', num_steps
        self._first: int | None = None  # the first step that was traced
        self._open = False

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            jax.profiler.stop_trace()
            self._open = False

    def at(self, step: int) -> None:
        """Called before each call of a step, with the steps taken since the start of this process."""
        if self._num_steps and self._first is None and step >= _PROFILE_FROM:
            jax.profiler.start_trace(self._folder)
            self._first, self._open = step, True
        elif self._first is not None and step >= self._first + self._num_steps:
            self.__exit__()
