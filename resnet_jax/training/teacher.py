"""The teacher of distillation, and whether the outputs of given weights are the classes of a dataset."""

import hashlib
import textwrap
import warnings
from typing import Any

import jax
import numpy as np

from resnet_jax.data.examples import Dataset, same_form
from resnet_jax.errors import InputError
from resnet_jax.models.resnet import ResNet
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import task_name
from resnet_jax.weights.sources import Source, source_variables


class Teacher:
    """The teacher network for distillation.

    Args:
      name: the source of its weights, for messages.
      source: its weights.
      model: its network.
      dataset: dataset of the student, with its normalization.

    Attributes:
      model: the network.
      variables: its variables, float32.

    Raises:
      InputError: the weights do not fit the network that they name.
    """

    def __init__(self, name: str, source: Source, model: ResNet, dataset: Dataset):
        self.model = model
        self.variables = source_variables(source, name, self.model, dataset.image_shape[-1])
        origin = source if len(source.mean) == dataset.image_shape[-1] else dataset
        # Converts the student's normalization to the teacher's.
        std = np.asarray(origin.std, np.float32)
        self._scale = np.asarray(dataset.std, np.float32) / std
        self._offset = (np.asarray(dataset.mean, np.float32) - np.asarray(origin.mean, np.float32)) / std

    def outputs(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """The teacher's outputs ``[N, K]`` for images normalized for the student."""
        images = images * self._scale[None, None, None] + self._offset[None, None, None]
        outputs: Any = self.model.apply(variables, images, train=False)
        return outputs

    def fingerprint(self) -> str:
        """A hexadecimal checksum of the variables, by which a resumed run notices that they have changed."""
        found = hashlib.blake2b(digest_size=8)
        for leaf in jax.tree.leaves(self.variables):
            found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return found.hexdigest()


def check_outputs(name: str, source: Source, num_outputs: int, expected: int, task: Task) -> None:
    """Raises InputError for a teacher of another task or number of outputs than the student's."""
    if source.task not in (None, task_name(task)):
        raise InputError(f'distill_from={name} was trained for {source.task}, expected {task.name}')
    if num_outputs != expected:
        raise InputError(f'distill_from={name} has {num_outputs} outputs, expected {expected}')


def check_classes(name: str, source: Source, dataset: Dataset, dataset_name: str, classes_match: bool) -> None:
    """Checks that a teacher was trained for the classes and images of the student, as far as its source says.

    What only the user can know is assumed, and reported by a warning.

    Args:
      name: the source of its weights, for messages.
      source: its weights.
      dataset: dataset of the student.
      dataset_name: its name in the configuration.
      classes_match: whether the user says that the classes match; then differences are only reported.

    Raises:
      InputError: the source has other classes, or images with another number of channels.
    """
    differences = [reason] if (reason := class_difference(source, dataset, dataset_name)) else []
    shape = source.record.get('dataset', {}).get('image_shape', ())
    if shape and shape[-1] != dataset.image_shape[-1]:
        differences.append(f'its images have {shape[-1]} channels, those of {dataset_name} {dataset.image_shape[-1]}')
    if differences and not classes_match:
        raise InputError(
            f'distill_from={name} does not fit {dataset_name}: {"; ".join(differences)};'
            ' if its outputs are the classes of this dataset in this order, set distill_classes_match'
        )
    if classes_match:
        if differences:
            warnings.warn(f'distill_from={name} is used although {"; ".join(differences)}', stacklevel=3)
    elif not source.class_names:
        more = (
            ''
            if len(source.mean) == dataset.image_shape[-1]
            else ', and that its images are normalized like those of the student'
        )
        warnings.warn(
            f'distill_from={name} has no class names: assuming that its outputs are the {dataset.num_classes} classes'
            f' of {dataset_name} in this order{more}',
            stacklevel=3,
        )
    size = tuple(shape[:2]) or (() if source.preprocessing is None else (source.preprocessing.size,) * 2)
    if size and size != dataset.image_shape[:2]:
        before, now = (' x '.join(map(str, one)) for one in (size, dataset.image_shape[:2]))
        warnings.warn(f'distill_from={name} was trained on images of {before} pixels, and receives {now}', stacklevel=3)


def class_difference(source: Source, dataset: Dataset, dataset_name: str) -> str | None:
    """Says why the outputs of a source may not be the classes of a dataset in their order.

    Args:
      source: the weights.
      dataset: the dataset.
      dataset_name: its name in the configuration.

    Returns:
      A reason; None if the class names are equal, or if those of the source are unknown. Names that are only the
      numbers 0, 1, 2 and so on do not tell classes apart: they count as equal only for the same dataset.
    """
    if not source.class_names:
        return None
    theirs, ours = (list(map(same_form, names)) for names in (source.class_names, dataset.class_names))
    if theirs == ours:
        trained_on = source.settings.get('dataset')
        if trained_on == dataset_name or ours != [str(number) for number in range(len(ours))]:
            return None
        return f'it was trained on {trained_on}, and class names that are only numbers do not show what they mean'
    if sorted(theirs) == sorted(ours):
        first = next(index for index, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        return f'its classes are in another order: class {first} is {theirs[first]!r}, here {ours[first]!r}'
    names = [textwrap.shorten(', '.join(some), 80, placeholder=' …') for some in (theirs, ours)]
    return f'its classes are {names[0]}, those of {dataset_name} {names[1]}'
