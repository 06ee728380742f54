"""Checks of images and targets, shared by all sources."""

from collections.abc import Mapping, Sized
from typing import Any

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task


def without_column(targets: Any, task: Task) -> Any:
    """Class labels ``[N, 1]``, as CIFAR's are often stored, as ``[N]``; other targets unchanged."""
    is_column = task.has_class_targets and np.ndim(targets) == 2 and targets.shape[1] == 1
    return targets[:, 0] if is_column else targets


def check_targets(
    name: str, parts: Mapping[str, tuple[Sized, np.ndarray | None]], class_names: tuple[str, ...], task: Task
) -> tuple[str, ...]:
    """Checks targets and determines the names of their classes, labels or values.

    Args:
      name: name of the dataset.
      parts: images and targets of each split, by the split's name in messages.
      class_names: as in ``dataset_from_arrays``.
      task: the kind of target.

    Returns:
      The names.

    Raises:
      InputError: targets that do not fit the task.
    """
    shapes = []
    for place, (images, targets) in parts.items():
        if targets is None:
            raise InputError(f'{place}: task={task.name} needs one label per image, found none')
        if targets.shape[:1] != (len(images),):
            raise InputError(f'{place}: expected {len(images)} labels, one per image, found shape {targets.shape}')
        shapes.append(targets.shape[1:])
    if len(set(shapes)) > 1:
        raise InputError(f'{name!r}: the label shapes of {" and ".join(parts)} differ: {shapes}')
    for place, (_, targets) in parts.items():
        assert targets is not None
        if not targets.size:
            raise InputError(f'{place}: expected at least one label per image, found shape {targets.shape}')
        class_names = task.check_targets(place, targets, class_names)
    return class_names


def check_images(place: str, images: np.ndarray) -> None:
    """Checks that images are a non-empty uint8 array ``[N, H, W, C]`` with 1 or 3 channels.

    Args:
      place: name of the images in messages.
      images: the images.

    Raises:
      InputError: they are not.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f'{place}: images must be uint8 from 0 to 255, found {found}')
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        channels_first = images.ndim == 4 and images.shape[1] in (1, 3)
        advice = '; np.moveaxis(images, 1, -1) converts [N, C, H, W] to [N, H, W, C]' if channels_first else ''
        raise InputError(
            f'{place}: images must be of shape [N, H, W, C] with 1 or 3 channels, found {images.shape}{advice}'
        )
    if not images.size:
        raise InputError(f'{place}: expected at least one image with at least one pixel, found shape {images.shape}')
