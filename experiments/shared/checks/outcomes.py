"""What all checks of a device share: where they run, how much they do, and what they find."""

import dataclasses
import math
import os
from typing import Any

import jax
import numpy as np

from resnet_jax import InputError

PASSED, FAILED, SKIPPED = 'passed', 'FAILED', 'skipped'


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
      status: ``PASSED``, ``FAILED`` or ``SKIPPED``.
      summary: what was found, in one line.
      values: everything that was measured, as JSON data.
    """

    status: str
    summary: str
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, passed: bool, summary: str, values: dict[str, Any]) -> 'Outcome':
        """A check that ran; numbers that are not finite become strings, because JSON has none."""
        return cls(PASSED if passed else FAILED, summary, as_json(values))


@dataclasses.dataclass(frozen=True)
class Places:
    """The devices of a check.

    Attributes:
      device: the device that is checked.
      cpu: the CPU of the same process, whose results are the reference.
    """

    device: jax.Device
    cpu: jax.Device

    @property
    def is_cpu(self) -> bool:
        """Whether a CPU is checked, for which the sizes are smaller."""
        return self.device.platform == 'cpu'


def find_places() -> Places:
    """JAX's first device, and the CPU.

    Raises:
      InputError: JAX has only an accelerator.
    """
    device, platforms = jax.local_devices()[0], os.environ.get('JAX_PLATFORMS', '')
    try:
        return Places(device, jax.local_devices(backend='cpu')[0])
    except RuntimeError as error:
        advice = f'must include cpu, the reference of the checks: {platforms},cpu'
        raise InputError(f'JAX_PLATFORMS={platforms} {advice}') from error


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much the checks do.

    Attributes:
      networks: networks that are compared with the goldens.
      stage_sizes: blocks per stage of the ``resnet50`` that is trained step by step.
      image_size: height and width of its images in pixels.
      batch_size: images per step.
      ghost: examples per ghost batch.
      bfloat16: statistics of batch normalization that are also checked in bfloat16.
      augmented: images that are augmented.
      epochs: length of the run that is killed.
      speed_arch: network that photographs are fed to.
      speed_dtype: its dtype; CPUs emulate bfloat16 slowly.
      speed_batch: images per step of that network.
      speed_size: height and width of the photographs after the crop in pixels.
      speed_steps: timed steps.
      photographs: files that are made if no folder is given.
    """

    networks: tuple[str, ...]
    stage_sizes: tuple[int, ...]
    image_size: int
    batch_size: int
    ghost: int
    bfloat16: tuple[str | int, ...]
    augmented: int
    epochs: int
    speed_arch: str
    speed_dtype: str
    speed_batch: int
    speed_size: int
    speed_steps: int
    photographs: int


FULL = Sizes(
    networks=(
        *('resnet18', 'resnet50', 'resnext50_32x4d', 'resnet50d'),
        *('seresnet18', 'resnetv2_50', 'skresnet18', 'resnest14d'),
    ),
    stage_sizes=(2, 1, 1, 1),
    image_size=64,
    batch_size=32,
    ghost=8,
    bfloat16=('global', 8),
    augmented=256,
    epochs=40,
    speed_arch='resnet50',
    speed_dtype='bfloat16',
    speed_batch=256,
    speed_size=224,
    speed_steps=30,
    photographs=512,
)
SMALL = Sizes(
    networks=('test_resnet', 'resnet10t', 'seresnet18'),
    stage_sizes=(2, 1),
    image_size=32,
    batch_size=16,
    ghost=8,
    bfloat16=('global',),
    augmented=32,
    epochs=10,
    speed_arch='resnet10t',
    speed_dtype='float32',
    speed_batch=16,
    speed_size=64,
    speed_steps=10,
    photographs=64,
)


def as_json(value: Any) -> Any:
    """The value with numbers that JSON lacks, such as NaN, as strings."""
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value
