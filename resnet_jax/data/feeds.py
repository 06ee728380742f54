"""How the examples of a dataset come to the devices.

Images in memory are all there from the start, and a batch says which of them it takes; photographs are read, decoded
and sent while the step before computes.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data import stream
from resnet_jax.data.augment import Augmentation
from resnet_jax.data.batches import eval_batches, train_indices
from resnet_jax.data.decode import CROP_RATIO
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.data.preprocessing import INTERPOLATIONS, Preprocessing, resized_and_cropped
from resnet_jax.devices import local_rows, place_rows, replicated, split_batch, to_devices
from resnet_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """How photographs are read; it changes no result.

    Attributes:
      workers: processes that read and decode for training; with 0 threads of this one do, as in evaluations.
      strict: one that cannot be decoded stops the run.
    """

    workers: int = 0
    strict: bool = False


THREAD_READER = ReaderOptions()


class RunSeeds(Protocol):
    """The seeds of the runs that take every step together, as ``training.seeds.Seeds`` has them."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """One for each run."""

    @property
    def batch_axis(self) -> int:
        """Which axis of a batch counts the examples."""

    def stack(self, trees: Sequence[Any]) -> Any:
        """The batch of all of one for each seed."""


class ArrayFeed:
    """Batches of images in memory.

    Args:
      dataset: of them.
      augmentation: of the run.
      batch_size: images in a step, on all devices.
      seeds: of the runs that take every step together.
      mesh: of the devices.

    Attributes:
      shared: what lies on the devices all the time.
      augmentation: what remains to be done there.
    """

    def __init__(self, dataset: Dataset, augmentation: Augmentation, batch_size: int, seeds: RunSeeds, mesh: Any):
        self._seeds, self._mesh = seeds, mesh
        self._sizes = len(dataset.train), batch_size, augmentation.augmentation_repeats
        self.shared: Any = to_devices((dataset.train.pixels, dataset.train.labels), replicated(mesh))
        self.augmentation = augmentation

    def batch(self, step: int) -> Any:
        """What the step function is given of a step: numbers of examples, split over the devices."""
        orders = [train_indices(seed, step, *self._sizes) for seed in self._seeds.numbers]
        return to_devices(self._seeds.stack(orders), split_batch(self._mesh, self._seeds.batch_axis))

    peek = batch

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets if there are any, and numbers of the examples, within the step function."""
        images, labels = shared
        return images[batch], None if labels is None else labels[batch], batch

    @staticmethod
    def counts(batch: Any) -> dict[str, jax.Array]:
        """What is counted of a batch, within the step function."""
        del batch
        return {}

    def close(self) -> None:
        """Nothing is open."""


class PhotographFeed:
    """Batches of photographs, cropped and resized on the host; more arguments and the attributes as in ``ArrayFeed``.

    Args:
      dataset: of them.
      augmentation: of the run; ``resized_crop`` is done here, once for all views.
      batch_size: images in a step, on all devices and machines.
      seeds: of the runs that take every step together.
      mesh: of the devices.
      steps: of the whole run.
      interpolation: key of ``preprocessing.INTERPOLATIONS``: the filter that resizes.
      options: how they are read.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation,
        batch_size: int,
        seeds: RunSeeds,
        mesh: Any,
        steps: int,
        interpolation: str = 'bilinear',
        options: ReaderOptions = THREAD_READER,
    ):
        crop, size = augmentation.resized_crop, dataset.image_shape[0]
        self._mesh, self._seeds, self._images, self._workers = mesh, seeds, dataset.train.photographs, options.workers
        self._sizes = len(dataset.train), batch_size, augmentation.augmentation_repeats
        self._rows, self._steps = local_rows(mesh, batch_size), steps
        self.augmentation = augmentation
        if crop is not None:
            size = augmentation.crop_size or size
            self.augmentation = dataclasses.replace(augmentation, resized_crop=None, crop_size=None)
        area, ratio = (None, CROP_RATIO) if crop is None else (crop.crop_area, crop.crop_ratio)
        self._functions = [
            stream.TrainingImages(
                dataset.train.photographs,
                seed,
                batch_size,
                augmentation.augmentation_repeats,
                crop=stream.RandomCrop(size, area, ratio, INTERPOLATIONS[interpolation]),
                rows=self._rows,
                strict=options.strict,
            )
            for seed in seeds.numbers
        ]
        self._iterators: list[Iterator[dict[str, np.ndarray]]] = []
        self._next: int | None = None
        self._peeked: tuple[int, Any] | None = None
        self._named: set[int] = set()
        self.shared: Any = ()

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
        for seed, part in zip(self._seeds.numbers, found, strict=True):
            asked = train_indices(seed, step, *self._sizes)[self._rows]
            part['replaced'] = part.pop('source') != asked
            self._name(asked[part['replaced']])
            part['index'] = asked
        return place_rows(self._seeds.stack(found), self._mesh, self._seeds.batch_axis)

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
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets if there are any, and numbers of the examples, within the step function."""
        del shared
        return batch['image'], batch.get('label'), batch['index']

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


