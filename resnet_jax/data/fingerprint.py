"""Checksums of a dataset's examples, by which a resumed run notices that they have changed."""

import hashlib
import re

import numpy as np

from resnet_jax.data.examples import Dataset, EncodedImages, Split

# Number of photographs whose bytes are part of the checksum, evenly spread; reading all may take hours.
_READ_PHOTOGRAPHS = 64


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """Computes a checksum of the examples and their order, for each split.

    Args:
      dataset: the dataset; its name, class names and normalization do not matter.

    Returns:
      Hexadecimal checksums of ``train`` and ``test``: of all images in memory and their targets; or of the last two
      parts of the photographs' names, the known targets, and the bytes of 64 photographs. A folder may therefore be
      moved.
    """
    return {'train': _checksum(dataset.train), 'test': _checksum(dataset.test)}


def _checksum(split: Split) -> str:
    found = hashlib.blake2b(digest_size=8)
    if isinstance(split.images, np.ndarray):
        _add_array(found, split.images)
    else:
        _add_photographs(found, split.photographs)
    if split.labels is not None:
        _add_array(found, np.asarray(split.labels))
    return found.hexdigest()


def _add_array(found: 'hashlib.blake2b', array: np.ndarray) -> None:
    found.update(f'{array.dtype.str}{array.shape}'.encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _add_photographs(found: 'hashlib.blake2b', images: EncodedImages) -> None:
    for index in range(len(images)):
        name = '/'.join(re.split(r'[/\\]', images.name(index))[-2:])
        found.update(name.encode('utf-8', 'surrogatepass') + b'\n')  # names need not be valid UTF-8
    for index in np.unique(np.linspace(0, len(images) - 1, _READ_PHOTOGRAPHS).astype(int)).tolist():
        try:
            found.update(hashlib.sha256(images.read(index)[0]).digest())
        except OSError:
            found.update(b'unreadable')  # training reports it
