"""What the sources of photographs share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data.decode import Box, DamagedImageError, decode, decode_part
from resnet_jax.data.examples import Dataset, EncodedImages, Split, channel_statistics, check_targets
from resnet_jax.errors import InputError
from resnet_jax.tasks.kinds import DEFAULT_TASK, TaskLike, get_task

DEFAULT_SIZE = 224
# So many photographs, evenly spread, say what the mean colour is.
_MEASURED = 256
# And about so many pixels of each.
_PIXELS = 10_000


def squares(images: EncodedImages, count: int, size: int) -> np.ndarray:
    """The largest squares in the middle of the first photographs that can be decoded, uint8 ``[N, size, size, 3]``."""
    found = list[np.ndarray]()
    for index in range(len(images)):
        if len(found) == count:
            break
        try:
            data, _ = images.read(index)
            found.append(decode_part(data, Box.centered, (size, size), Image.Resampling.BILINEAR))
        except (DamagedImageError, OSError):
            continue
    return np.stack(found)


def dataset_from_source(
    name: str,
    train: EncodedImages | Split,
    test: EncodedImages | Split,
    class_names: Sequence[str] = (),
    task: TaskLike = DEFAULT_TASK,
    image_size: int | None = None,
) -> Dataset:
    """A dataset of photographs, which are read and decoded while a network trains.

    Its mean and deviation are those of 256 of the training images. Targets that are known beforehand, in a ``Split``,
    are checked; all of them are read here where the task must know them, as regression does for their units.

    Args:
      name: of the dataset, for messages and records.
      train: encoded images by position with their targets: any object with ``__len__``, ``name(index)`` and
        ``read(index)``, as ``EncodedImages`` has it; or a ``Split`` of such images and of all targets.
      test: likewise.
      class_names: of the classes, labels or values; empty where the targets are known and give the names.
      task: what the targets are: a name, or a subclass of ``Task`` or an instance of one.
      image_size: pixels of both sides of what photographs are made to; None is 224.

    Raises:
      InputError: none of these can be decoded, targets that are none of this task, no names.
    """
    kind, names = get_task(task), tuple(class_names)
    splits = [part if isinstance(part, Split) else Split(part, None) for part in (train, test)]
    if kind.has_statistics:
        splits = [_with_targets(split) for split in splits]
    if all(split.labels is not None for split in splits):
        places = f'{name!r}, train', f'{name!r}, test'
        parts = {place: (split, split.labels) for place, split in zip(places, splits, strict=True)}
        names = check_targets(name, parts, names, kind)
        splits = [Split(split.images, kind.stored_targets(np.asarray(split.labels))) for split in splits]
    elif not names and kind.needs_targets:
        raise InputError(f'{name!r}: class_names must name the classes, labels or values of task={kind.name}')
    mean, std = _channel_statistics_of(name, splits[0].photographs)
    train_split, test_split = splits
    return Dataset(name, train_split, test_split, names, mean, std, kind, image_size or DEFAULT_SIZE)


def _with_targets(split: Split) -> Split:
    """The split with all targets, for which every photograph is read if they are not known."""
    if split.labels is not None:
        return split
    images = split.photographs
    return Split(images, np.stack([np.asarray(images.read(index)[1]) for index in range(len(images))]))


def _channel_statistics_of(name: str, images: EncodedImages) -> tuple[Any, Any]:
    """Mean and standard deviation of each channel, 1 being white, in some of the images."""
    measured = []
    for index in np.linspace(0, len(images) - 1, min(_MEASURED, len(images))).astype(int).tolist():
        try:
            data, _ = images.read(index)
            pixels = decode(data)
            apart = max(math.isqrt(pixels.size // (3 * _PIXELS)), 1)
            measured.append(pixels[::apart, ::apart].reshape(-1, 3))
        except (DamagedImageError, OSError):
            continue  # the run names it, when it comes to it
    if not measured:
        raise InputError(f'{name!r}: none of {min(_MEASURED, len(images))} images can be decoded')
    return channel_statistics(np.concatenate(measured)[None, None])
