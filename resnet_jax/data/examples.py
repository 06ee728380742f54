"""What a data set is: images, what is to be learned of them, and the checks that all sources share."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from resnet_jax.errors import InputError

MAX_BYTES = 6 * 2**30  # of uint8 images, train and test together
MAX_CLASSES = 10_000  # a larger label is a mistake, not a class; a confusion matrix is K x K

# Images and targets of training, then of testing, each by the place they come from.
Parts = dict[str, tuple[np.ndarray, np.ndarray]]


class EncodedImages(Protocol):
    """Photographs as they are stored, of any sizes, with their targets; read by position, in any order."""

    def __len__(self) -> int:
        """How many."""

    def name(self, index: int) -> str:
        """What to call one in a message."""

    def read(self, index: int) -> tuple[bytes, Any]:
        """The bytes of one, and its target.

        Raises:
          OSError: they cannot be read.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples to train or to test on.

    Attributes:
      images: uint8 ``[N, H, W, C]``, or encoded photographs, which come with their targets.
      labels: the targets: of classes and of yes or no int32 ``[N]``, of labels int32 ``[N, K]`` of 0 and 1, of values
        float32 ``[N, D]``; None where all photographs would have to be read to know them.
    """

    images: np.ndarray | EncodedImages
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def photographs(self) -> EncodedImages:
        """Encoded images; arrays are none."""
        if isinstance(self.images, np.ndarray):
            raise TypeError('images in memory are not encoded')
        return self.images

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and targets that are in memory.

        Raises:
          InputError: they are not.
        """
        if not isinstance(self.images, np.ndarray) or self.labels is None:
            raise InputError('photographs are read while a network trains; this needs a dataset that is in memory')
        return self.images, self.labels


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with what a network needs to know of it.

    Attributes:
      name: as given to ``load_dataset``.
      train: the examples to train on.
      test: the examples to test on, of the same image shape.
      class_names: one for each class, label or value; of yes or no the name of 0 and that of 1.
      mean: of ``train.images / 255``, one for each channel.
      std: likewise, at least 1/255: one gray level.
      task: what the labels are: ``multiclass``, ``binary``, ``multilabel`` or ``regression``.
      image_size: pixels of both sides of what photographs are made to; None of images that are in memory.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: str = 'multiclass'
    image_size: int | None = None

    @property
    def num_classes(self) -> int:
        """Classes, labels or values: K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        if self.image_size is not None:
            return self.image_size, self.image_size, 3
        height, width, channels = self.train.arrays[0].shape[1:]
        return height, width, channels


def classes_of(dataset: Dataset, classes: Sequence[int], examples_per_class: int | None = None) -> Dataset:
    """A part of a dataset of classes.

    Args:
      dataset: of the task ``multiclass``.
      classes: ascending; they become 0, 1, ….
      examples_per_class: as many training images of each, the first; None takes all. The test images stay all.

    Returns:
      The part, with the mean and deviation of the whole.

    Raises:
      InputError: a class that is not there or has fewer training images; classes that do not ascend.
    """
    if dataset.task != 'multiclass' or list(classes) != sorted(set(classes)) or not classes:
        raise InputError(f'classes={list(classes)} must ascend, and {dataset.name} be a dataset of classes')
    if missing := [label for label in classes if not 0 <= label < dataset.num_classes]:
        raise InputError(f'class {missing[0]} is not there: {dataset.name} has {dataset.num_classes} classes')

    def pick(split: Split, limit: int | None) -> Split:
        images, labels = split.arrays
        chosen = [np.flatnonzero(labels == label) for label in classes]
        if limit is not None and (fewest := min(map(len, chosen))) < limit:
            raise InputError(f'examples_per_class={limit} must be at most {fewest}')
        places = np.sort(np.concatenate([places[:limit] for places in chosen]))
        return Split(images[places], np.searchsorted(classes, labels[places]).astype(np.int32))

    names = tuple(dataset.class_names[label] for label in classes)
    train, test = pick(dataset.train, examples_per_class), pick(dataset.test, None)
    return dataclasses.replace(dataset, train=train, test=test, class_names=names)


class _Renumbered:
    """Encoded images whose classes have other numbers; arguments as its attributes."""

    def __init__(self, images: EncodedImages, numbers: np.ndarray):
        self._images, self._numbers = images, numbers

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def read(self, index: int) -> tuple[bytes, Any]:
        data, label = self._images.read(index)
        return data, self._numbers[label]


def numbered_as(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """A dataset whose classes have the numbers that a network knows them by.

    Args:
      dataset: of classes, or of yes and no. Names that only count, 0, 1, 2 and so on, name nothing: then numbers stay
        what they are, as they do if the network's only count and the dataset's are no numbers.
      class_names: the network's; the dataset may have fewer, in another order.

    Raises:
      InputError: a class that the network does not know.
    """
    names = dataset.class_names
    if names == tuple(class_names):
        return dataset
    # A folder 7 or 007 is class 7 of a network whose classes are numbers.
    if all(map(str.isdecimal, (*names, *class_names))):
        names, class_names = (tuple(str(int(name)) for name in some) for some in (names, class_names))
    elif _only_counts(names) or _only_counts(class_names):
        return dataset
    if unknown := [name for name in names if name not in class_names]:
        known = textwrap.shorten(', '.join(class_names), 200, placeholder=' …')
        raise InputError(f'{dataset.name}: the network does not know its class {unknown[0]!r}, it knows {known}')
    numbers = np.array([class_names.index(name) for name in names], np.int32)

    def renumbered(split: Split) -> Split:
        labels = None if split.labels is None else numbers[split.labels]
        encoded = not isinstance(split.images, np.ndarray)
        return Split(_Renumbered(split.photographs, numbers) if encoded else split.images, labels)

    train, test = renumbered(dataset.train), renumbered(dataset.test)
    return dataclasses.replace(dataset, train=train, test=test, class_names=tuple(class_names))


def _only_counts(names: Sequence[str]) -> bool:
    return list(names) == [str(number) for number in range(len(names))]


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes to squares, bilinearly; when images shrink, every pixel counts (Pillow's antialiasing).

    Args:
      images: uint8 ``[N, H, W, C]``, C being 1 or 3.
      size: the new height and width in pixels.

    Returns:
      uint8 ``[N, size, size, C]``.
    """
    resized = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for i, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        resized[i] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(resized.shape[1:])
    return resized


