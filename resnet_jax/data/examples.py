"""Datasets: images with targets, and the checks shared by all sources."""

import collections
import dataclasses
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from resnet_jax.data.checks import check_images, check_targets, without_column
from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import DEFAULT_TASK, TaskLike, get_task

MAX_BYTES = 6 * 2**30  # uint8 images of train and test together

# Images and targets.
Arrays = tuple[np.ndarray, np.ndarray | None]


class EncodedImages(Protocol):
    """Protocol of a random-access source of encoded photographs of any size, with their targets.

    Photographs are read by index, in any order, from several threads and worker processes, so the object must be
    picklable.
    """

    def __len__(self) -> int:
        """The number of photographs."""

    def name(self, index: int) -> str:
        """The name of a photograph in messages."""

    def read(self, index: int) -> tuple[bytes, Any]:
        """Reads the bytes of a photograph, and its target.

        Args:
          index: from 0.

        Returns:
          The encoded bytes, and the target in the dtype and shape in which its task stores it, or None.

        Raises:
          OSError: the photograph cannot be read.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Training or test examples.

    Attributes:
      images: uint8 ``[N, H, W, C]``, or encoded photographs, which come with their targets.
      labels: the targets as their task stores them: int32 ``[N]`` for ``multiclass`` and ``binary``, 0 or 1 in int32
        ``[N, K]`` for ``multilabel``, float32 ``[N, D]`` for ``regression``. None if the task needs no targets, or if
        all photographs would have to be read to get them.
    """

    images: np.ndarray | EncodedImages
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def photographs(self) -> EncodedImages:
        """The encoded images.

        Raises:
          TypeError: the images are in memory.
        """
        if isinstance(self.images, np.ndarray):
            raise TypeError('images in memory are not encoded')
        return self.images

    @property
    def pixels(self) -> np.ndarray:
        """The images in memory, uint8 ``[N, H, W, C]``.

        Raises:
          InputError: the images are photographs.
        """
        if not isinstance(self.images, np.ndarray):
            raise InputError('this needs a dataset in memory; photographs are only read during training')
        return self.images

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The images and targets in memory.

        Raises:
          InputError: the images are photographs, or there are no targets.
        """
        images = self.pixels
        if self.labels is None:
            raise InputError('these images have no targets')
        return images, self.labels


_MULTICLASS = get_task(DEFAULT_TASK)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset: examples, task, class names and normalization; made by ``dataset_from_arrays`` and similar functions.

    Attributes:
      name: the name, as passed to ``load_dataset``.
      train: the training examples.
      test: the test examples, with the same image shape.
      class_names: one name per class, label or value; for ``binary`` the names of 0 and 1.
      mean: mean of ``train.images / 255`` for each channel.
      std: standard deviation, likewise; at least 1/255, one gray level.
      task: the kind of target; a name or a class is converted to an instance with default fields.
      image_size: height and width in pixels that photographs are resized to; None for images in memory.

    Raises:
      InputError: two class names are equal.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task = _MULTICLASS
    image_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'task', get_task(self.task))
        counts = collections.Counter(map(same_form, self.class_names))
        if repeated := [name for name in self.class_names if counts[same_form(name)] > 1]:
            raise InputError(f'{self.name!r}: the names of classes must differ, found {repeated[0]!r} several times')

    @property
    def num_classes(self) -> int:
        """K, the number of classes, labels or values."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of an image, ``(H, W, C)``."""
        if self.image_size is not None:
            return self.image_size, self.image_size, 3
        height, width, channels = self.train.pixels.shape[1:]
        return height, width, channels

    def target_statistics(self) -> dict[str, Any]:
        """Fields of the task computed from the training targets, such as their mean; empty for most tasks."""
        if self.train.labels is None or not self.task.has_statistics:
            return {}
        return self.task.statistics(self.train.labels)


def classes_of(dataset: Dataset, classes: Sequence[int], examples_per_class: int | None = None) -> Dataset:
    """Selects some classes of a dataset.

    Args:
      dataset: a dataset with one class per image.
      classes: class indices in ascending order; they are renumbered 0, 1, ….
      examples_per_class: number of training images per class, the first ones; None takes all. Test images are not
        limited.

    Returns:
      The selected part, with the mean and standard deviation of the whole dataset.

    Raises:
      InputError: a class that does not exist or has too few training images, or classes not in ascending order.
    """
    if not dataset.task.has_class_outputs or list(classes) != sorted(set(classes)) or not classes:
        raise InputError(f'classes={list(classes)} must be in ascending order, and {dataset.name} must have classes')
    if missing := [label for label in classes if not 0 <= label < dataset.num_classes]:
        raise InputError(f'class {missing[0]} does not exist: {dataset.name} has {dataset.num_classes} classes')

    def pick(split: Split, limit: int | None) -> Split:
        images, labels = split.arrays
        chosen = [np.flatnonzero(labels == label) for label in classes]
        if limit is not None and (fewest := min(map(len, chosen))) < limit:
            raise InputError(f'examples_per_class={limit} must be at most {fewest}, the size of the smallest class')
        places = np.sort(np.concatenate([places[:limit] for places in chosen]))
        return Split(images[places], np.searchsorted(classes, labels[places]).astype(np.int32))

    names = tuple(dataset.class_names[label] for label in classes)
    train, test = pick(dataset.train, examples_per_class), pick(dataset.test, None)
    return dataclasses.replace(dataset, train=train, test=test, class_names=names)


