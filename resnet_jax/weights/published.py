"""The published checkpoints of the family: preprocessing, accuracy and license.

``published.csv`` holds one row for each pretrained network of timm 1.0.31 in its files resnet.py, resnetv2.py,
resnest.py, sknet.py, res2net.py and senet.py, and for ``resnext101_32x48d.fb_wsl_ig1b_ft_in1k``, whose weights timm
provides without a model name. Configurations are timm's ``default_cfgs``; missing values are empty. Accuracies are
from timm's results-imagenet.csv, to two decimals; empty if the network has no ImageNet-1k head or no result.
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
    """Published weights of a network.

    Attributes:
      name: timm's name, architecture and tag: ``resnet50.a1_in1k``.
      num_classes: number of outputs; 0 without a head.
      preprocessing: the preprocessing at the training size.
      test_preprocessing: the preprocessing at the larger size recommended for evaluation, or None.
      top1: ImageNet-1k accuracy in percent with ``preprocessing``, or None if not published.
      top1_test: the same with ``test_preprocessing``.
      license: SPDX identifier in lower case, or ``unknown``.
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
        """The architecture, which is the name without the tag: ``resnet50``."""
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
    """Lists published checkpoints.

    Args:
      pattern: shell pattern of names, such as ``'resnet50.*'``.

    Returns:
      Sorted names, for ``get_checkpoint``.
    """
    return sorted(fnmatch.filter(_checkpoints(), pattern))


def get_checkpoint(name: str) -> Checkpoint:
    """Returns the metadata of a published checkpoint.

    Args:
      name: one of ``list_checkpoints()``.

    Raises:
      InputError: an unknown name.
    """
    checkpoints = _checkpoints()
    if name not in checkpoints:
        raise InputError(f'unknown checkpoint {name!r}; {nearest(name, checkpoints)}; list_checkpoints() lists all')
    return checkpoints[name]
