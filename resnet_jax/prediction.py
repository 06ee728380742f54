"""What a trained network says of new images."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resnet_jax.data.augment import normalize
from resnet_jax.errors import InputError
from resnet_jax.models.resnet import ResNet
from resnet_jax.training.evaluation import make_task
from resnet_jax.training.program import make_model
from resnet_jax.training.tasks import Task
from resnet_jax.weights import load_variables, open_run

_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A trained network with everything that turns raw images into answers.

    Attributes:
      model: the network.
      variables: its weights.
      task: what it was trained for.
      class_names: of the classes, labels or values; of yes or no the name of 0 and that of 1.
      image_shape: ``(H, W, C)`` of the images it was trained on.
      mean: of their pixels, 1 being white, one for each channel.
      std: likewise.
    """

    model: ResNet
    variables: dict[str, Any]
    task: Task
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            one = '; images[None] makes a batch of one' if images.shape == self.image_shape else ''
            one = '; images[..., None] has a channel' if images.shape[1:] == self.image_shape[:2] else one
            raise InputError(
                f'images must be uint8 {["N", *self.image_shape]}, found {images.dtype} {list(images.shape)}{one}'
            )
        outputs = [np.zeros((0, self.model.spec.num_classes), np.float32)]
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            # Every batch has one of few sizes, so that it compiles once and not for each number of images.
            filling = np.zeros(((1 << (len(batch) - 1).bit_length()) - len(batch), *self.image_shape), np.uint8)
            outputs.append(np.asarray(self._apply(self.variables, np.concatenate([batch, filling])))[: len(batch)])
        return self.task.predictions(np.concatenate(outputs))

    def names(self, predictions: np.ndarray) -> list[Any]:
        """Predictions in words: the likeliest class; which of yes and no; a tuple of the labels; a tuple of values."""
        if predictions.ndim != 2:
            raise InputError(f'predictions must be [N, K], found {list(predictions.shape)}')
        if self.task.name == 'multiclass':
            return [self.class_names[index] for index in predictions.argmax(-1)]
        if self.task.name == 'binary':
            return [self.class_names[int(share > 0.5)] for (share,) in predictions]
        if self.task.name == 'multilabel':
            return [tuple(self.class_names[index] for index in np.flatnonzero(row > 0.5)) for row in predictions]
        return [tuple(row.tolist()) for row in predictions]

    @functools.cached_property
    def _apply(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda variables, images: self.model.apply(variables, self._normalized(images), train=False))

    def _normalized(self, images: jax.Array) -> jax.Array:
        return normalize(images, self.mean, self.std)


def load_predictor(workdir: str | pathlib.Path, which: str | int = 'last') -> Predictor:
    """The network of a run, ready for new images.

    Args:
      workdir: folder of the run.
      which: checkpoint: ``last``, ``best``, or a step.

    Raises:
      InputError: no such run or checkpoint, or a damaged one.
    """
    record, spec, config = open_run(workdir)
    data, variables = record['dataset'], load_variables(workdir, which)
    model = dataclasses.replace(make_model(spec, config), scan_blocks=False)  # as the variables come
    task = make_task(config, data.get('target_mean', ()), data.get('target_std', ()))
    shape, mean, std = (tuple(data[name]) for name in ('image_shape', 'mean', 'std'))
    return Predictor(model, variables, task, tuple(data['class_names']), shape, mean, std)
