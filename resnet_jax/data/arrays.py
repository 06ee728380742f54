"""Datasets stored as two NumPy files: ``arrays:DIR``."""

import pathlib

import numpy as np

from resnet_jax.data.examples import Dataset, check_images, check_memory, dataset_from_arrays, reason, resize_images
from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task


def load_arrays(name: str, task: Task, image_size: int | None) -> Dataset:
    """Loads ``arrays:DIR``; arguments, result and errors as in ``datasets.load_dataset``."""
    folder = pathlib.Path(name.removeprefix('arrays:')).expanduser()
    if name == 'arrays:' or not folder.is_dir():
        raise InputError(f'{name!r}: folder not found; expected a folder with train.npz and test.npz')
    paths = folder / 'train.npz', folder / 'test.npz'
    train, test = map(_read_npz, paths)
    if image_size is not None:
        check_memory(name, len(train[0]) + len(test[0]), (image_size, image_size, train[0].shape[3]))
        train, test = ((resize_images(images, image_size), labels) for images, labels in (train, test))
    class_file = folder / 'classes.txt'
    names = _read_class_names(class_file) if class_file.exists() else ()
    return dataset_from_arrays(name, train, test, names, task, (str(paths[0]), str(paths[1])))


def _read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads images uint8 ``[N, H, W, C]`` and labels ``[N, …]``."""
    if not path.exists():
        raise InputError(f'{path}: file not found; expected an .npz file with images and labels')
    keys: list[str] = []
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as archive:
            keys += archive.files
            images, labels = archive['images'], archive['labels']
    except KeyError as error:
        raise InputError(f'{path}: expected the arrays images and labels, found {", ".join(keys) or "none"}') from error
    except Exception as error:  # the type depends on where the file is damaged
        raise InputError(f'{path}: not a valid .npz file of plain arrays ({reason(error)})') from error
    if images.ndim == 3:
        images = images[..., None]
    check_images(str(path), images)
    if labels.shape[:1] != images.shape[:1]:
        raise InputError(f'{path}: expected {len(images)} labels, one per image, found shape {labels.shape}')
    return images, labels


def _read_class_names(path: pathlib.Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: expected UTF-8 text ({reason(error)})') from error
    if not names:
        raise InputError(f'{path}: expected one class name per line, found none')
    return names
