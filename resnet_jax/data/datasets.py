"""Datasets by name, whole and in memory: digits, TFDS, NumPy files, random images.

Images are uint8 ``[N, H, W, C]`` with 1 or 3 channels, labels int32 ``[N]`` from 0 to K - 1.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import logging
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.errors import InputError

MAX_BYTES = 4 * 2**30  # of uint8 images, train and test together
MAX_CLASSES = 10_000  # a larger label is a mistake, not a class; a confusion matrix is K x K
DOWNLOAD_RETRIES = 5  # in 6 seconds; TFDS's own 10 take 3.5 minutes to find that there is no network

# Their builders hand TFDS arrays, which it encodes as images with TensorFlow.
_MADE_WITH_TENSORFLOW = ('cifar10', 'cifar100', 'mnist', 'fashion_mnist', 'kmnist', 'svhn_cropped')
_KNOWN_NAMES = (
    *('digits', 'synthetic', 'arrays:DIR', *_MADE_WITH_TENSORFLOW),
    *('imagenette', 'imagewoof', 'imagenet2012', 'stl10', 'tf_flowers', 'oxford_flowers102', 'cats_vs_dogs'),
)
_TFDS_NAME = re.compile(r'\w+(/[\w.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?')

# Images and labels of training, then of testing, each by the place they come from.
_Parts = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples to train or to test on.

    Attributes:
      images: uint8 ``[N, H, W, C]``.
      labels: int32 ``[N]``.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with what a network needs to know of it.

    Attributes:
      name: as given to ``load_dataset``.
      train: the examples to train on.
      test: the examples to test on, of the same image shape.
      class_names: one for each label.
      mean: of ``train.images / 255``, one for each channel.
      std: likewise, at least 1/255: one gray level.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)``."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def load_dataset(name: str, *, data_dir: str | None = None, image_size: int | None = None, seed: int = 0) -> Dataset:
    """Loads a data set into memory.

    Args:
      name: ``digits``: scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, without a download;
        ``arrays:DIR``: ``DIR/train.npz`` and ``DIR/test.npz`` with ``images`` uint8 ``[N, H, W, C]`` or
        ``[N, H, W]`` and ``labels``, integers ``[N]``; ``DIR/classes.txt`` may name the classes, one a line;
        ``synthetic``: random images in 10 classes, 32 x 32 x 3, for timing only;
        else a TFDS data set with one image and one label, as ``cifar10`` or ``name/config:1.0.0``; its splits
        ``train`` and ``test`` (``validation`` if there is no ``test`` with labels) are read.
      data_dir: folder of TFDS's prepared files, ``~/tensorflow_datasets`` if None; a data set that is not yet there
        is downloaded and prepared.
      image_size: resizes all images to this many pixels in height and width; None leaves them as they are.
      seed: of the random images of ``synthetic``; nothing else depends on it.

    Returns:
      The data set. The order of its examples is always the same.

    Raises:
      InputError: an unknown name, missing or damaged files, images of unequal size without an ``image_size``, more
        than 4 GiB of images, no way to download or prepare them here.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f'image_size={image_size} must be at least 1')
    data_dir = data_dir and os.path.expanduser(data_dir)
    if data_dir and os.path.isfile(data_dir):
        raise InputError(f'data_dir={data_dir!r} is a file; it must be a folder')
    if name == 'synthetic':
        return _load_synthetic(image_size or 32, seed)
    if name.startswith('arrays:'):
        return _load_arrays(name, image_size)
    return _load_tfds(name, data_dir, image_size)


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


def _load_synthetic(image_size: int, seed: int) -> Dataset:
    sizes, shape = {'train': 1024, 'test': 256}, (image_size, image_size, 3)
    _check_memory('synthetic', sum(sizes.values()), shape)
    random = np.random.default_rng(seed)
    parts = {
        split: (random.integers(0, 256, (num, *shape), np.uint8), random.integers(0, 10, num))
        for split, num in sizes.items()
    }
    return _describe('synthetic', parts, tuple(map(str, range(10))))


def _load_arrays(name: str, image_size: int | None) -> Dataset:
    folder = pathlib.Path(name.removeprefix('arrays:')).expanduser()
    if name == 'arrays:' or not folder.is_dir():
        raise InputError(f'{name!r}: there is no such folder; expected one with train.npz and test.npz')
    parts = {str(path): _read_npz(path) for path in (folder / 'train.npz', folder / 'test.npz')}
    if image_size is not None:
        channels = parts[str(folder / 'train.npz')][0].shape[3]
        _check_memory(name, sum(len(labels) for _, labels in parts.values()), (image_size, image_size, channels))
        parts = {place: (resize_images(images, image_size), labels) for place, (images, labels) in parts.items()}
    expected, found = (_by(images.shape[1:]) for images, _ in parts.values())
    if found != expected:
        raise InputError(f'{folder / "test.npz"}: expected images of {expected} as in train.npz, found {found}')
    class_file = folder / 'classes.txt'
    return _describe(name, parts, _read_class_names(class_file) if class_file.exists() else ())


