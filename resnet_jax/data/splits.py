"""Names of splits: which folders of a dataset are for training and testing, and which are classes."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from resnet_jax.data.image_files import in_words, subfolders
from resnet_jax.errors import InputError

TRAIN, TEST, VALIDATION = 'train', 'test', 'validation'
_WORDS = {
    **dict.fromkeys(('train', 'training', 'trn', 'trainval'), TRAIN),
    **dict.fromkeys(('test', 'testing', 'tests', 'tst', 'holdout', 'heldout'), TEST),
    **dict.fromkeys(('val', 'valid', 'validation', 'validate', 'validating'), VALIDATION),
    **dict.fromkeys(('dev', 'devel', 'development', 'eval', 'evaluation'), VALIDATION),
}
# What may be beside these words: train_images, test-set, Validation Data.
_FILLERS = {
    *('set', 'sets', 'data', 'dataset', 'datasets', 'split', 'splits', 'part', 'folder', 'dir', 'samples', 'examples'),
    *('image', 'images', 'img', 'imgs', 'photo', 'photos', 'picture', 'pictures', 'pics', 'jpg', 'jpeg', 'png'),
    *('raw', 'full', 'final', 'small', 'crop', 'crops', 'cropped', 'resized', 'processed', 'px'),
}
# Folders beside a folder of images, which belong to the images and are not classes.
_ANNOTATIONS = {
    'mask',
    'masks',
    'label',
    'labels',
    'annotation',
    'annotations',
    'annot',
    'bbox',
    'boxes',
    'json',
    'xml',
}
_COMPOUND = re.compile(f'({"|".join(sorted(_WORDS, key=len, reverse=True))})({"|".join(sorted(_FILLERS, key=len))})')
# Names that need no message.
_USUAL = ('train', 'test', 'val', 'validation')
EXPECTED = 'expected DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS'
_IF_CLASSES = 'if they are classes, move all class folders into DIR/train'


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the splits of a dataset are. Names are relative to its folder.

    Attributes:
      train: the folder of training classes; empty if the dataset's folder contains the classes.
      test: that of test classes; None if test images are held out from the training classes.
      notes: what must be said about the choice.
    """

    train: str = ''
    test: str | None = None
    notes: tuple[str, ...] = ()


def role_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """What a folder's name says about its split.

    Args:
      name: such as ``train``, ``Testing``, ``seg_train``, ``val2017`` or ``trainingImages``.

    Returns:
      ``train``, ``test`` or ``validation``, and the other words in the name; None if it does not name one split.
    """
    words: list[str] = []
    for word in re.findall(r'[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+', name):
        compound = _COMPOUND.fullmatch(word.lower())
        words += compound.groups() if compound else [word.lower()]
    roles = {_WORDS[word] for word in words if word in _WORDS}
    if roles == {TRAIN, VALIDATION}:  # train_val
        roles = {TRAIN}
    if len(roles) != 1:
        return None
    return roles.pop(), tuple(word for word in words if word not in _WORDS and word not in _FILLERS)


def _rest(name: str) -> tuple[str, ...]:
    """The other words in a split's name."""
    role = role_of(name)
    return role[1] if role else ()


def split_folders(folders: Sequence[str]) -> dict[str, list[str]]:
    """The folders whose names are those of splits, by split.

    A name with other words, such as ``seg_train``, counts only beside its counterpart, ``seg_test`` or ``seg_val``.

    Args:
      folders: names of all subfolders of a folder.
    """
    roles = {folder: role for folder in folders if (role := role_of(folder))}
    rests = [{rest for split, rest in roles.values() if (split == TRAIN) is train} for train in (True, False)]
    found: dict[str, list[str]] = {TRAIN: [], TEST: [], VALIDATION: []}
    for folder, (split, rest) in roles.items():
        if not rest or rest in rests[0] & rests[1]:
            found[split].append(folder)
    return found


def find_layout(name: str, root: str) -> Layout:
    """Finds the splits of a dataset by the names of its folders.

    Args:
      name: the dataset's name, for messages.
      root: its folder.

    Raises:
      InputError: several folders are named like the training or the test split, a split contains no class folders, or
        there is no training split beside others.
      OSError: a folder cannot be read.
    """
    folders = subfolders(root)
    found = split_folders(folders)
    trains, others = found[TRAIN], [folder for folder in folders if not any(folder in part for part in found.values())]
    full = {folder for part in found.values() for folder in part if subfolders(os.path.join(root, folder))}
    named = [folder for folder in folders if folder not in others]
    if not trains:
        if named and not others:
            raise InputError(f'{name!r}: found {in_words(named)}, but no folder named train; {EXPECTED}')
        return Layout()
    if not full.intersection(named):
        if len(named) > len(trains) and (not others or not all(map(_rest, named))):
            raise InputError(
                f'{name!r}: {in_words(named)} are named like splits, but contain no class folders; {EXPECTED};'
                f' {_IF_CLASSES}'
            )
        return Layout()  # a class may be called train
    return _chosen(name, root, found, full, others)


