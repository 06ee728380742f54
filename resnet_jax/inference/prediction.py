"""Predictions of a trained network for new images."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from resnet_jax.data.augment import normalize
from resnet_jax.data.decode import DamagedImageError, decode
from resnet_jax.data.imagenet_names import imagenet_names
from resnet_jax.data.preprocessing import Preprocessing, resized_and_cropped
from resnet_jax.errors import InputError
from resnet_jax.given import check_given, is_qualified
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import DEFAULT_TASK, get_task, make_task
from resnet_jax.weights.sources import Pretrained, Source, from_pretrained, normalization_of

_BATCH = 256
_EXPLAIN_BATCH = 64  # feature maps are large


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Predictor(Pretrained):
    """A trained network with everything needed to predict from raw images.

    If its weights have no head, only ``embed`` and ``prepare`` work.

    Attributes:
      task: the task it was trained for.
      class_names: names of the classes, labels or values; for a binary task, the names of classes 0 and 1.
      image_shape: ``(H, W, C)`` of the network's input images.
      mean: pixel mean to subtract, one per channel; white is 1.
      std: pixel standard deviation to divide by, one per channel.
      preprocessing: preprocessing of photographs; its mean only fills borders, and its std is ignored. None uses the
        largest center square.
    """

    task: Task
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def photograph_preprocessing(self) -> Preprocessing:
        """``preprocessing``, or by default the largest center square."""
        return self.preprocessing or Preprocessing(min(self.image_shape[:2]), 1.0)

    def prepare(self, photograph: bytes | str | os.PathLike | np.ndarray) -> np.ndarray:
        """Prepares a photograph as input of the network: uint8 ``[H, W, C]``.

        Args:
          photograph: path of an image, its encoded bytes, or uint8 ``[H, W, 3]``.

        Raises:
          InputError: the photograph cannot be read or decoded.
        """
        if not isinstance(photograph, bytes | np.ndarray):
            try:
                data = pathlib.Path(photograph).read_bytes()
                photograph = decode(data)
            except (OSError, DamagedImageError) as error:
                raise InputError(f'{photograph}: cannot be decoded ({error})') from error
        elif isinstance(photograph, bytes):
            try:
                photograph = decode(photograph)
            except DamagedImageError as error:
                raise InputError(f'image: cannot be decoded ({error})') from error
        height, width, channels = self.image_shape
        pixels = resized_and_cropped(photograph, self.photograph_preprocessing)
        if pixels.shape[:2] != (height, width):  # the network expects non-square images
            pixels = np.asarray(Image.fromarray(photograph).resize((width, height), Image.Resampling.BILINEAR))
        return np.asarray(Image.fromarray(pixels).convert('L'))[..., None] if channels == 1 else pixels

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Predicts for images.

        Args:
          images: uint8 ``[N, H, W, C]`` of the shape ``image_shape``.

        Returns:
          float32 ``[N, K]``: class probabilities; for a binary task the probability of class 1, ``[N, 1]``; for labels
          the probability of each; for regression the values in the targets' units.

        Raises:
          InputError: the images have another dtype or shape.
        """
        self.require_head()
        return self.task.predictions(self._in_batches(self._apply, images))

    def require_head(self) -> None:
        """Raises InputError if the weights have no head, without which there are no predictions."""
        if 'head' not in self.variables['params']:
            raise InputError(
                f'these weights of a {self.arch} have no linear head, so they predict nothing: compute features, or'
                ' train a head by starting from them (init_from)'
            )

    def embed(self, images: np.ndarray) -> np.ndarray:
        """The pooled features of images, float32 ``[N, C']``; arguments and errors as in ``__call__``."""
        return self._in_batches(self._features, images)

    def explain(self, images: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Class activation maps of images, float32 ``[N, H', W']`` in [0, 1].

        The channels of the last feature map are summed with the head's weights for the class, and negative values are
        set to zero. With global average pooling and a linear head, this is Grad-CAM of the last map up to a factor
        (Selvaraju et al. 2017, arXiv:1610.02391, section 3.1). Each map is divided by its maximum.

        Args:
          images: as in ``__call__``.
          classes: index of the class to explain, one per image.

        Raises:
          InputError: the images have another dtype or shape, or a class is out of range.
        """
        self.require_head()
        kernel = np.asarray(self.variables['params']['head']['kernel'])
        chosen = np.asarray(classes)
        integers = chosen.shape == (len(images),) and (np.issubdtype(chosen.dtype, np.integer) or not len(images))
        if not integers or not ((chosen >= 0) & (chosen < kernel.shape[1])).all():
            raise InputError(f'classes must be {len(images)} integers from 0 to {kernel.shape[1] - 1}')
        maps = []
        for start in range(0, len(images), _EXPLAIN_BATCH):
            features = self._in_batches(self._last_map, images[start : start + _EXPLAIN_BATCH])
            weights = kernel[:, chosen[start : start + _EXPLAIN_BATCH]]
            found = np.maximum(np.einsum('nhwc,cn->nhw', features, weights), 0)
            maps.append(found / np.maximum(found.max((1, 2), keepdims=True), 1e-12))
        return np.concatenate(maps).astype(np.float32)

    def _in_batches(self, function: Callable[..., jax.Array], images: np.ndarray) -> np.ndarray:
        """Applies a compiled function to any number of images in batches; no images give no rows."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            advice = '; use images[None] for a single image' if images.shape == self.image_shape else ''
            advice = (
                '; use images[..., None] to add the channel axis'
                if images.shape[1:] == self.image_shape[:2]
                else advice
            )
            raise InputError(
                f'images must be uint8 [N, {", ".join(map(str, self.image_shape))}], found {images.dtype}'
                f' {list(images.shape)}{advice}'
            )
        if not len(images):
            like = jax.eval_shape(function, self.variables, jax.ShapeDtypeStruct((1, *self.image_shape), np.uint8))
            return np.zeros((0, *like.shape[1:]), np.float32)
        outputs = []
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            # Batches are padded to powers of two, to limit the number of compilations.
            padding = np.zeros(((1 << (len(batch) - 1).bit_length()) - len(batch), *self.image_shape), np.uint8)
            outputs.append(np.asarray(function(self.variables, np.concatenate([batch, padding])))[: len(batch)])
        return np.concatenate(outputs)

    def names(self, predictions: np.ndarray) -> list[Any]:
        """Converts predictions to class names, or to tuples of labels or values."""
        if predictions.ndim != 2:
            raise InputError(f'predictions must be [N, K], found {list(predictions.shape)}')
        return self.task.in_words(predictions, self.class_names)

    @functools.cached_property
    def _apply(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda variables, images: self.model.apply(variables, self._normalize(images), train=False))

    @functools.cached_property
    def _features(self) -> Callable[..., jax.Array]:
        def pooled(variables: Any, images: jax.Array) -> jax.Array:
            found: Any = self.model.apply(variables, self._normalize(images), train=False, features_only=True)
            return found['pooled']

        return jax.jit(pooled)

    @functools.cached_property
    def _last_map(self) -> Callable[..., jax.Array]:
        def last_map(variables: Any, images: jax.Array) -> jax.Array:
            options: dict[str, Any] = {'train': False, 'features_only': True, 'mutable': ['intermediates']}
            found: Any = self.model.apply(variables, self._normalize(images), **options)[1]
            return found['intermediates']['last_map'][0].astype(jnp.float32)

        return jax.jit(last_map)

    def _normalize(self, images: jax.Array) -> jax.Array:
        return normalize(images, self.mean, self.std)


def load_predictor(
    source: str | pathlib.Path,
    which: str | int = 'last',
    *,
    arch: str | None = None,
    preprocessing: Preprocessing | None = None,
    block: Any = None,
    task: Task | type[Task] | None = None,
    prefix: str | None = None,
) -> Predictor:
    """Loads the network of a run, a weights file or the hub for inference.

    Args:
      source: folder of a run or of one of its checkpoints, or weights as in ``weights.sources.open_source``. Networks
        with 1,000 outputs and no recorded class names get those of ImageNet.
      which: checkpoint of a run: ``last``, ``best``, or a step.
      arch: architecture of a weights file that does not record it.
      preprocessing: preprocessing of photographs; None uses that of the source, or 224 pixels and ImageNet statistics.
      block: block class of a run that was trained with a custom one.
      task: task of a run that was trained with a custom one; for other weights the task they were trained for, by
        default multiclass.
      prefix: which network to load from a file with several, as in ``load_weights``.

    Raises:
      InputError: the run, checkpoint or file is not found, damaged, or does not fit the architecture, or the run needs
        another block or task.
    """
    if arch is not None and pathlib.Path(source).is_dir():
        raise InputError(f'arch={arch}: a run records its architecture; arch applies only to a weights file')
    loaded = from_pretrained(source, arch, which=which, block=block, prefix=prefix, headless=True)
    return (
        _run_predictor(loaded, preprocessing, task)
        if loaded.source.record
        else _weights_predictor(loaded, preprocessing, task)
    )


def _run_predictor(
    loaded: Pretrained, preprocessing: Preprocessing | None, task: Task | type[Task] | None
) -> Predictor:
    source, settings = loaded.source, loaded.source.settings
    data, (mean, std) = source.record['dataset'], normalization_of(source)
    height, width, channels = data['image_shape']
    if preprocessing is None and data.get('photographs'):
        preprocessing = Preprocessing(height, settings['crop_pct'], settings['interpolation'])
    dtype, implementation = jnp.dtype(settings['compute_dtype']), settings['implementation']
    return Predictor(
        model=dataclasses.replace(loaded.model, dtype=dtype, implementation=implementation),
        variables=loaded.variables,
        arch=loaded.arch,
        preprocessing=preprocessing,
        source=source,
        task=_task_of(source, task),
        class_names=source.class_names,
        image_shape=(height, width, channels),
        mean=mean,
        std=std,
    )


def _task_of(source: Source, task: Task | type[Task] | None) -> Task:
    """The task of a run, with its target statistics; a custom task must be passed as ``task``."""
    settings, data = source.settings, source.record['dataset']
    check_given('task', settings['task'], task, str(source.workdir))
    loss = (
        None if is_qualified(settings['loss']) else settings['loss']
    )  # a custom loss does not change how outputs are decoded
    return make_task(task or settings['task'], loss, statistics=data['target_statistics'])


def _weights_predictor(
    loaded: Pretrained, preprocessing: Preprocessing | None, task: Task | type[Task] | None
) -> Predictor:
    mean, std = (preprocessing.mean, preprocessing.std) if preprocessing else normalization_of(loaded.source)
    preprocessing = preprocessing or loaded.preprocessing or Preprocessing(224)
    classes = loaded.model.spec.head.num_classes
    names = imagenet_names() if classes == len(imagenet_names()) else tuple(map(str, range(classes)))
    names = names if 'head' in loaded.variables['params'] else ()
    return Predictor(
        model=loaded.model,
        variables=loaded.variables,
        arch=loaded.arch,
        preprocessing=preprocessing,
        source=loaded.source,
        task=get_task(DEFAULT_TASK if task is None else task),
        class_names=names,
        image_shape=(preprocessing.size, preprocessing.size, 3),
        mean=mean,
        std=std,
    )
