"""What a trained network says of new images."""

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
_EXPLAINED = 64  # maps are large


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Predictor(Pretrained):
    """A trained network with everything that turns raw images into answers.

    Attributes:
      task: what it was trained for.
      class_names: of the classes, labels or values; of yes or no the name of 0 and that of 1.
      image_shape: ``(H, W, C)`` of the images it was trained on.
      mean: of their pixels, 1 being white, one for each channel.
      std: likewise.
      preprocessing: what photographs go through; its mean fills borders alone, and its deviation does not count. None
        takes the largest square in the middle.
    """

    task: Task
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def photograph_preprocessing(self) -> Preprocessing:
        """``preprocessing``, or the largest square in the middle."""
        return self.preprocessing or Preprocessing(min(self.image_shape[:2]), 1.0)

    def prepare(self, photograph: bytes | str | os.PathLike | np.ndarray) -> np.ndarray:
        """A photograph as the network takes it: uint8 ``[H, W, C]``.

        Args:
          photograph: an encoded image or the path of one, or uint8 ``[H, W, 3]``.

        Raises:
          InputError: it cannot be read or decoded.
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
        if pixels.shape[:2] != (height, width):  # images that are no squares
            pixels = np.asarray(Image.fromarray(photograph).resize((width, height), Image.Resampling.BILINEAR))
        return np.asarray(Image.fromarray(pixels).convert('L'))[..., None] if channels == 1 else pixels

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Predictions for images.

        Args:
          images: uint8 ``[N, H, W, C]``, of the shape that the network was trained on.

        Returns:
          float32 ``[N, K]``: of classes the probabilities; of yes or no the probability of yes, ``[N, 1]``; of labels
          the probability of each; of values the values, in the units of the targets.

        Raises:
          InputError: images of another type or shape.
        """
        return self.task.predictions(self._in_batches(self._apply, images, self.model.spec.head.num_classes))

    def embed(self, images: np.ndarray) -> np.ndarray:
        """The pooled features of images, float32 ``[N, C']``; arguments and errors as in a call."""
        width = self.variables['params']['head']['kernel'].shape[0]
        return self._in_batches(self._features, images, width)

    def explain(self, images: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        """Where in images the network sees classes: class activation maps, float32 ``[N, H', W']`` from 0 to 1.

        The last map's channels, weighted by the head's kernel for the class, where they speak for it. In front of a
        global average pool and a linear layer this is Grad-CAM of the last map up to a factor (Selvaraju et al. 2017,
        arXiv:1610.02391, section 3.1); each map is divided by its largest value.

        Args:
          images: as in a call.
          classes: one for each image.
        """
        kernel = np.asarray(self.variables['params']['head']['kernel'])
        chosen = np.asarray(classes, np.int64)
        if chosen.shape != (len(images),) or not ((chosen >= 0) & (chosen < kernel.shape[1])).all():
            raise InputError(f'classes must be {len(images)} numbers from 0 to {kernel.shape[1] - 1}')
        maps = []
        for start in range(0, len(images), _EXPLAINED):
            some = self._in_batches(self._last_map, images[start : start + _EXPLAINED], None)
            weights = kernel[:, chosen[start : start + _EXPLAINED]]
            found = np.maximum(np.einsum('nhwc,cn->nhw', some, weights), 0)
            maps.append(found / np.maximum(found.max((1, 2), keepdims=True), 1e-12))
        return np.concatenate(maps).astype(np.float32)

    def _in_batches(self, function: Callable[..., jax.Array], images: np.ndarray, width: int | None) -> np.ndarray:
        """A compiled function of variables and images, of any number of images; ``[0, width]`` of none."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            one = '; images[None] makes a batch of one' if images.shape == self.image_shape else ''
            one = '; images[..., None] has a channel' if images.shape[1:] == self.image_shape[:2] else one
            raise InputError(
                f'images must be uint8 {["N", *self.image_shape]}, found {images.dtype} {list(images.shape)}{one}'
            )
        outputs = [] if len(images) else [np.zeros((0, width or 0), np.float32)]
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            # Every batch has one of few sizes, so that it compiles once and not for each number of images.
            filling = np.zeros(((1 << (len(batch) - 1).bit_length()) - len(batch), *self.image_shape), np.uint8)
            outputs.append(np.asarray(function(self.variables, np.concatenate([batch, filling])))[: len(batch)])
        return np.concatenate(outputs)

    def names(self, predictions: np.ndarray) -> list[Any]:
        """Predictions in words: the likeliest class; which of yes and no; a tuple of the labels; a tuple of values."""
        if predictions.ndim != 2:
            raise InputError(f'predictions must be [N, K], found {list(predictions.shape)}')
        return self.task.in_words(predictions, self.class_names)

    @functools.cached_property
    def _apply(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda variables, images: self.model.apply(variables, self._normalized(images), train=False))

    @functools.cached_property
    def _features(self) -> Callable[..., jax.Array]:
        def pooled(variables: Any, images: jax.Array) -> jax.Array:
            found: Any = self.model.apply(variables, self._normalized(images), train=False, features_only=True)
            return found['pooled']

        return jax.jit(pooled)

    @functools.cached_property
    def _last_map(self) -> Callable[..., jax.Array]:
        def last_map(variables: Any, images: jax.Array) -> jax.Array:
            how: dict[str, Any] = {'train': False, 'features_only': True, 'mutable': ['intermediates']}
            found: Any = self.model.apply(variables, self._normalized(images), **how)[1]
            return found['intermediates']['last_map'][0].astype(jnp.float32)

        return jax.jit(last_map)

    def _normalized(self, images: jax.Array) -> jax.Array:
        return normalize(images, self.mean, self.std)


def load_predictor(
    source: str | pathlib.Path,
    which: str | int = 'last',
    *,
    arch: str | None = None,
    preprocessing: Preprocessing | None = None,
    block: Any = None,
    task: Task | type[Task] | None = None,
) -> Predictor:
    """The network of a run, a file or the hub, ready for new images.

    Args:
      source: folder of a run or of one of its checkpoints, or weights as in ``weights.sources.open_source``; of
        networks with 1,000 outputs that do not name their classes, they are ImageNet's.
      which: checkpoint of a run: ``last``, ``best``, or a step.
      arch: of a file that does not name its network.
      preprocessing: of photographs; None is what the source says, or else 224 pixels of ImageNet's statistics.
      block: the block class of a run that was given it as a value.
      task: the task of a run that was given it as a value; of other weights what they were trained for, None being
        one of K classes.

    Raises:
      InputError: no such run, checkpoint or file, a damaged one, or a run that needs another block or task.
    """
    if arch is not None and pathlib.Path(source).is_dir():
        raise InputError(f'arch={arch}: a run names its network itself')
    loaded = from_pretrained(source, arch, which=which, block=block)
    return _of_run(loaded, preprocessing, task) if loaded.source.record else _of_weights(loaded, preprocessing, task)


def _of_run(loaded: Pretrained, preprocessing: Preprocessing | None, task: Task | type[Task] | None) -> Predictor:
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
    """What a run was trained for, with the units of its targets; the value, where it was given one."""
    settings, data = source.settings, source.record['dataset']
    check_given('task', settings['task'], task, str(source.workdir))
    loss = None if is_qualified(settings['loss']) else settings['loss']  # the usual one says what outputs mean
    return make_task(task or settings['task'], loss, statistics=data['target_statistics'])


def _of_weights(loaded: Pretrained, preprocessing: Preprocessing | None, task: Task | type[Task] | None) -> Predictor:
    mean, std = (preprocessing.mean, preprocessing.std) if preprocessing else normalization_of(loaded.source)
    how = preprocessing or loaded.preprocessing or Preprocessing(224)
    classes = loaded.model.spec.head.num_classes
    names = imagenet_names() if classes == len(imagenet_names()) else tuple(map(str, range(classes)))
    return Predictor(
        model=loaded.model,
        variables=loaded.variables,
        arch=loaded.arch,
        preprocessing=how,
        source=loaded.source,
        task=get_task(DEFAULT_TASK if task is None else task),
        class_names=names,
        image_shape=(how.size, how.size, 3),
        mean=mean,
        std=std,
    )
