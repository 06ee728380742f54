"""Photographs in folders, one folder per class: ``folder:DIR``."""

import hashlib
import os
import pathlib
import posixpath
from collections.abc import Iterator, Sequence

import numpy as np

from resnet_jax.data.examples import Dataset, Split, reason
from resnet_jax.data.photographs import dataset_from_source
from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.multiclass import MAX_CLASSES

# The suffixes of torchvision's ImageFolder, and GIF.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp', '.gif')
TEST_NAMES = ('test', 'val', 'validation')
# Fraction of each class that is held out for testing if there is no test folder.
TEST_SHARE = 0.2


class FileImages:
    """Encoded images in files, as an ``EncodedImages`` source. Names are stored compactly, without objects per file.

    Args:
      root: the folder that the names are relative to.
      names: file names, one per image.
      labels: the targets, int32 ``[N]``.
    """

    def __init__(self, root: str, names: Sequence[str], labels: np.ndarray):
        encoded = [os.fsencode(name) for name in names]
        self.root, self.labels = root, labels
        self._letters = b''.join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        """The path of an image's file."""
        letters = self._letters[self._ends[index] : self._ends[index + 1]]
        return os.path.join(self.root, os.fsdecode(letters))

    def read(self, index: int) -> tuple[bytes, np.int32]:
        """The bytes of an image's file, and the image's class.

        Raises:
          OSError: the file cannot be read.
        """
        with open(self.name(index), 'rb') as file:
            return file.read(), self.labels[index]


def load_folder(name: str, task: Task, image_size: int | None) -> Dataset:
    """Loads ``folder:DIR``; arguments, result and errors as in ``datasets.load_dataset``."""
    if task.needs_targets and not task.has_class_targets:
        raise InputError(f'task={task.name} is not supported for {name!r}: folders define classes only')
    parts, classes = list_folder(name)
    if task.num_names not in (None, len(classes)):
        raise InputError(f'task={task.name}: {name!r} must have {task.num_names} class folders, found {len(classes)}')
    return dataset_from_source(name, parts['train'], parts['test'], classes, task, image_size)


def list_folder(name: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Lists the images of a folder and their classes.

    Args:
      name: ``folder:DIR``, with images in ``DIR/train/CLASS/…`` and ``DIR/test/CLASS/…`` (or ``val``, ``validation``).
        If there is only ``DIR/CLASS/…`` or ``DIR/train/CLASS/…``, a fifth of each class is held out for testing, chosen
        by a hash of the names, so that adding a file moves few others. A test folder without subfolders, such as
        ImageNet's ``test``, has no classes and is ignored.

    Returns:
      The splits ``train`` and ``test``, sorted by class and name, and the class names in alphabetical order, which is
      the numbering of torchvision's ImageFolder.

    Raises:
      InputError: the folder is not found or has fewer than two classes, a class has no images, a test class has no
        training images, or there are other folders next to ``train`` but no test folder.
    """
    root = pathlib.Path(name.removeprefix('folder:')).expanduser()
    if name == 'folder:' or not root.is_dir():
        raise InputError(f'{name!r}: folder not found; expected a folder with one subfolder per class')
    try:
        folders = {folder.lower(): folder for folder in _folders(root)}
        train, named = folders.get('train'), [folders[test] for test in TEST_NAMES if test in folders]
        # ImageNet's test folder has images without classes: only val can be evaluated.
        tests = [test for test in named if _folders(root / test)]
        if train is not None and tests:
            parts = {split: _by_class(root, folder) for split, folder in (('train', train), ('test', tests[0]))}
        elif train is not None and _folders(root / train):  # else it is a class: trains
            if others := ', '.join(folder for folder in folders.values() if folder not in (train, *named)):
                raise InputError(
                    f'{name!r}: next to {train}, expected one of the folders {", ".join(TEST_NAMES)}, found {others}'
                )
            parts = _hold_out(_by_class(root, train))
        else:
            parts = _hold_out(_by_class(root, ''))
    except OSError as error:
        raise InputError(f'cannot read {name!r}: {reason(error)}') from error
    classes = tuple(parts['train'])
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InputError(f'{name!r}: expected 2 to {MAX_CLASSES:,} class folders, found {len(classes)}')
    if unknown := sorted(set(parts['test']) - set(classes)):
        raise InputError(f'{name!r}: class {unknown[0]!r} has test images but no training images')
    for split, by_class in parts.items():
        for label in classes if split == 'train' else by_class:
            if not by_class[label]:
                kind = 'training' if split == 'train' else split
                raise InputError(f'{name!r}: class {label!r} has no {kind} images ({", ".join(SUFFIXES)})')
    if not parts['test']:
        raise InputError(f'{name!r}: no test images found; at least one class needs two images, one for training')
    return {split: _split_of(str(root), by_class, classes) for split, by_class in parts.items()}, classes


def _folders(path: pathlib.Path) -> list[str]:
    """Sorted names of the subfolders of a folder, without hidden ones."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.'))


def _by_class(root: pathlib.Path, folder: str) -> dict[str, list[str]]:
    """Sorted names, relative to the root, of the images of each class in a folder of the root."""
    return {label: sorted(find_images(root, posixpath.join(folder, label))) for label in _folders(root / folder)}


def find_images(root: pathlib.Path, folder: str = '') -> Iterator[str]:
    """Yields the names, relative to the root, of all images in a folder of the root and below, without hidden ones."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if entry.is_dir():
                yield from find_images(root, posixpath.join(folder, entry.name))
            elif entry.name.lower().endswith(SUFFIXES):
                yield posixpath.join(folder, entry.name)  # '/' on every system: _hold_out hashes this name


def _hold_out(by_class: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Holds out a fraction of each class for testing: at least one image, but never the only one."""
    parts: dict[str, dict[str, list[str]]] = {'train': {}, 'test': {}}
    for label, names in by_class.items():
        mixed = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
        tested = max(round(TEST_SHARE * len(names)), 1) if len(names) > 1 else 0
        parts['test'][label], parts['train'][label] = sorted(mixed[:tested]), sorted(mixed[tested:])
    parts['test'] = {label: names for label, names in parts['test'].items() if names}
    return parts


def _split_of(root: str, by_class: dict[str, list[str]], classes: tuple[str, ...]) -> Split:
    counts = [len(by_class.get(label, ())) for label in classes]
    names = [name for label in classes for name in by_class.get(label, ())]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Split(FileImages(root, names, labels), labels)