class _Renumbered:
    """Encoded images with renumbered classes: class ``k`` becomes ``numbers[k]``."""

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
    """Renumbers the classes of a dataset to match those of a network.

    Args:
      dataset: a dataset of classes, or of ``binary``. Its numbering is kept if either its class names or the network's
        are merely 0, 1, 2 and so on, unless all names of both are numbers, which are matched by value.
      class_names: class names of the network; the dataset may have fewer, in another order.

    Returns:
      The dataset, with the network's class names unless its numbering was kept.

    Raises:
      InputError: a class that the network does not have, or has several times.
    """
    names = dataset.class_names
    if names == tuple(class_names):
        return dataset
    keys, known = ([same_form(name) for name in some] for some in (names, class_names))
    # A folder 7 or 007 is class 7 of a network with numbers as class names.
    if all(map(str.isdecimal, (*keys, *known))):
        keys, known = ([str(int(name)) for name in some] for some in (keys, known))
    elif _are_indices(names) or _are_indices(class_names):
        return dataset
    counts = collections.Counter(known)
    for key in keys:
        if counts[key] != 1:
            some = textwrap.shorten(', '.join(class_names), 200, placeholder=' …')
            how_many = f'several classes {key!r}' if counts[key] else f'no class {key!r}; its classes are {some}'
            raise InputError(f'{dataset.name}: the network has {how_many}')
    if len(set(keys)) < len(keys):
        raise InputError(f'{dataset.name}: several classes are the same class of the network: {", ".join(names)}')
    numbers = np.array([known.index(key) for key in keys], np.int32)

    def renumbered(split: Split) -> Split:
        labels = None if split.labels is None else numbers[split.labels]
        encoded = not isinstance(split.images, np.ndarray)
        return Split(_Renumbered(split.photographs, numbers) if encoded else split.images, labels)

    train, test = renumbered(dataset.train), renumbered(dataset.test)
    return dataclasses.replace(dataset, train=train, test=test, class_names=tuple(class_names))


def _are_indices(names: Sequence[str]) -> bool:
    return list(names) == [str(number) for number in range(len(names))]


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes images to squares with Pillow's bilinear filter, with antialiasing when shrinking.

    Args:
      images: uint8 ``[N, H, W, C]`` with C = 1 or 3.
      size: the new height and width in pixels.

    Returns:
      uint8 ``[N, size, size, C]``.
    """
    resized = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for i, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        resized[i] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(resized.shape[1:])
    return resized


def dataset_from_arrays(
    name: str,
    train: Arrays,
    test: Arrays,
    class_names: Sequence[str] = (),
    task: TaskLike = DEFAULT_TASK,
    places: tuple[str, str] | None = None,
) -> Dataset:
    """Makes a dataset from arrays: checks images and targets, and computes the mean and deviation of each channel.

    Args:
      name: name of the dataset, for messages and records.
      train: images uint8 ``[N, H, W, C]`` with 1 or 3 channels, and targets ``[N]`` or ``[N, K]`` as the task expects
        them, or None for a task without targets; class labels may also be ``[N, 1]``.
      test: likewise, with the same image shape.
      class_names: names of the classes, labels or values; if empty, default names are used.
      task: the kind of target: a name, or a subclass of ``Task`` or an instance of one.
      places: names of the training and test data in messages.

    Returns:
      The dataset.

    Raises:
      InputError: invalid images, or targets that do not fit the task.
    """
    kind, names = get_task(task), tuple(class_names)
    train, test = ((images, without_column(targets, kind)) for images, targets in (train, test))
    parts = dict(zip(places or (f'{name!r}, train', f'{name!r}, test'), (train, test), strict=True))
    for place, (images, _) in parts.items():
        check_images(place, images)
    if train[0].shape[1:] != test[0].shape[1:]:
        expected, found = by(train[0].shape[1:]), by(test[0].shape[1:])
        raise InputError(f'{list(parts)[1]}: expected images of {expected} like the training images, found {found}')
    if train[1] is not None or test[1] is not None or kind.needs_targets:
        names = check_targets(name, parts, names, kind)
    train_split, test_split = (
        Split(images, None if targets is None else kind.stored_targets(targets)) for images, targets in parts.values()
    )
    mean, std = channel_statistics(train[0])
    return Dataset(name, train_split, test_split, names, mean, std, kind)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and standard deviation of each channel of ``images / 255``, from exact integer sums.

    Args:
      images: uint8 ``[N, H, W, C]``.
    """
    counts = np.zeros((images.shape[3], 256), np.int64)
    for start in range(0, len(images), 256):  # in parts, since bincount converts its input to int64
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + 256, ..., channel].ravel(), minlength=256)
    levels, num = np.arange(256), counts[0].sum()
    mean = counts @ levels / num
    variance = counts @ levels**2 / num - mean**2
    return tuple((mean / 255).tolist()), tuple((np.sqrt(np.maximum(variance, 1)) / 255).tolist())


def check_memory(name: str, num_examples: int, shape: Sequence[int]) -> None:
    """Raises InputError for images of more than ``MAX_BYTES`` in total."""
    if (size := num_examples * int(np.prod(shape))) > MAX_BYTES:
        limit = f'{size / 2**30:.1f} GiB, at most {MAX_BYTES / 2**30:g} GiB'
        raise InputError(f'{name!r}: {num_examples:,} images of {by(shape)} do not fit in memory: {limit}')


def root(error: BaseException) -> BaseException:
    """The original exception of a chain; TFDS wraps exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def reason(error: BaseException) -> str:
    """The message of the original exception, on one line of at most 300 characters."""
    return textwrap.shorten(str(root(error)), 300)


def same_form(name: str) -> str:
    """A name in the Unicode form NFC: file systems and archives change the form of names with accents."""
    return unicodedata.normalize('NFC', name)


def by(shape: Sequence[int]) -> str:
    """Formats a shape as ``5 x 4 x 3``."""
    return ' x '.join(map(str, shape))
