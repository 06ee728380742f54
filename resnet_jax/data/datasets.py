"""Datasets by name or as values: digits, TFDS, folders of photographs, NumPy files, random images, or one's own.

Images of one size are held in memory, uint8 ``[N, H, W, C]`` with 1 or 3 channels; photographs stay where they are.
What the labels are depends on the task.
"""

import dataclasses
import os

import numpy as np

from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.examples import Dataset, Split, check_memory, dataset_from_arrays, resize_images
from resnet_jax.data.folder import load_folder
from resnet_jax.data.tfds_source import load_tfds
from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import DEFAULT_TASK, TaskLike, get_task


def load_dataset(
    name: str | Dataset,
    *,
    task: TaskLike | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a dataset, or if it consists of photographs, finds them.

    Args:
      name: ``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, without a download;
        ``arrays:DIR``: ``DIR/train.npz`` and ``DIR/test.npz`` with ``images`` uint8 ``[N, H, W, C]`` or
        ``[N, H, W]`` and ``labels``; ``DIR/classes.txt`` may name the classes, labels or values, one a line;
        ``folder:DIR``: photographs in ``DIR/train/CLASS`` and ``DIR/test/CLASS`` or in ``DIR/CLASS``, as
        ``folder.list_folder`` has it;
        ``synthetic``: random images in 10 classes, 32 x 32 x 3, for timing only;
        else a TFDS dataset with one image and one feature that fits the task, as ``cifar10`` or
        ``name/config:1.0.0``; its splits ``train`` and ``test`` (``validation`` if there is no ``test`` with labels)
        are read.
        Or a ``Dataset``, as ``dataset_from_arrays`` or ``dataset_from_source`` makes it, which is given back.
      task: what is to be learned. ``multiclass``: labels are integers ``[N]``; ``binary``: 0 or 1, ``[N]``;
        ``multilabel``: 0 or 1, ``[N, K]``; ``regression``: numbers ``[N]`` or ``[N, D]``; or a subclass of ``Task`` or
        an instance of one. None is the class, or a given dataset's own task. Of digits, in this order: the class; even
        or odd; the attributes even, prime, square, above four and loop; the slant of the writing in degrees.
      data_dir: folder of TFDS's prepared files, ``~/tensorflow_datasets`` if None; a dataset that is not yet there
        is downloaded and prepared.
      image_size: resizes all images to this many pixels in height and width; None leaves them as they are, and makes
        photographs 224 pixels wide and high.
      seed: of the random images of ``synthetic``; nothing else depends on it.

    Returns:
      The dataset. The order of its examples is always the same.

    Raises:
      InputError: an unknown name or task, targets of another task, missing or damaged files, images of unequal size
        without an ``image_size``, more than ``examples.MAX_BYTES`` of images, no way to download or prepare them here.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f'image_size={image_size} must be at least 1')
    if isinstance(name, Dataset):
        return _given(name, task, image_size)
    kind = get_task(DEFAULT_TASK if task is None else task)
    data_dir = data_dir and os.path.expanduser(data_dir)
    if data_dir and os.path.isfile(data_dir):
        raise InputError(f'data_dir={data_dir!r} is a file; it must be a folder')
    if name == 'synthetic':
        if kind.needs_targets and not (kind.has_class_targets and kind.num_names is None):
            raise InputError(f'dataset=synthetic has random classes; it takes task={DEFAULT_TASK}, not {kind.name}')
        return _load_synthetic(image_size or 32, seed, kind)
    if name.startswith('arrays:'):
        return load_arrays(name, kind, image_size)
    if name.startswith('folder:'):
        return load_folder(name, kind, image_size)
    return load_tfds(name, kind, data_dir, image_size)


def _given(dataset: Dataset, task: TaskLike | None, image_size: int | None) -> Dataset:
    """A dataset that the caller made, in the size that is asked for.

    Raises:
      InputError: it is for another task.
    """
    if task is not None and type(get_task(task)) is not type(dataset.task):
        raise InputError(f'dataset {dataset.name} was made for task={dataset.task.name}, not {get_task(task).name}')
    if image_size is None or dataset.image_shape[:2] == (image_size, image_size):
        return dataset
    if dataset.image_size is not None:
        return dataclasses.replace(dataset, image_size=image_size)
    train, test = (
        Split(resize_images(split.pixels, image_size), split.labels) for split in (dataset.train, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, test=test)


def _load_synthetic(image_size: int, seed: int, task: Task) -> Dataset:
    sizes, shape = (1024, 256), (image_size, image_size, 3)
    check_memory('synthetic', sum(sizes), shape)
    random = np.random.default_rng(seed)
    train, test = ((random.integers(0, 256, (num, *shape), np.uint8), random.integers(0, 10, num)) for num in sizes)
    return dataset_from_arrays('synthetic', train, test, tuple(map(str, range(10))), task)