def _read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[N, H, W, C]`` and labels ``[N]`` of any integer type."""
    if not path.exists():
        raise InputError(f'{path}: there is no such file; expected an .npz file with images and labels')
    keys: list[str] = []
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as archive:
            keys += archive.files
            images, labels = archive['images'], archive['labels']
    except KeyError as error:
        raise InputError(f'{path}: expected the arrays images and labels, found {", ".join(keys) or None}') from error
    except Exception as error:  # of many kinds, depending on where the file is damaged
        raise InputError(f'{path}: not a complete .npz file of plain arrays ({_reason(error)})') from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8:
        raise InputError(f'{path}: images must be uint8 from 0 to 255, found {images.dtype}')
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f'{path}: labels must be integers, found {labels.dtype}')
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(f'{path}: images must be [N, H, W] or [N, H, W, C] with 1 or 3 channels, found {images.shape}')
    if not images.size:
        raise InputError(f'{path}: expected at least one image with at least one pixel, found {images.shape}')
    if labels.shape != images.shape[:1]:
        raise InputError(f'{path}: expected a label for each of {len(images)} images, found labels of {labels.shape}')
    return images, labels


def _read_class_names(path: pathlib.Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: expected text in UTF-8 ({_reason(error)})') from error
    if not names:
        raise InputError(f'{path}: expected one class name a line, found none')
    return names


def _load_tfds(name: str, data_dir: str | None, image_size: int | None) -> Dataset:
    builder = _prepared_builder(name, data_dir)
    try:
        return _read_tfds(name, builder, image_size)
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(
            f'{name!r}: {builder.data_dir} is in the format {builder.info.file_format.value}, which needs TensorFlow to'
            ' read: delete it or choose another data_dir, to prepare it as array_record'
        ) from error
    except Exception as error:  # of many kinds, depending on where the files are damaged
        raise InputError(f'{name!r}: cannot read {builder.data_dir} ({_reason(error)})') from error


def _read_tfds(name: str, builder: Any, image_size: int | None) -> Dataset:
    features = builder.info.features
    image_key, label_key = _find_features(name, features)
    sources = _open_splits(name, builder, label_key)
    shape: tuple[int, ...] = ()
    parts: _Parts = {}
    for split, source in sources.items():
        for i in range(len(source)):
            example = source[i]
            image = _decode_image(example[image_key], features[image_key].shape[2], image_size)
            shape = shape or image.shape
            if image.shape != shape:
                found = f'{_by(shape)} and {_by(image.shape)}'
                raise InputError(f'{name!r}: images differ in size, {found}: set image_size to resize them')
            if i == 0:
                _check_memory(name, sum(map(len, sources.values())), shape)
                images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int64)
            images[i], labels[i] = image, example[label_key]
        parts[f'{name!r}, {split}'] = images, labels
    return _describe(name, parts, tuple(getattr(features[label_key], 'names', ())))


def _decode_image(image: bytes | np.ndarray, channels: int, image_size: int | None) -> np.ndarray:
    """uint8 ``[H, W, C]`` of an array or of an encoded image."""
    if isinstance(image, bytes):
        # Not by TFDS: it leaves CMYK and palettes as they are.
        with Image.open(io.BytesIO(image)) as picture:
            image = np.asarray(picture.convert('L' if channels == 1 else 'RGB'))
        image = image.reshape(*image.shape[:2], channels)
    return image if image_size is None else resize_images(image[None], image_size)[0]


def _prepared_builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of a data set whose files are there; they are prepared if they were not."""
    with _quiet():
        if not (builder := _open_builder(name, data_dir)).is_prepared():
            _find_features(name, builder.info.features)  # before a download in vain
            _prepare(name, builder)
            builder = _open_builder(name, data_dir)  # it reads what was written, by whichever process
        if not builder.is_prepared():
            raise InputError(f'{name!r}: {builder.data_dir} is not complete; delete it to prepare it again')
    return builder


def _open_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    if name.partition(':')[0] == 'digits':
        import resnet_jax.data.digits  # noqa: F401, it registers the builder
    near = ', '.join(difflib.get_close_matches(name.lower(), _KNOWN_NAMES)) or 'none'
    unknown = InputError(
        f'unknown dataset {name!r}; near it: {near}; allowed: digits, synthetic, arrays:DIR, or a TFDS name (cifar10,'
        f' name/config:1.0.0) known to TFDS or prepared in {data_dir or tfds.core.constants.DATA_DIR}'
    )
    if not _TFDS_NAME.fullmatch(name):
        raise unknown
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise unknown from error
    except Exception as error:  # a builder is anybody's code
        raise InputError(f'{name!r}: TFDS cannot open it ({_reason(error)})') from error


