"""Datasets stored as two NumPy files: ``arrays:DIR``."""

import pathlib
import re
import string

import numpy as np

from resnet_jax.data.checks import check_images
from resnet_jax.data.examples import (
    Dataset,
    check_memory,
    dataset_from_arrays,
    reason,
    resize_images,
    same_form,
)
from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task

# Around class names: also a no-break space, and the byte order marks of files that were joined.
_BLANKS = f'{string.whitespace}\xa0\u3000\ufeff'


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
    """Reads one name per line; spaces around names, empty lines and a byte order mark are ignored."""
    try:
        content = path.read_bytes()
        if b'\0' in content:  # every other byte of ASCII characters
            raise InputError(f'{path}: expected UTF-8 text, found UTF-16 or other bytes; save it as UTF-8')
        text = content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        raise InputError(f'{path}: expected UTF-8 text; line {line} has another encoding ({reason(error)})') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({reason(error)})') from error
    lines: dict[str, tuple[int, str]] = {}
    # Not splitlines, which also splits at characters that may be part of a name.
    for number, row in enumerate(re.split(r'\r\n|\r|\n', text), 1):
        if name := row.strip(_BLANKS):
            first, _ = lines.setdefault(same_form(name), (number, name))
            if first != number:
                raise InputError(f'{path}: the class name {name!r} is in line {first} and again in line {number}')
    if not lines:
        raise InputError(f'{path}: expected one class name per line, found none')
    return tuple(name for _, name in lines.values())