def _chosen(name: str, root: str, found: dict[str, list[str]], full: set[str], others: list[str]) -> Layout:
    """The layout of a folder with a training split."""
    trains, named = found[TRAIN], [folder for part in found.values() for folder in part]
    if len(trains) > 1:
        raise InputError(f'{name!r}: {in_words(trains)} are all named like the training split; keep one of them')
    train, test, notes = trains[0], None, []
    if train not in full:
        raise InputError(f'{name!r}: {train} contains no class folders, but {in_words(sorted(full))}; {EXPECTED}')
    for split in (TEST, VALIDATION):
        usable = [folder for folder in found[split] if folder in full]
        same = [folder for folder in usable if _rest(folder) == _rest(train)] or usable
        if len(same) > 1:
            raise InputError(f'{name!r}: {in_words(same)} are all named like the {split} split; keep one of them')
        if same:
            test = same[0]
            break
    if test is None and others:
        raise InputError(
            f'{name!r}: next to {train}, expected a folder test, val or validation with class folders, found'
            f' {in_words(others)}'
        )
    unused = [folder for folder in sorted({*named, *others}) if folder not in (train, test)]
    inner_train = _unwrapped(root, train)
    inner_test = test if test is None else _unwrapped(root, test, subfolders(os.path.join(root, inner_train)))
    if any(folder not in (None, *_USUAL) for folder in (inner_train.lower(), inner_test and inner_test.lower())):
        tested = 'holds out a part of it' if inner_test is None else f'tests on {in_words([inner_test])}'
        notes.append(f'trains on {in_words([inner_train])} and {tested}')
    if unused:
        notes.append(f'left out the folder{"s" if len(unused) > 1 else ""} {in_words(unused)}')
    return Layout(inner_train, inner_test, tuple(notes))


def _unwrapped(root: str, folder: str, classes: Iterable[str] = ()) -> str:
    """The folder of classes within a split, which may be the only subfolder: ``train/images/CLASS``."""
    while len(inner := subfolders(os.path.join(root, folder))) == 1 and inner[0] not in classes:
        if not subfolders(os.path.join(root, folder, inner[0])):
            break
        folder = f'{folder}/{inner[0]}'
    return folder


def check_classes(name: str, root: str, base: str, images: Mapping[str, Sequence[str]], visited: Sequence[str]) -> None:
    """Checks that the folders that would be classes are not splits, or folders of splits.

    Args:
      name: the dataset's name, for messages.
      root: its folder.
      base: the folder of the classes, relative to the root.
      images: names of the images of each class.
      visited: names of the classes' folders and all folders below, relative to the root.

    Raises:
      InputError: they are.
    """
    below: dict[str, list[str]] = {}
    for folder in visited:
        parent, _, last = folder.rpartition('/')
        below.setdefault(parent, []).append(last)
    place = f'{base}/' if base else ''
    for parent, children in sorted(below.items()):
        if parent == base or not parent.startswith(place):
            continue
        found = split_folders(children)
        if found[TRAIN] and (tests := found[TEST] + found[VALIDATION]):
            splits = in_words([found[TRAIN][0], tests[0]])
            if len(images) > 1 and all(set(children) == set(below.get(f'{place}{label}', ())) for label in images):
                raise InputError(f'{name!r}: every class contains the splits {splits}; {EXPECTED}')
            better = f'folder:{os.path.join(root, parent)}'
            raise InputError(f'{name!r}: the splits {splits} are in {in_words([parent])}; use {better!r}')
    labels = {label.lower() for label in images}
    if labels & _ANNOTATIONS and labels & _FILLERS and labels <= _ANNOTATIONS | _FILLERS:
        raise InputError(f'{name!r}: {in_words(images)} are not names of classes; {EXPECTED}')
    if base:  # the user says that these are classes
        _raise_for_copies(name, place, below, images, filter(role_of, images))
        return
    if len(images) == 1:
        _raise_for_one_class(name, root, next(iter(images)))
    _raise_for_copies(name, place, below, images, images)
    inside = [set(below.get(label, ())) for label in images]
    common = set[str]().union(*inside[:1]).intersection(*inside)
    beside = any(image.count('/') == 1 for some in images.values() for image in some)
    alike = len(common) > 1 and 2 * len(common) >= len(set().union(*inside))
    if len(images) > 1 and (alike or any(map(role_of, common))) and not beside:
        raise InputError(
            f'{name!r}: {in_words(images)} are probably splits and not classes, since all of them contain the same'
            f' folders ({in_words(sorted(common))}); {EXPECTED}; {_IF_CLASSES}'
        )


def _raise_for_one_class(name: str, root: str, label: str) -> None:
    """Raises InputError that names the folder of the classes if this is one or more levels too high."""
    path = label
    while len(inner := subfolders(os.path.join(root, path))) == 1:
        path = f'{path}/{inner[0]}'
    if inner:
        better = f'folder:{os.path.join(root, path)}'
        raise InputError(f'{name!r}: found only the folder {in_words([path])}, with {in_words(inner)}; use {better!r}')


def _raise_for_copies(
    name: str, place: str, below: Mapping[str, Iterable[str]], labels: Iterable[str], suspected: Iterable[str]
) -> None:
    """Raises InputError if a suspected class contains folders of other classes: some archives hold everything twice."""
    for label in suspected:
        if len(copied := sorted(set(below.get(place + label, ())).intersection(labels))) > 1:
            raise InputError(
                f'{name!r}: {in_words([label])} contains folders named like the classes beside it'
                f' ({in_words(copied)}); remove it, or, {_IF_CLASSES}'
            )
