"""Photographs in folders, one folder per class: ``folder:DIR``."""

import hashlib
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from resnet_jax.data.examples import Dataset, Split, reason, same_form
from resnet_jax.data.image_files import Listing, in_words
from resnet_jax.data.photographs import dataset_from_source
from resnet_jax.data.splits import check_classes, find_layout
from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.multiclass import MAX_CLASSES

# File names by class.
ByClass = dict[str, list[str]]
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
      name: ``folder:DIR``, with images in ``DIR/train/CLASS/…`` and ``DIR/test/CLASS/…``, or under other usual names of
        splits, see ``splits.split_folders``; a test split is preferred to a validation split. If there is only
        ``DIR/CLASS/…`` or ``DIR/train/CLASS/…``, a fifth of each class is held out for testing, chosen by a hash of the
        names, so that adding a file moves few others. A test folder without subfolders, such as ImageNet's ``test``,
        has no classes and is ignored. What is chosen or left out is said in a warning.

    Returns:
      The splits ``train`` and ``test``, sorted by class and name, and the class names in alphabetical order, which is
      the numbering of torchvision's ImageFolder.

    Raises:
      InputError: the folder is not found or has fewer than two classes, a class has no images, a test class has no
        training images, or the folders are not those of a training split, a test split or classes.
    """
    root = str(pathlib.Path(os.path.expanduser(name.removeprefix('folder:'))))
    if name == 'folder:' or not os.path.isdir(root):
        raise InputError(f'{name!r}: folder not found; expected a folder with one subfolder per class')
    listing = Listing(root)
    try:
        layout = find_layout(name, root)
        train = listing.by_class(layout.train)
        check_classes(name, root, layout.train, train, listing.folders)
        test = None if layout.test is None else listing.by_class(layout.test)
        if layout.train:
            listing.count_system_folders()
    except OSError as error:
        raise InputError(f'cannot read {name!r}: {reason(error)}') from error
    left_out = listing.left_out()
    if without := listing.without_images:
        raise InputError(f'{name!r}: no images in {in_words(without)}; found {left_out}')
    train, test = _matched(name, train, test)
    parts = _hold_out(train) if test is None else {'train': train, 'test': test}
    classes = tuple(train)
    more = f'; left out {left_out}' if left_out else ''
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InputError(f'{name!r}: expected 2 to {MAX_CLASSES:,} class folders, found {len(classes)}{more}')
    if not any(parts['test'].values()):
        raise InputError(f'{name!r}: no test images found; at least one class needs two images, one for training')
    if layout.notes or left_out:
        warnings.warn(f'{name!r}: {"; ".join(layout.notes)}{more if layout.notes else more[2:]}', stacklevel=2)
    return {split: _split_of(root, by_class, classes) for split, by_class in parts.items()}, classes


def _matched(name: str, train: ByClass, test: ByClass | None) -> tuple[ByClass, ByClass | None]:
    """Gives test classes the names of the training classes, which may have another Unicode form.

    Raises:
      InputError: two folders have the same name in two Unicode forms, or a test class is not a training class.
    """
    known: dict[str, str] = {}
    for by_class in (test or {}, train):
        known = {}
        for label in by_class:
            if (other := known.setdefault(same_form(label), label)) != label:
                raise InputError(
                    f'{name!r}: the folders {other!a} and {label!a} have the same name in two Unicode forms'
                )
    if test is None:
        return train, None
    if unknown := [label for label in test if same_form(label) not in known]:
        alike = [label for label in train if label.strip().casefold() == unknown[0].strip().casefold()]
        if len(unknown) == len(test) and not alike:
            raise InputError(
                f'{name!r}: expected the same class folders for testing as for training ({in_words(train)}),'
                f' found {in_words(test)}'
            )
        more = f'; {alike[0]!r} is another class' if alike else ''
        raise InputError(f'{name!r}: class {unknown[0]!r} has test images but no training images{more}')
    return train, {known[same_form(label)]: images for label, images in test.items()}


def _hold_out(by_class: ByClass) -> dict[str, ByClass]:
    """Holds out a fraction of each class for testing: at least one image, but never the only one."""
    parts: dict[str, ByClass] = {'train': {}, 'test': {}}
    for label, names in by_class.items():
        mixed = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
        tested = max(round(TEST_SHARE * len(names)), 1) if len(names) > 1 else 0
        parts['test'][label], parts['train'][label] = sorted(mixed[:tested]), sorted(mixed[tested:])
    return parts


def _split_of(root: str, by_class: ByClass, classes: tuple[str, ...]) -> Split:
    counts = [len(by_class.get(label, ())) for label in classes]
    names = [name for label in classes for name in by_class.get(label, ())]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Split(FileImages(root, names, labels), labels)
