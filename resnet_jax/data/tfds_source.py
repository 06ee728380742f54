"""Datasets of tensorflow-datasets, read without TensorFlow."""

import contextlib
import importlib.util
import io
import logging
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resnet_jax.data.decode import open_image
from resnet_jax.data.examples import (
    Arrays,
    Dataset,
    by,
    check_memory,
    dataset_from_arrays,
    reason,
    resize_images,
    root,
)
from resnet_jax.data.photographs import dataset_from_source
from resnet_jax.errors import InputError, nearest
from resnet_jax.tasks.base import Task

DOWNLOAD_RETRIES = 5  # takes 6 seconds without a network; TFDS's default of 10 takes 3.5 minutes

# Their builders return arrays, which TFDS encodes as images with TensorFlow.
_MADE_WITH_TENSORFLOW = ('cifar10', 'cifar100', 'mnist', 'fashion_mnist', 'kmnist', 'svhn_cropped')
_KNOWN_NAMES = (
    *('digits', 'synthetic', 'arrays:DIR', 'folder:DIR', *_MADE_WITH_TENSORFLOW),
    *('imagenette', 'imagewoof', 'imagenet2012', 'stl10', 'tf_flowers', 'oxford_flowers102', 'cats_vs_dogs'),
)
# If a dataset has no test split, every fifth training example is held out.
_HELD_OUT_EVERY = 5
_TFDS_NAME = re.compile(r'\w+(/[\w.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?')


def load_tfds(name: str, task: Task, data_dir: str | None, image_size: int | None) -> Dataset:
    """Loads a TFDS dataset; arguments, result and errors as in ``datasets.load_dataset``."""
    builder = _prepared_builder(name, task, data_dir)
    try:
        return _read_tfds(name, task, builder, image_size)
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(
            f'{name!r}: {builder.data_dir} has the format {builder.info.file_format.value}, which needs TensorFlow;'
            ' delete it or choose another data_dir to prepare it as array_record'
        ) from error
    except Exception as error:  # the type depends on where the files are damaged
        raise InputError(f'{name!r}: cannot read {builder.data_dir} ({reason(error)})') from error


def _read_tfds(name: str, task: Task, builder: Any, image_size: int | None) -> Dataset:
    features = builder.info.features
    image_key, label_key = _find_features(name, task, features)
    label = None if label_key is None else features[label_key]
    sources = _open_splits(name, builder, label_key)
    class_names = () if label_key is None else task.feature_names(label_key, label)
    if None in features[image_key].shape and _is_encoded(features[image_key]):
        if not class_names and label is not None:
            class_names = task.names_of_shape(repr(name), label.shape)
        first, second = (
            RecordImages(f'{name}, {split}', source, image_key, label_key, label, task)
            for split, source in sources.items()
        )
        return dataset_from_source(name, first, second, class_names, task, image_size)
    shape: tuple[int, ...] = ()
    parts: dict[str, Arrays] = {}
    for split, source in sources.items():
        for i in range(len(source)):
            example = source[i]
            image = _decode_image(example[image_key], features[image_key].shape[2], image_size)
            shape = shape or image.shape
            if image.shape != shape:
                found = f'{by(shape)} and {by(image.shape)}'
                raise InputError(f'{name!r}: images differ in size ({found}); set image_size to resize them')
            if i == 0:
                check_memory(name, sum(map(len, sources.values())), shape)
                images, targets = np.empty((len(source), *shape), np.uint8), []
            images[i] = image
            if label_key is not None:
                targets.append(_target(label, example[label_key]))
        parts[f'{name!r}, {split}'] = images, np.stack(targets) if targets else None
    (train_place, train), (test_place, test) = parts.items()
    return dataset_from_arrays(name, train, test, class_names, task, (train_place, test_place))


