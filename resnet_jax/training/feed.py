"""How the examples of a dataset come to the devices.

Images in memory are all there from the start, and a batch says which of them it takes; photographs are read, decoded
and sent while the step before computes.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data import stream
from resnet_jax.data.augment import Augmentation
from resnet_jax.data.batches import eval_batches, train_indices
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.errors import InputError
from resnet_jax.models.preprocessing import INTERPOLATIONS, Preprocessing, resized_and_cropped
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.sharding import local_rows, place, place_rows, replicated, split_batch


@dataclasses.dataclass(frozen=True)
class Reading:
    """How photographs are read.

    Attributes:
      workers: processes that read and decode for training; with 0 threads of this one do, as in evaluations.
      strict: one that cannot be decoded stops the run.
    """

    workers: int = 0
    strict: bool = False


BY_THREADS = Reading()


class ArrayFeed:
    """Batches of images in memory.

    Args:
      dataset: of them.
      config: of the run.
      seeds: of the runs that take every step together.
      mesh: of the devices.

    Attributes:
      shared: what lies on the devices all the time.
      augmentation: what remains to be done there.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, seeds: Sequence[int], mesh: Any):
        self._seeds, self._mesh = seeds, mesh
        self._sizes = len(dataset.train), config.batch_size, config.augmentation_repeats
        self.shared: Any = place(dataset.train.arrays, replicated(mesh))
        self.augmentation = Augmentation.of(config)

    def batch(self, step: int) -> Any:
        """What the step function is given of a step: numbers of examples, split over the devices."""
        orders = [train_indices(seed, step, *self._sizes) for seed in self._seeds]
        many = len(orders) > 1
        return place(np.stack(orders) if many else orders[0], split_batch(self._mesh, axis=int(many)))

    peek = batch

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images, targets and numbers of the examples, within the step function."""
        images, labels = shared
        return images[batch], labels[batch], batch

    @staticmethod
    def counts(batch: Any) -> dict[str, jax.Array]:
        """What is counted of a batch, within the step function."""
        del batch
        return {}

    def close(self) -> None:
        """Nothing is open."""


class PhotographFeed:
    """Batches of photographs, cropped and resized on the host; arguments and attributes as in ``ArrayFeed``.

    Args:
      dataset: of them.
      config: of the run.
      seeds: of the runs that take every step together.
      mesh: of the devices.
      reading: how they are read.
      steps: of the whole run.
    """

    def __init__(
        self, dataset: Dataset, config: TrainConfig, seeds: Sequence[int], mesh: Any, reading: Reading, steps: int
    ):
        self._mesh, self._seeds, self._images, self._workers = mesh, seeds, dataset.train.photographs, reading.workers
        self._sizes = len(dataset.train), config.batch_size, config.augmentation_repeats
        self._rows, self._steps = local_rows(mesh, config.batch_size), steps
        size, area = dataset.image_shape[0], config.crop_area
        if area is not None and config.crop_size is not None:
            size = config.crop_size
        crop = stream.RandomCrop(size, area, config.crop_ratio, INTERPOLATIONS[config.interpolation])
        how: dict[str, Any] = {'crop': crop, 'rows': self._rows, 'strict': reading.strict}
        how |= {'batch_size': config.batch_size, 'repeats': config.augmentation_repeats}
        self._functions = [stream.TrainingImages(dataset.train.photographs, seed, **how) for seed in seeds]
        self._iterators: list[Iterator[dict[str, np.ndarray]]] = []
        self._next: int | None = None
        self._peeked: tuple[int, Any] | None = None
        self._named: set[int] = set()
        self.shared: Any = ()
        augmentation = Augmentation.of(config)
        if area is not None:
            augmentation = dataclasses.replace(augmentation, crop_area=None, crop_size=None)
        self.augmentation = augmentation

    def batch(self, step: int) -> Any:
        """What the step function is given of a step: images, targets, numbers of examples, split over the devices."""
        if self._peeked is not None:
            (peeked, batch), self._peeked = self._peeked, None
            if peeked == step:
                return batch
        if step != self._next:
            self.close()
            size = len(self._rows)
            self._iterators = [
                stream.batches(function, step, self._steps, size, self._workers) for function in self._functions
            ]
        self._next = step + 1
        found = [next(iterator) for iterator in self._iterators]
        for seed, part in zip(self._seeds, found, strict=True):
            asked = train_indices(seed, step, *self._sizes)[self._rows]
            part['replaced'] = part.pop('source') != asked
            self._name(asked[part['replaced']])
            part['index'] = asked
        many = len(found) > 1
        batch = jax.tree.map(lambda *parts: np.stack(parts), *found) if many else found[0]
        return place_rows(batch, self._mesh, axis=int(many))

    def peek(self, step: int) -> Any:
        """As ``batch``, which then gives the same."""
        batch = self.batch(step)
        self._peeked = step, batch
        return batch

    def _name(self, damaged: np.ndarray) -> None:
        """Says once of each damaged image that another stands in for it."""
        for example in damaged.tolist():
            if example not in self._named:
                self._named.add(example)
                name, fault = self._images.name(example), stream.fault_of(self._images, example)
                print(f'{name} cannot be decoded ({fault}): another image takes its place', file=sys.stderr)

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images, targets and numbers of the examples, within the step function."""
        del shared
        return batch['image'], batch['label'], batch['index']

    @staticmethod
    def counts(batch: Any) -> dict[str, jax.Array]:
        """``replaced``: images that stand in for damaged ones, int32."""
        return {'replaced': jnp.sum(batch['replaced'], dtype=jnp.int32)}

    def close(self) -> None:
        """Ends what reads ahead."""
        for iterator in self._iterators:
            if (close := getattr(iterator, 'close', None)) is not None:
                with contextlib.suppress(ValueError):  # a thread waits for its first batch, and is left alone with it
                    close()
        self._iterators, self._next = [], None


