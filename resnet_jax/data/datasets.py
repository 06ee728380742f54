"""Datasets by name or as objects: digits, TFDS, folders of photographs, NumPy files, random images, or your own.

Images of equal size are kept in memory, uint8 ``[N, H, W, C]`` with 1 or 3 channels; photographs stay on disk. The
meaning of the labels depends on the task.
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
    """Loads a dataset: images in memory, or a list of photographs, which are read during training.

    Args:
      name: ``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, without a download;
        ``arrays:DIR``: ``DIR/train.npz`` and ``DIR/test.npz`` with ``images`` uint8 ``[N, H, W, C]`` or
        ``[N, H, W]`` and ``labels``; ``DIR/classes.txt`` in UTF-8 may name the classes, labels or values, one per line;
        ``folder:DIR``: photographs in ``DIR/train/CLASS`` and ``DIR/test/CLASS``, or in ``DIR/CLASS``; other usual
        names of splits are recognized, and what is left out is said in a warning, see ``folder.list_folder``;
        ``synthetic``: random images in 10 classes, 32 x 32 x 3, for timing only;
        any other name: a TFDS dataset with one image feature and one feature that fits the task, such as ``cifar10`` or
        ``name/config:1.0.0``; its splits ``train`` and ``test`` (or ``validation`` if ``test`` is missing or has no
        labels) are read;
        or a ``Dataset`` from ``dataset_from_arrays`` or ``dataset_from_source``, which is returned.
      task: the kind of target. ``multiclass``: labels are integers ``[N]`` or ``[N, 1]``; ``binary``: 0 or 1,
        likewise; ``multilabel``: 0 or 1, ``[N, K]``; ``regression``: numbers ``[N]`` or ``[N, D]``; or a subclass of
        ``Task`` or an instance of one. None means ``multiclass``, or the task of a given ``Dataset``. The targets of
        digits are, in this order: the class; even or odd; the attributes even, prime, square, above four and loop; the
        slant of the writing in degrees.
      data_dir: folder of TFDS's prepared files, ``~/tensorflow_datasets`` if None; missing datasets are downloaded and
        prepared.
      image_size: height and width in pixels that all images are resized to; None keeps the size of images in memory,
        and means 224 for photographs.
      seed: seed of the random images of ``synthetic``; ignored by all other datasets.

    Returns:
      The dataset. The order of its examples is always the same.

    Raises:
      InputError: an unknown name or task, targets that do not fit the task, missing or damaged files, images of
        different sizes without ``image_size``, more than ``examples.MAX_BYTES`` of images, or a dataset that could not
        be downloaded or prepared.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f'image_size={image_size} must be at least 1')
    if isinstance(name, Dataset):
        return _user_supplied(name, task, image_size)
    kind = get_task(DEFAULT_TASK if task is None else task)
    data_dir = data_dir and os.path.expanduser(data_dir)
    if data_dir and os.path.isfile(data_dir):
        raise InputError(f'data_dir={data_dir!r} must be a folder, not a file')
    if name == 'synthetic':
        if kind.needs_targets and not (kind.has_class_targets and kind.num_names is None):
            raise InputError(f'dataset=synthetic has random classes, which do not fit task={kind.name}')
        return _load_synthetic(image_size or 32, seed, kind)
    if name.startswith('arrays:'):
        return load_arrays(name, kind, image_size)
    if name.startswith('folder:'):
        return load_folder(name, kind, image_size)
    return load_tfds(name, kind, data_dir, image_size)


def _user_supplied(dataset: Dataset, task: TaskLike | None, image_size: int | None) -> Dataset:
    """A user-supplied dataset, resized to ``image_size``.

    Raises:
      InputError: the dataset was made for another task.
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