class RecordImages:
    """Encoded images in TFDS's prepared files, as an ``EncodedImages`` source.

    Args:
      name: name of the dataset and the split.
      source: random access to examples with encoded images.
      image_key: feature name of the image.
      label_key: feature name of the target, or None.
      label: the target's feature.
      task: converts the targets.
    """

    def __init__(
        self,
        name: str,
        source: Sequence[dict[str, Any]],
        image_key: str,
        label_key: str | None,
        label: Any,
        task: Task,
    ):
        self._name, self._source, self._task = name, source, task
        self._image_key, self._label_key, self._label = image_key, label_key, label

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """The split, and the index in it."""
        return f'{self._name}, example {index}'

    def read(self, index: int) -> tuple[bytes, np.ndarray | None]:
        """The image's bytes, and its target or None."""
        example = self._source[index]
        if self._label_key is None:
            return example[self._image_key], None
        target = _target(self._label, example[self._label_key])
        return example[self._image_key], self._task.stored_targets(target[None])[0]


def _target(label: Any, value: Any) -> np.ndarray:
    """Converts a target to an array; a list of classes becomes ``[K]`` of 0 and 1."""
    if not hasattr(label, 'feature'):
        return np.asarray(value)
    present = np.zeros(label.feature.num_classes, np.int64)
    present[np.asarray(value, np.int64)] = 1
    return present


def _decode_image(image: bytes | np.ndarray, channels: int, image_size: int | None) -> np.ndarray:
    """Decodes an image if it is encoded, and resizes it: uint8 ``[H, W, C]``."""
    if isinstance(image, bytes):
        # Not by TFDS, which does not convert CMYK and palettes.
        with open_image(image)[0] as picture:
            image = np.asarray(picture.convert('L' if channels == 1 else 'RGB'))
        image = image.reshape(*image.shape[:2], channels)
    return image if image_size is None else resize_images(image[None], image_size)[0]


def _prepared_builder(name: str, task: Task, data_dir: str | None) -> Any:
    """The TFDS builder of a dataset, which is prepared if necessary."""
    with _quiet():
        builder = _open_builder(name, data_dir)
        if _needs_no_files(builder):
            return builder
        if not builder.is_prepared():
            _find_features(name, task, builder.info.features)  # before a useless download
            _prepare(name, builder)
            builder = _open_builder(name, data_dir)  # reads the files, which another process may have written
        if not builder.is_prepared():
            raise InputError(f'{name!r}: {builder.data_dir} is incomplete; delete it to prepare it again')
    return builder


def _needs_no_files(builder: Any) -> bool:
    """Whether this is digits without the package array_record: they are then built in memory."""
    return builder.name == 'digits' and importlib.util.find_spec('array_record') is None


def _open_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    if name.partition(':')[0] == 'digits':
        import resnet_jax.data.digits  # noqa: F401, registers the builder
    unknown = InputError(
        f'unknown dataset {name!r}; {nearest(name, _KNOWN_NAMES)}; or a TFDS name (name/config:1.0.0) known to TFDS or'
        f' prepared in {data_dir or tfds.core.constants.DATA_DIR}'
    )
    if not _TFDS_NAME.fullmatch(name):
        raise unknown
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise unknown from error
    except Exception as error:  # builders are third-party code
        raise InputError(f'{name!r}: TFDS could not open the dataset ({reason(error)})') from error


def _prepare(name: str, builder: Any) -> None:
    from requests import RequestException
    from tensorflow_datasets.core.download import downloader, util

    if importlib.util.find_spec('array_record') is None:
        raise InputError(
            f'preparing {name!r} needs the package array_record, which has no wheels for Windows (WSL 2 can use it);'
            ' arrays:DIR and folder:DIR work without it'
        )
    folder = f'prepared files are expected in {builder.data_dir}'
    needs_tensorflow = InputError(
        f'needs TensorFlow to prepare {name!r}: pip install tensorflow (training does not need it); {folder}'
    )
    if builder.name in _MADE_WITH_TENSORFLOW and importlib.util.find_spec('tensorflow') is None:
        raise needs_tensorflow  # before the download
    by_hand, manual = _manual_download(builder)
    if by_hand and not (manual.is_dir() and any(manual.iterdir())):
        raise InputError(f'{name!r} {by_hand}')  # before anything is written or downloaded
    downloader.MAX_RETRIES = DOWNLOAD_RETRIES
    print(f'preparing {name} in {builder.data_dir}', file=sys.stderr)  # may take long and fill the disk
    try:
        builder.download_and_prepare(file_format='array_record')
    except Exception as error:
        cause = root(error)
        if isinstance(cause, ImportError) and cause.name == 'tensorflow':
            raise needs_tensorflow from error
        if not builder.is_prepared():  # else another process has prepared it
            failed = 'download' if isinstance(cause, (RequestException, util.DownloadError)) else 'prepare'
            more = f'it {by_hand}' if by_hand and failed == 'prepare' else folder
            raise InputError(f'{name!r}: TFDS could not {failed} the dataset ({reason(error)}); {more}') from error