class PlainArrays:
    """Images in memory without augmentation, for evaluations.

    Args:
      split: of them.
      mesh: of the devices.
    """

    all_there = True

    def __init__(self, split: Split, mesh: Any):
        self._mesh, self.shared = mesh, place(split.arrays, replicated(mesh))
        self._size = len(split)

    def batches(self, size: int, chosen: np.ndarray | None = None) -> Iterator[Any]:
        """Batches ``(numbers, mask)`` of all examples in order, or of chosen ones, whose number divides by the size."""
        found: Iterator[Any] = eval_batches(self._size, size)
        if chosen is not None:
            found = ((indices, np.ones(size, bool)) for indices in chosen.reshape(-1, size))
        return (place(batch, split_batch(self._mesh)) for batch in found)

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images, targets and mask, within the compiled program."""
        (images, labels), (indices, mask) = shared, batch
        return images[indices], labels[indices], mask


class PlainPhotographs:
    """Photographs without augmentation, for evaluations.

    Args:
      split: of them.
      mesh: of the devices.
      preprocessing: sizes and filter.
      reading: how they are read.
    """

    all_there = False  # some may be damaged

    def __init__(self, split: Split, mesh: Any, preprocessing: Preprocessing, reading: Reading):
        self._split, self._mesh, self.shared = split, mesh, ()
        self._prepare = functools.partial(resized_and_cropped, preprocessing=preprocessing)
        # What stands in the place of one that cannot be read has a target, too, which nobody looks at.
        label = split.photographs.read(0)[1] if split.labels is None else split.labels[0]
        self._blank = np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8), np.zeros_like(label)
        self._strict, self._named = reading.strict, set[int]()

    def batches(self, size: int, chosen: np.ndarray | None = None) -> Iterator[Any]:
        """As in ``PlainArrays``; what cannot be decoded is named and masked out, and of chosen ones replaced."""
        tries = 100
        if chosen is None:
            padded = (np.where(mask, indices, -1) for indices, mask in eval_batches(len(self._split), size))
            chosen, tries = np.concatenate(list(padded)), 1
        rows = local_rows(self._mesh, size)
        local = chosen.reshape(-1, size)[:, rows].ravel()
        function = stream.PlainImages(self._split.photographs, local, self._prepare, self._blank, tries)
        # By threads: processes would have to start for every evaluation.
        found = stream.batches(function, 0, len(local) // len(rows), len(rows), 0)
        for examples, batch in zip(local.reshape(-1, len(rows)), found, strict=True):
            self._tell(examples[~batch['mask'] & (examples >= 0)])
            yield place_rows(batch, self._mesh)

    def _tell(self, damaged: np.ndarray) -> None:
        for example in damaged.tolist():
            if example in self._named:
                continue
            self._named.add(example)
            images = self._split.photographs
            line = f'{images.name(example)} cannot be decoded ({stream.fault_of(images, example)})'
            if self._strict:
                raise InputError(line)
            print(f'{line}: it is left out', file=sys.stderr)

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Images, targets and mask, within the compiled program."""
        del shared
        return batch['image'], batch['label'], batch['mask']


def plain_examples(split: Split, mesh: Any, preprocessing: Preprocessing | None, reading: Reading) -> Any:
    """The one that fits the split."""
    if isinstance(split.images, np.ndarray):
        return PlainArrays(split, mesh)
    if preprocessing is None:
        raise InputError('photographs need to know to what size they are made')
    return PlainPhotographs(split, mesh, preprocessing, reading)


def preprocessing_of(dataset: Dataset, config: TrainConfig) -> Preprocessing | None:
    """What is done to photographs in an evaluation; None for images in memory."""
    if dataset.image_size is None:
        return None
    return Preprocessing(dataset.image_size, config.crop_pct, config.interpolation)
