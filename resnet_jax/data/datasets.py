"""Datasets by name: digits, TFDS, folders of photographs, NumPy files, random images.

Images of one size are held in memory, uint8 ``[N, H, W, C]`` with 1 or 3 channels; photographs stay where they are.
What the labels are depends on the task.
"""

import os

import numpy as np

from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.examples import TASK_NAMES, Dataset, check_memory, describe
from resnet_jax.data.folder import load_folder
from resnet_jax.data.tfds_source import load_tfds
from resnet_jax.errors import InputError


def load_dataset(
    name: str,
    *,
    task: str = 'multiclass',
    data_dir: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set, or if it consists of photographs, finds them.

    Args:
      name: ``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, without a download;
        ``arrays:DIR``: ``DIR/train.npz`` and ``DIR/test.npz`` with ``images`` uint8 ``[N, H, W, C]`` or
        ``[N, H, W]`` and ``labels``; ``DIR/classes.txt`` may name the classes, labels or values, one a line;
        ``folder:DIR``: photographs in ``DIR/train/CLASS`` and ``DIR/test/CLASS`` or in ``DIR/CLASS``, as
        ``folder.list_folder`` has it;
        ``synthetic``: random images in 10 classes, 32 x 32 x 3, for timing only;
        else a TFDS data set with one image and one feature that fits the task, as ``cifar10`` or
        ``name/config:1.0.0``; its splits ``train`` and ``test`` (``validation`` if there is no ``test`` with labels)
        are read.
      task: what is to be learned. ``multiclass``: labels are integers ``[N]``; ``binary``: 0 or 1, ``[N]``;
        ``multilabel``: 0 or 1, ``[N, K]``; ``regression``: numbers ``[N]`` or ``[N, D]``. Of digits, in this order: the
        class; even or odd; the attributes even, prime, square, above four and loop; the slant of the writing in
        degrees.
      data_dir: folder of TFDS's prepared files, ``~/tensorflow_datasets`` if None; a data set that is not yet there
        is downloaded and prepared.
      image_size: resizes all images to this many pixels in height and width; None leaves them as they are, and makes
        photographs 224 pixels wide and high.
      seed: of the random images of ``synthetic``; nothing else depends on it.

    Returns:
      The data set. The order of its examples is always the same.

    Raises:
      InputError: an unknown name or task, targets of another task, missing or damaged files, images of unequal size
        without an ``image_size``, more than 4 GiB of images, no way to download or prepare them here.
    """
    if task not in TASK_NAMES:
        raise InputError(f'task={task!r} must be one of {", ".join(TASK_NAMES)}')
    if image_size is not None and image_size < 1:
        raise InputError(f'image_size={image_size} must be at least 1')
    data_dir = data_dir and os.path.expanduser(data_dir)
    if data_dir and os.path.isfile(data_dir):
        raise InputError(f'data_dir={data_dir!r} is a file; it must be a folder')
    if name == 'synthetic':
        if task != 'multiclass':
            raise InputError(f'dataset=synthetic has random classes; it takes task=multiclass, not {task}')
        return _load_synthetic(image_size or 32, seed)
    if name.startswith('arrays:'):
        return load_arrays(name, task, image_size)
    if name.startswith('folder:'):
        return load_folder(name, task, image_size)
    return load_tfds(name, task, data_dir, image_size)


def _load_synthetic(image_size: int, seed: int) -> Dataset:
    sizes, shape = {'train': 1024, 'test': 256}, (image_size, image_size, 3)
    check_memory('synthetic', sum(sizes.values()), shape)
    random = np.random.default_rng(seed)
    parts = {
        split: (random.integers(0, 256, (num, *shape), np.uint8), random.integers(0, 10, num))
        for split, num in sizes.items()
    }
    return describe('synthetic', parts, tuple(map(str, range(10))), 'multiclass')
