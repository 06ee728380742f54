"""What the sources of photographs share."""

import math
from collections.abc import Mapping

import numpy as np

from resnet_jax.data.decode import DamagedImageError, decode, decode_part
from resnet_jax.data.examples import Dataset, EncodedImages, Split, channel_statistics
from resnet_jax.data.stream import RandomCrop
from resnet_jax.errors import InputError

DEFAULT_SIZE = 224
# So many photographs, evenly spread, say what the mean colour is.
_MEASURED = 256
# And about so many pixels of each.
_PIXELS = 10_000


def squares(images: EncodedImages, count: int, size: int) -> np.ndarray:
    """The largest squares in the middle of the first photographs that can be decoded, uint8 ``[N, size, size, 3]``."""
    crop, found = RandomCrop(size, None), list[np.ndarray]()
    for index in range(len(images)):
        if len(found) == count:
            break
        try:
            data, _ = images.read(index)
            found.append(decode_part(data, crop.middle, (size, size), crop.resample))
        except (DamagedImageError, OSError):
            continue
    return np.stack(found)


def describe_photographs(
    name: str, parts: Mapping[str, Split], class_names: tuple[str, ...], task: str, image_size: int | None
) -> Dataset:
    """A dataset of photographs; mean and deviation are those of 256 of the training images.

    Raises:
      InputError: none of these can be decoded.
    """
    train, test = parts['train'], parts['test']
    measured = []
    for index in np.linspace(0, len(train) - 1, min(_MEASURED, len(train))).astype(int).tolist():
        try:
            data, _ = train.photographs.read(index)
            pixels = decode(data)
            apart = max(math.isqrt(pixels.size // (3 * _PIXELS)), 1)
            measured.append(pixels[::apart, ::apart].reshape(-1, 3))
        except (DamagedImageError, OSError):
            continue  # the run names it, when it comes to it
    if not measured:
        raise InputError(f'{name!r}: none of {min(_MEASURED, len(train))} images can be decoded')
    mean, std = channel_statistics(np.concatenate(measured)[None, None])
    return Dataset(name, train, test, class_names, mean, std, task, image_size or DEFAULT_SIZE)