class EvalArrays:
    """Images in memory without augmentation, for evaluations.

    Args:
      split: of them.
      mesh: of the devices.
    """

    all_there = True

    def __init__(self, split: Split, mesh: Any):
        self._mesh, self.shared = mesh, to_devices((split.pixels, split.labels), replicated(mesh))
        self._size = len(split)

    def batches(self, size: int, chosen: np.ndarray | None = None) -> Iterator[Any]:
        """Batches ``(numbers, mask)`` of all examples in order, or of chosen ones, whose number divides by the size."""
        found: Iterator[Any] = eval_batches(self._size, size)
        if chosen is not None:
            found = ((indices, np.ones(size, bool)) for indices in chosen.reshape(-1, size))
        return (to_devices(batch, split_batch(self._mesh)) for batch in found)

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets if there are any, and mask, within the compiled program."""
        (images, labels), (indices, mask) = shared, batch
        return images[indices], None if labels is None else labels[indices], mask


class EvalPhotographs:
    """Photographs without augmentation, for evaluations.

    Args:
      split: of them.
      mesh: of the devices.
      preprocessing: sizes and filter.
      options: how they are read.
    """

    all_there = False  # some may be damaged

    def __init__(self, split: Split, mesh: Any, preprocessing: Preprocessing, options: ReaderOptions):
        self._split, self._mesh, self.shared = split, mesh, ()
        self._prepare = functools.partial(resized_and_cropped, preprocessing=preprocessing)
        # What stands in the place of one that cannot be read has a target, too, which nobody looks at.
        label = split.photographs.read(0)[1] if split.labels is None else split.labels[0]
        blank_label = None if label is None else np.zeros_like(label)
        self._blank = np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8), blank_label
        self._strict, self._named = options.strict, set[int]()

    def batches(self, size: int, chosen: np.ndarray | None = None) -> Iterator[Any]:
        """As in ``EvalArrays``; what cannot be decoded is named and masked out, and of chosen ones replaced."""
        tries = 100
        if chosen is None:
            padded = (np.where(mask, indices, -1) for indices, mask in eval_batches(len(self._split), size))
            chosen, tries = np.concatenate(list(padded)), 1
        rows = local_rows(self._mesh, size)
        local = chosen.reshape(-1, size)[:, rows].ravel()
        function = stream.EvalImages(self._split.photographs, local, self._prepare, self._blank, tries)
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
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets if there are any, and mask, within the compiled program."""
        del shared
        return batch['image'], batch.get('label'), batch['mask']


def eval_images(
    split: Split, mesh: Any, preprocessing: Preprocessing | None, options: ReaderOptions
) -> EvalArrays | EvalPhotographs:
    """The one that fits the split; arguments as theirs."""
    if isinstance(split.images, np.ndarray):
        return EvalArrays(split, mesh)
    if preprocessing is None:
        raise InputError('preprocessing is required for photographs')
    return EvalPhotographs(split, mesh, preprocessing, options)


def eval_preprocessing(dataset: Dataset, crop_pct: float, interpolation: str) -> Preprocessing | None:
    """What is done to photographs in an evaluation, as ``Preprocessing`` has it; None for images in memory."""
    if dataset.image_size is None:
        return None
    return Preprocessing(dataset.image_size, crop_pct, interpolation)
