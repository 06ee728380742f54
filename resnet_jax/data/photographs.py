"""Datasets of photographs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data.checks import check_targets, without_column
from resnet_jax.data.decode import Box, DamagedImageError, decode, decode_part
from resnet_jax.data.examples import Dataset, EncodedImages, Split, channel_statistics
from resnet_jax.errors import InputError
from resnet_jax.tasks.kinds import DEFAULT_TASK, TaskLike, get_task

DEFAULT_SIZE = 224
# The channel statistics are computed from this many photographs, evenly spread over the training images,
_SAMPLED_IMAGES = 256
# and about this many pixels of each.
_SAMPLED_PIXELS = 10_000


def squares(images: EncodedImages, count: int, size: int) -> np.ndarray:
    """Reads the first photographs, cropped to the largest central square and resized.

    Args:
      images: the photographs; those that cannot be decoded are skipped.
      count: number of photographs.
      size: height and width of the result in pixels.

    Returns:
      uint8 ``[count, size, size, 3]``, or fewer if there are fewer.
    """
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
    """Makes a dataset of photographs, which are read and decoded during training.

    Mean and standard deviation are computed from 256 of the training images. Targets that are passed in a ``Split`` are
    checked. If the task needs statistics of the targets, as ``regression`` does, all targets are read here.

    Args:
      name: name of the dataset, for messages and records.
      train: a source of encoded images with their targets, that is any object with the methods of ``EncodedImages``
        (``__len__``, ``name(index)`` and ``read(index)``); or a ``Split`` of such a source and all targets.
      test: likewise.
      class_names: names of the classes, labels or values; may be empty if the targets are passed.
      task: the kind of target: a name, or a subclass of ``Task`` or an instance of one.
      image_size: height and width in pixels that photographs are resized to; None means 224.

    Returns:
      The dataset.

    Raises:
      InputError: no photograph can be decoded, targets that do not fit the task, or missing class names.
    """
    kind, names = get_task(task), tuple(class_names)
    splits = [part if isinstance(part, Split) else Split(part, None) for part in (train, test)]
    splits = [Split(split.images, without_column(split.labels, kind)) for split in splits]
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
    """The split with all targets; if they are missing, every photograph is read."""
    if split.labels is not None:
        return split
    images = split.photographs
    return Split(images, np.stack([np.asarray(images.read(index)[1]) for index in range(len(images))]))


def _channel_statistics_of(name: str, images: EncodedImages) -> tuple[Any, Any]:
    """Mean and standard deviation of each channel, where 1 is white, over a sample of the images."""
    measured = []
    for index in np.linspace(0, len(images) - 1, min(_SAMPLED_IMAGES, len(images))).astype(int).tolist():
        try:
            data, _ = images.read(index)
            pixels = decode(data)
            apart = max(math.isqrt(pixels.size // (3 * _SAMPLED_PIXELS)), 1)
            measured.append(pixels[::apart, ::apart].reshape(-1, 3))
        except (DamagedImageError, OSError):
            continue  # training reports it
    if not measured:
        raise InputError(f'{name!r}: none of {min(_SAMPLED_IMAGES, len(images))} images could be decoded')
    return channel_statistics(np.concatenate(measured)[None, None])