def _prepare(name: str, builder: Any) -> None:
    from requests import RequestException
    from tensorflow_datasets.core.download import downloader, util

    folder = f'prepared files are looked for in {builder.data_dir}'
    needs_tensorflow = InputError(
        f'needs TensorFlow to prepare {name!r}: pip install tensorflow (only for preparing; training reads the files'
        f' without it); {folder}'
    )
    if builder.name in _MADE_WITH_TENSORFLOW and importlib.util.find_spec('tensorflow') is None:
        raise needs_tensorflow  # now, rather than after the download
    downloader.MAX_RETRIES = DOWNLOAD_RETRIES
    print(f'preparing {name} in {builder.data_dir}', file=sys.stderr)  # it may take long, and fill a disk
    try:
        builder.download_and_prepare(file_format='array_record')
    except Exception as error:
        cause = _root(error)
        if isinstance(cause, ImportError) and cause.name == 'tensorflow':
            raise needs_tensorflow from error
        if not builder.is_prepared():  # unless another process was faster
            failed = 'download' if isinstance(cause, (RequestException, util.DownloadError)) else 'prepare'
            raise InputError(f'{name!r}: TFDS could not {failed} it ({_reason(error)}); {folder}') from error


def _find_features(name: str, features: Any) -> tuple[str, str]:
    """The keys of the image and of the label."""
    from tensorflow_datasets import features as tfds_features

    def pick(wanted: str, keys: list[str]) -> str | None:
        return wanted if wanted in keys else keys[0] if len(keys) == 1 else None

    features = dict(features or {})
    dense = {key: f for key, f in features.items() if isinstance(f, (tfds_features.Image, tfds_features.Tensor))}
    images = [key for key, f in dense.items() if f.np_dtype == np.uint8 and len(f.shape) == 3 and f.shape[2] in (1, 3)]
    integers = [key for key, f in dense.items() if f.shape == () and np.issubdtype(f.np_dtype, np.integer)]
    classes = [key for key in integers if isinstance(dense[key], tfds_features.ClassLabel)]
    image, label = pick('image', images), pick('label', integers if 'label' in integers else classes or integers)
    if image is None or label is None:
        expected = 'one uint8 image with 1 or 3 channels and one integer label, or those named image and label'
        found = textwrap.shorten(', '.join(f'{key}: {f!r}' for key, f in sorted(features.items())), 300)
        raise InputError(f'{name!r}: expected {expected}; found the features {found}')
    return image, label


def _open_splits(name: str, builder: Any, label_key: str) -> dict[str, Sequence[dict[str, Any]]]:
    """Random access to the examples of ``train`` and of ``test`` or ``validation``, images still encoded."""
    import tensorflow_datasets as tfds

    encoded = [key for key, f in builder.info.features.items() if isinstance(f, tfds.features.Image)]
    splits, sources = builder.info.splits, {}
    for split in ('train', 'test', 'validation'):
        if split in splits and splits[split].num_examples:
            source = builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding() for key in encoded})
            if source[0][label_key] >= 0:  # where the labels of the test images are secret they are -1
                sources[split] = source
    test = 'test' if 'test' in sources else 'validation'
    if not {'train', test} <= set(sources):
        found = ', '.join(sorted(splits))
        raise InputError(f'{name!r}: expected the splits train and test or validation, with labels; found {found}')
    return {split: sources[split] for split in ('train', test)}


def _describe(name: str, parts: _Parts, class_names: tuple[str, ...]) -> Dataset:
    """Checks the labels, numbers the classes if they have no names, measures the training images."""
    for place, (_, labels) in parts.items():
        low, high = int(labels.min()), int(labels.max())
        limit = len(class_names) if class_names else MAX_CLASSES
        if low < 0 or high >= limit:
            raise InputError(f'{place}: labels must be from 0 to {limit - 1}, found {low if low < 0 else high}')
        if not class_names:
            if missing := sorted(set(range(high + 1)) - set(labels.tolist())):
                raise InputError(
                    f'{place}: labels go up to {high}, but none is {missing[0]}; classes.txt can name them'
                )
            class_names = tuple(map(str, range(high + 1)))
    train, test = (Split(images, labels.astype(np.int32)) for images, labels in parts.values())
    return Dataset(name, train, test, class_names, *_channel_statistics(train.images))


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of ``images / 255``, from exact integer sums."""
    counts = np.zeros((images.shape[3], 256), np.int64)
    for start in range(0, len(images), 256):  # bincount makes its input eight times as large
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + 256, ..., channel].ravel(), minlength=256)
    levels, num = np.arange(256), counts[0].sum()
    mean = counts @ levels / num
    variance = counts @ levels**2 / num - mean**2
    return tuple((mean / 255).tolist()), tuple((np.sqrt(np.maximum(variance, 1)) / 255).tolist())


def _check_memory(name: str, num_examples: int, shape: Sequence[int]) -> None:
    if (size := num_examples * int(np.prod(shape))) > MAX_BYTES:
        limit = f'{size / 2**30:.1f} GiB, at most {MAX_BYTES / 2**30:g} GiB can be'
        raise InputError(f'{name!r}: {num_examples:,} images of {_by(shape)} are too large to keep in memory: {limit}')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what TFDS prints and what it and urllib3 log; errors come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _root(error: BaseException) -> BaseException:
    """The exception that was raised first; TFDS wraps them in the examples they came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    return textwrap.shorten(str(_root(error)), 300)


def _by(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape))
