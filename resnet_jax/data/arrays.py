"""Data sets in two NumPy files: ``arrays:DIR``."""

import pathlib

import numpy as np

from resnet_jax.data.examples import Dataset, by, check_memory, describe, reason, resize_images
from resnet_jax.errors import InputError


def load_arrays(name: str, task: str, image_size: int | None) -> Dataset:
    """As ``datasets.load_dataset``."""
    folder = pathlib.Path(name.removeprefix('arrays:')).expanduser()
    if name == 'arrays:' or not folder.is_dir():
        raise InputError(f'{name!r}: there is no such folder; expected one with train.npz and test.npz')
    parts = {str(path): _read_npz(path) for path in (folder / 'train.npz', folder / 'test.npz')}
    if image_size is not None:
        channels = parts[str(folder / 'train.npz')][0].shape[3]
        check_memory(name, sum(len(labels) for _, labels in parts.values()), (image_size, image_size, channels))
        parts = {place: (resize_images(images, image_size), labels) for place, (images, labels) in parts.items()}
    expected, found = (by(images.shape[1:]) for images, _ in parts.values())
    if found != expected:
        raise InputError(f'{folder / "test.npz"}: expected images of {expected} as in train.npz, found {found}')
    class_file = folder / 'classes.txt'
    return describe(name, parts, _read_class_names(class_file) if class_file.exists() else (), task)


def _read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, H, W, C]`` and labels ``[N, …]``."""
    if not path.exists():
        raise InputError(f'{path}: there is no such file; expected an .npz file with images and labels')
    keys: list[str] = []
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as archive:
            keys += archive.files
            images, labels = archive['images'], archive['labels']
    except KeyError as error:
        raise InputError(f'{path}: expected the arrays images and labels, found {", ".join(keys) or None}') from error
    except Exception as error:  # of many kinds, depending on where the file is damaged
        raise InputError(f'{path}: not a complete .npz file of plain arrays ({reason(error)})') from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8:
        raise InputError(f'{path}: images must be uint8 from 0 to 255, found {images.dtype}')
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(f'{path}: images must be [N, H, W] or [N, H, W, C] with 1 or 3 channels, found {images.shape}')
    if not images.size:
        raise InputError(f'{path}: expected at least one image with at least one pixel, found {images.shape}')
    if labels.shape[:1] != images.shape[:1]:
        raise InputError(f'{path}: expected a label for each of {len(images)} images, found labels of {labels.shape}')
    return images, labels


def _read_class_names(path: pathlib.Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: expected text in UTF-8 ({reason(error)})') from error
    if not names:
        raise InputError(f'{path}: expected one class name a line, found none')
    return names