def _manual_download(builder: Any) -> tuple[str, pathlib.Path]:
    """What to say about a dataset that TFDS cannot download, empty for others; and where TFDS expects its files."""
    manual = pathlib.Path(builder.data_dir_root, 'downloads', 'manual')
    if not (instructions := builder.MANUAL_DOWNLOAD_INSTRUCTIONS):
        return '', manual
    return (
        f'must be downloaded by hand: TFDS expects its files in {manual}'
        f' ({textwrap.shorten(instructions, 300, placeholder=" …")}); --dataset=folder:DIR trains on a folder of images'
    ), manual


def _find_features(name: str, task: Task, features: Any) -> tuple[str, str | None]:
    """The names of the image and label features; the label is None for a task without targets."""
    from tensorflow_datasets import features as tfds_features

    def pick(wanted: str, keys: list[str]) -> str | None:
        return wanted if wanted in keys else keys[0] if len(keys) == 1 else None

    features = dict(features or {})
    dense = {key: f for key, f in features.items() if isinstance(f, (tfds_features.Image, tfds_features.Tensor))}
    images = [key for key, f in dense.items() if f.np_dtype == np.uint8 and len(f.shape) == 3 and f.shape[2] in (1, 3)]
    image = pick('image', images)
    label = pick('label', task.fitting_features(features)) if task.needs_targets else None
    if image is None or (label is None and task.needs_targets):
        wanted = f' and {task.expected_feature}' if task.needs_targets else ''
        expected = f'one uint8 image with 1 or 3 channels{wanted}, or features named image and label'
        found = textwrap.shorten(', '.join(f'{key}: {f!r}' for key, f in sorted(features.items())), 300)
        raise InputError(f'{name!r}: expected {expected}; found {found}')
    return image, label


def _open_splits(name: str, builder: Any, label_key: str | None) -> dict[str, Any]:
    """Random access to the examples of ``train`` and of ``test`` or ``validation``, with images still encoded.

    If there is neither of the latter, every fifth example of ``train`` is held out for testing.
    """
    import tensorflow_datasets as tfds

    if _needs_no_files(builder):
        return builder.examples_in_memory()
    encoded = [key for key, feature in builder.info.features.items() if _is_encoded(feature)]
    splits, sources = builder.info.splits, {}
    for split in ('train', 'test', 'validation'):
        if split in splits and splits[split].num_examples:
            source = builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding() for key in encoded})
            if label_key is None or not _is_unpublished(builder.info.features[label_key], source[0][label_key]):
                sources[split] = source
    if 'train' not in sources:
        found = ', '.join(sorted(splits))
        raise InputError(f'{name!r}: expected a split train with labels, found {found}')
    for test in ('test', 'validation'):
        if test in sources:
            return {'train': sources['train'], test: sources[test]}
    if len(sources['train']) < _HELD_OUT_EVERY:
        raise InputError(f'{name!r}: {len(sources["train"])} training examples are too few to split')
    whole, numbers = sources['train'], np.arange(len(sources['train']))
    held_out = numbers % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    return {'train': _Subset(whole, numbers[~held_out]), 'test': _Subset(whole, numbers[held_out])}


class _Subset:
    """The examples ``numbers`` of a source."""

    def __init__(self, source: Sequence[dict[str, Any]], numbers: np.ndarray):
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._numbers[index])]


def _is_encoded(feature: Any) -> bool:
    from tensorflow_datasets import features

    return isinstance(feature, features.Image)


def _is_unpublished(feature: Any, target: Any) -> bool:
    """Whether a label is the placeholder of an unpublished label, a negative class."""
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer) and target < 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output of TFDS and the logs of TFDS and urllib3; errors are raised as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
