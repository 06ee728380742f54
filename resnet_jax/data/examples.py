"""What a dataset is: images, what is to be learned of them, and the checks that all sources share."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np
from PIL import Image

from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import DEFAULT_TASK, TaskLike, get_task

MAX_BYTES = 6 * 2**30  # of uint8 images, train and test together

# Images and targets.
Arrays = tuple[np.ndarray, np.ndarray | None]


class EncodedImages(Protocol):
    """A random-access source: photographs as they are stored, of any sizes, with their targets.

    They are read by position, in any order, by threads and by other processes, to which the object is sent.
    """

    def __len__(self) -> int:
        """How many."""

    def name(self, index: int) -> str:
        """What to call one in a message."""

    def read(self, index: int) -> tuple[bytes, Any]:
        """The bytes of one, and its target, in the dtype and shape in which its task stores it; None for none.

        Raises:
          OSError: they cannot be read.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples to train or to test on.

    Attributes:
      images: uint8 ``[N, H, W, C]``, or encoded photographs, which come with their targets.
      labels: the targets, as their task stores them: of classes and of yes or no int32 ``[N]``, of labels int32
        ``[N, K]`` of 0 and 1, of values float32 ``[N, D]``. None where the task needs none, and where all photographs
        would have to be read to know them.
    """

    images: np.ndarray | EncodedImages
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def photographs(self) -> EncodedImages:
        """Encoded images; arrays are none."""
        if isinstance(self.images, np.ndarray):
            raise TypeError('images in memory are not encoded')
        return self.images

    @property
    def pixels(self) -> np.ndarray:
        """Images that are in memory, uint8 ``[N, H, W, C]``.

        Raises:
          InputError: they are not.
        """
        if not isinstance(self.images, np.ndarray):
            raise InputError('photographs are read while a network trains; this needs a dataset that is in memory')
        return self.images

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and targets that are in memory.

        Raises:
          InputError: they are not, or there are no targets.
        """
        images = self.pixels
        if self.labels is None:
            raise InputError('these images have no targets')
        return images, self.labels


_CLASSES = get_task(DEFAULT_TASK)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset with what a network needs to know of it; ``dataset_from_arrays`` and its like make one.

    Attributes:
      name: as given to ``load_dataset``.
      train: the examples to train on.
      test: the examples to test on, of the same image shape.
      class_names: one for each class, label or value; of yes or no the name of 0 and that of 1.
      mean: of ``train.images / 255``, one for each channel.
      std: likewise, at least 1/255: one gray level.
      task: what the targets are; a name or a class becomes an instance with its default fields.
      image_size: pixels of both sides of what photographs are made to; None of images that are in memory.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task = _CLASSES
    image_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'task', get_task(self.task))

    @property
    def num_classes(self) -> int:
        """Classes, labels or values: K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        if self.image_size is not None:
            return self.image_size, self.image_size, 3
        height, width, channels = self.train.pixels.shape[1:]
        return height, width, channels

    def target_statistics(self) -> dict[str, Any]:
        """Fields of the task that follow from the training targets, such as their units; empty for most tasks."""
        if self.train.labels is None or not self.task.has_statistics:
            return {}
        return self.task.statistics(self.train.labels)


def classes_of(dataset: Dataset, classes: Sequence[int], examples_per_class: int | None = None) -> Dataset:
    """A part of a dataset of classes.

    Args:
      dataset: of classes, one for each image.
      classes: ascending; they become 0, 1, ….
      examples_per_class: as many training images of each, the first; None takes all. The test images stay all.

    Returns:
      The part, with the mean and deviation of the whole.

    Raises:
      InputError: a class that is not there or has fewer training images; classes that do not ascend.
    """
    if not dataset.task.has_class_outputs or list(classes) != sorted(set(classes)) or not classes:
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


def dataset_from_arrays(
    name: str,
    train: Arrays,
    test: Arrays,
    class_names: Sequence[str] = (),
    task: TaskLike = DEFAULT_TASK,
    places: tuple[str, str] | None = None,
) -> Dataset:
    """A dataset of images in memory: checks images and targets, names what has no names, measures the channels.

    Args:
      name: of the dataset, for messages and records.
      train: images uint8 ``[N, H, W, C]`` with 1 or 3 channels, and targets ``[N]`` or ``[N, K]`` as the task takes
        them; None for a task that needs no targets.
      test: likewise, of the same shape but for N.
      class_names: of the classes, labels or values; empty if they have none.
      task: what the targets are: a name, or a subclass of ``Task`` or an instance of one.
      places: what messages call the two.

    Raises:
      InputError: images that are none, or targets that are none of this task.
    """
    kind, names = get_task(task), tuple(class_names)
    parts = dict(zip(places or (f'{name!r}, train', f'{name!r}, test'), (train, test), strict=True))
    for place, (images, _) in parts.items():
        check_images(place, images)
    if train[0].shape[1:] != test[0].shape[1:]:
        expected, found = by(train[0].shape[1:]), by(test[0].shape[1:])
        raise InputError(f'{list(parts)[1]}: expected images of {expected} as in training, found {found}')
    if train[1] is not None or test[1] is not None or kind.needs_targets:
        names = check_targets(name, parts, names, kind)
    train_split, test_split = (
        Split(images, None if targets is None else kind.stored_targets(targets)) for images, targets in parts.values()
    )
    mean, std = channel_statistics(train[0])
    return Dataset(name, train_split, test_split, names, mean, std, kind)


def check_targets(
    name: str, parts: Mapping[str, tuple[Sized, np.ndarray | None]], class_names: tuple[str, ...], task: Task
) -> tuple[str, ...]:
    """Names of the classes, labels or values of targets that were checked.

    Args:
      name: of the dataset.
      parts: images and targets of each split, by what messages call it.
      class_names: as in ``dataset_from_arrays``.
      task: what the targets are.

    Raises:
      InputError: targets that are none of this task.
    """
    shapes = []
    for place, (images, targets) in parts.items():
        if targets is None:
            raise InputError(f'{place}: task={task.name} needs a label for each image, found none')
        if targets.shape[:1] != (len(images),):
            raise InputError(
                f'{place}: expected a label for each of {len(images)} images, found labels of {targets.shape}'
            )
        shapes.append(targets.shape[1:])
    if len(set(shapes)) > 1:
        raise InputError(f'{name!r}: the labels of {" and ".join(parts)} differ in shape: {shapes}')
    for place, (_, targets) in parts.items():
        assert targets is not None
        if not targets.size:
            raise InputError(f'{place}: expected at least one label for each image, found {targets.shape}')
        class_names = task.check_targets(place, targets, class_names)
    return class_names


def check_images(place: str, images: np.ndarray) -> None:
    """Raises InputError for what are no images that can be kept in memory."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f'{place}: images must be uint8 from 0 to 255, found {found}')
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(f'{place}: images must be [N, H, W, C] with 1 or 3 channels, found {images.shape}')
    if not images.size:
        raise InputError(f'{place}: expected at least one image with at least one pixel, found {images.shape}')


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
