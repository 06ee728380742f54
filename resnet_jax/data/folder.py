"""Photographs in folders, one folder a class: ``folder:DIR``."""

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

# What torchvision's ImageFolder takes for images, and GIF.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp', '.gif')
TEST_NAMES = ('test', 'val', 'validation')
# Of each class, where no folder says which images are for testing.
TEST_SHARE = 0.2


class FileImages:
    """Encoded images in files, by position; a million names take as much memory as their letters.

    Args:
      root: the folder that the names are relative to.
      names: of the files.
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
        """The file's path."""
        letters = self._letters[self._ends[index] : self._ends[index + 1]]
        return os.path.join(self.root, os.fsdecode(letters))

    def read(self, index: int) -> tuple[bytes, np.int32]:
        """The file's bytes, and its class.

        Raises:
          OSError: it cannot be read.
        """
        with open(self.name(index), 'rb') as file:
            return file.read(), self.labels[index]


def load_folder(name: str, task: Task, image_size: int | None) -> Dataset:
    """As ``datasets.load_dataset``; photographs become squares of 224 pixels if nothing else is asked for."""
    if task.needs_targets and not task.has_class_targets:
        raise InputError(f'task={task.name}: {name!r} has classes; its folders name nothing else')
    parts, classes = list_folder(name)
    if task.num_names not in (None, len(classes)):
        raise InputError(
            f'task={task.name}: {name!r} must have {task.num_names} folders of images, found {len(classes)}'
        )
    return dataset_from_source(name, parts['train'], parts['test'], classes, task, image_size)


def list_folder(name: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The images of a folder and their classes.

    Args:
      name: ``folder:DIR``: ``DIR/train/CLASS/…`` and ``DIR/test/CLASS/…`` (or ``val``, ``validation``); or
        ``DIR/CLASS/…`` or ``DIR/train/CLASS/…`` alone, of which a fifth of each class is for testing, chosen by a hash
        of the names: another file changes what few others are for. A folder for testing without folders in it,
        as ImageNet's ``test``, has no classes and is left out.

    Returns:
      ``train`` and ``test``, ordered by class and name, and the names of the classes in the order of the alphabet, as
      torchvision's ImageFolder numbers them.

    Raises:
      InputError: no such folder, fewer than two classes, a class without images, other classes for testing than for
        training, or a folder ``train`` of folders beside others that are not for testing.
    """
    root = pathlib.Path(name.removeprefix('folder:')).expanduser()
    if name == 'folder:' or not root.is_dir():
        raise InputError(f'{name!r}: there is no such folder; expected one with a folder for each class')
    try:
        folders = {folder.lower(): folder for folder in _folders(root)}
        train, named = folders.get('train'), [folders[test] for test in TEST_NAMES if test in folders]
        # ImageNet's own test folder has images without classes: its val is what can be scored.
        tests = [test for test in named if _folders(root / test)]
        if train is not None and tests:
            parts = {split: _by_class(root, folder) for split, folder in (('train', train), ('test', tests[0]))}
        elif train is not None and _folders(root / train):  # else it is a class: a vehicle
            if others := ', '.join(folder for folder in folders.values() if folder not in (train, *named)):
                raise InputError(
                    f'{name!r}: beside {train} there must be one of {", ".join(TEST_NAMES)}; there is {others}'
                )
            parts = _divided(_by_class(root, train))
        else:
            parts = _divided(_by_class(root, ''))
    except OSError as error:
        raise InputError(f'{name!r}: cannot read it ({reason(error)})') from error
    classes = tuple(parts['train'])
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InputError(f'{name!r}: expected a folder for each class, 2 to {MAX_CLASSES:,}, found {len(classes)}')
    if unknown := sorted(set(parts['test']) - set(classes)):
        raise InputError(f'{name!r}: {unknown[0]!r} is tested, but there are no images of it to train on')
    for split, by_class in parts.items():
        for label in classes if split == 'train' else by_class:
            if not by_class[label]:
                raise InputError(f'{name!r}: no images of {label!r} to {split}; images end with {", ".join(SUFFIXES)}')
    if not parts['test']:
        raise InputError(f'{name!r}: no images to test; a class needs two, one of them to train on')
    return {split: _joined(str(root), by_class, classes) for split, by_class in parts.items()}, classes


def _folders(path: pathlib.Path) -> list[str]:
    """Names of the folders in a folder, in order; hidden ones are left out."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.'))


def _by_class(root: pathlib.Path, folder: str) -> dict[str, list[str]]:
    """Images of each class in a folder of the root, by names relative to the root, in order."""
    return {label: sorted(find_images(root, posixpath.join(folder, label))) for label in _folders(root / folder)}


def find_images(root: pathlib.Path, folder: str = '') -> Iterator[str]:
    """Images in a folder of the root and in its folders, by names relative to the root; hidden ones are left out."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if entry.is_dir():
                yield from find_images(root, posixpath.join(folder, entry.name))
            elif entry.name.lower().endswith(SUFFIXES):
                yield posixpath.join(folder, entry.name)  # '/' on every system: _divided hashes this name


def _divided(by_class: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Of each class a share for testing, at least one image, and at least one for training."""
    parts: dict[str, dict[str, list[str]]] = {'train': {}, 'test': {}}
    for label, names in by_class.items():
        mixed = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
        tested = max(round(TEST_SHARE * len(names)), 1) if len(names) > 1 else 0
        parts['test'][label], parts['train'][label] = sorted(mixed[:tested]), sorted(mixed[tested:])
    parts['test'] = {label: names for label, names in parts['test'].items() if names}
    return parts


def _joined(root: str, by_class: dict[str, list[str]], classes: tuple[str, ...]) -> Split:
    counts = [len(by_class.get(label, ())) for label in classes]
    names = [name for label in classes for name in by_class.get(label, ())]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Split(FileImages(root, names, labels), labels)