def describe(name: str, parts: Parts, class_names: tuple[str, ...], task: str) -> Dataset:
    """A data set from its parts: checks the targets, names what has no names, measures the training images.

    Args:
      name: of the data set.
      parts: images uint8 ``[N, H, W, C]`` and targets ``[N]`` or ``[N, K]``.
      class_names: of the classes, labels or values; empty if they have none.
      task: what the targets are.

    Raises:
      InputError: targets that are none of this task.
    """
    shapes = {place: targets.shape[1:] for place, (_, targets) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f'{name!r}: the labels of {" and ".join(shapes)} differ in shape: {[*shapes.values()]}')
    for place, (_, targets) in parts.items():
        if not targets.size:
            raise InputError(f'{place}: expected at least one label for each image, found {targets.shape}')
        class_names = _CHECKS[task](place, targets, class_names)
    dtype = np.float32 if task == 'regression' else np.int32
    columns = (-1,) if task == 'regression' else ()
    train, test = (
        Split(images, targets.astype(dtype).reshape(len(targets), *(columns or targets.shape[1:])))
        for images, targets in parts.values()
    )
    mean, std = channel_statistics(train.arrays[0])
    return Dataset(name, train, test, class_names, mean, std, task)


def _check_classes(place: str, labels: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    _check_integers(place, labels)
    if labels.ndim != 1:
        raise InputError(
            f'{place}: expected one integer for each image, found labels of {labels.shape}; task=multilabel takes'
            ' columns of 0 and 1'
        )
    low, high = int(labels.min()), int(labels.max())
    limit = len(names) if names else MAX_CLASSES
    if low < 0 or high >= limit:
        raise InputError(f'{place}: labels must be from 0 to {limit - 1}, found {low if low < 0 else high}')
    if names:
        return names
    if missing := sorted(set(range(high + 1)) - set(labels.tolist())):
        raise InputError(f'{place}: labels go up to {high}, but none is {missing[0]}; classes.txt can name them')
    return tuple(map(str, range(high + 1)))


def _check_integers(place: str, labels: np.ndarray, more: str = '') -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f'{place}: labels must be integers{more}, found {labels.dtype}')


