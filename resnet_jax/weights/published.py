"""The published checkpoints of the family: what images they expect, how accurate they are, under which license.

``published.csv`` holds one row for each pretrained network of timm 1.0.31 in its files resnet.py, resnetv2.py,
resnest.py, sknet.py, res2net.py and senet.py, and ``resnext101_32x48d.fb_wsl_ig1b_ft_in1k``, which timm has weights
for but no name. Configurations are those of timm's ``default_cfgs``, with an empty field where it has none. Accuracies
are those of timm's results-imagenet.csv to two decimals, empty where the network has no ImageNet-1k head or no result.
"""

import csv
import dataclasses
import fnmatch
import functools
import importlib.resources

from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One published set of weights.

    Attributes:
      name: timm's, architecture and tag: ``resnet50.a1_in1k``.
      num_classes: outputs of its head; 0 for none.
      preprocessing: at the size of its training.
      test_preprocessing: at the larger size that is recommended for testing, None without one.
      top1: ImageNet-1k accuracy in per cent with ``preprocessing``, None if not published.
      top1_test: the same with ``test_preprocessing``.
      license: an SPDX identifier in lower case, or ``unknown``.
    """

    name: str
    num_classes: int
    preprocessing: Preprocessing
    test_preprocessing: Preprocessing | None
    top1: float | None
    top1_test: float | None
    license: str

    @property
    def arch(self) -> str:
        """The name in front of the tag: ``resnet50``."""
        return self.name.split('.', 1)[0]


def _triple(text: str) -> tuple[float, float, float]:
    red, green, blue = map(float, text.split())
    return red, green, blue


def _optional(text: str) -> float | None:
    return float(text) if text else None


def _checkpoint(row: dict[str, str]) -> Checkpoint:
    preprocessing = Preprocessing(
        size=int(row['input_size']),
        crop_pct=float(row['crop_pct']),
        interpolation=row['interpolation'],
        mean=_triple(row['mean']),
        std=_triple(row['std']),
    )
    test_preprocessing = None
    if row['test_input_size']:
        test_preprocessing = dataclasses.replace(
            preprocessing,
            size=int(row['test_input_size']),
            crop_pct=float(row['test_crop_pct'] or row['crop_pct']),  # timm's rule
        )
    return Checkpoint(
        name=row['name'],
        num_classes=int(row['num_classes']),
        preprocessing=preprocessing,
        test_preprocessing=test_preprocessing,
        top1=_optional(row['top1']),
        top1_test=_optional(row['top1_test']),
        license=row['license'],
    )


@functools.cache
def _checkpoints() -> dict[str, Checkpoint]:
    source = importlib.resources.files('resnet_jax') / 'weights' / 'published.csv'
    rows = csv.DictReader(source.read_text(encoding='utf-8').splitlines())
    return {row['name']: _checkpoint(row) for row in rows}


def list_checkpoints(pattern: str = '*') -> list[str]:
    """Names that match a shell pattern such as ``'resnet50.*'``, sorted."""
    return sorted(fnmatch.filter(_checkpoints(), pattern))


def get_checkpoint(name: str) -> Checkpoint:
    """What is known of a published checkpoint.

    Raises:
      InputError: an unknown name.
    """
    checkpoints = _checkpoints()
    if name not in checkpoints:
        raise InputError(f'unknown checkpoint {name!r}; {nearest(name, checkpoints)}; list_checkpoints() has all')
    return checkpoints[name]