def _check_zeros_and_ones(place: str, labels: np.ndarray, names: tuple[str, ...], task: str, rank: int) -> None:
    if labels.dtype != bool:
        _check_integers(place, labels, ' or bool')
    if labels.ndim != rank:
        shape = '[N]' if rank == 1 else '[N, K]'
        raise InputError(f'{place}: task={task} takes labels {shape}, found {labels.shape}')
    if outside := sorted(set(np.unique(labels).tolist()) - {0, 1}):
        raise InputError(f'{place}: task={task} takes labels 0 and 1, found {outside[0]}')
    expected = 2 if rank == 1 else labels.shape[1]
    if names and len(names) != expected:
        raise InputError(f'{place}: expected {expected} names for task={task}, found {len(names)}')


def _check_binary(place: str, labels: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    _check_zeros_and_ones(place, labels, names, 'binary', 1)
    return names or ('0', '1')


def _check_labels(place: str, labels: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    _check_zeros_and_ones(place, labels, names, 'multilabel', 2)
    return names or tuple(map(str, range(labels.shape[1])))


def _check_values(place: str, values: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
    real = np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)
    if values.ndim not in (1, 2) or not real:
        raise InputError(f'{place}: task=regression takes numbers [N] or [N, D], found {values.dtype} {values.shape}')
    if (wrong := ~(np.abs(values) <= np.finfo(np.float32).max)).any():
        raise InputError(f'{place}: task=regression takes finite float32 numbers, found {values[wrong][0]}')
    columns = values.shape[1] if values.ndim == 2 else 1
    if names and len(names) != columns:
        raise InputError(f'{place}: expected {len(names)} values for each image, as there are names, found {columns}')
    return names or (('value',) if columns == 1 else tuple(f'value{index}' for index in range(columns)))


_CHECKS: dict[str, Callable[[str, np.ndarray, tuple[str, ...]], tuple[str, ...]]] = {
    'multiclass': _check_classes,
    'binary': _check_binary,
    'multilabel': _check_labels,
    'regression': _check_values,
}
TASK_NAMES = tuple(_CHECKS)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of ``images / 255``, from exact integer sums."""
    counts = np.zeros((images.shape[3], 256), np.int64)
    for start in range(0, len(images), 256):  # bincount makes its input eight times as large
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + 256, ..., channel].ravel(), minlength=256)
    levels, num = np.arange(256), counts[0].sum()
    mean = counts @ levels / num
    variance = counts @ levels**2 / num - mean**2
    return tuple((mean / 255).tolist()), tuple((np.sqrt(np.maximum(variance, 1)) / 255).tolist())


def check_memory(name: str, num_examples: int, shape: Sequence[int]) -> None:
    """Raises InputError for more images than MAX_BYTES."""
    if (size := num_examples * int(np.prod(shape))) > MAX_BYTES:
        limit = f'{size / 2**30:.1f} GiB, at most {MAX_BYTES / 2**30:g} GiB can be'
        raise InputError(f'{name!r}: {num_examples:,} images of {by(shape)} are too large to keep in memory: {limit}')


def root(error: BaseException) -> BaseException:
    """The exception that was raised first; TFDS wraps them in the examples they came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: BaseException) -> str:
    """What the first error said, on one line."""
    return textwrap.shorten(str(root(error)), 300)


def by(shape: Sequence[int]) -> str:
    """``5 x 4 x 3``."""
    return ' x '.join(map(str, shape))
