"""Transfer of a dataset's examples to the devices.

Images in memory are copied to the devices once, and a batch consists of indices. Photographs are read, decoded and
transferred while the previous step computes.
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
from resnet_jax.text import printable


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """How photographs are read. ``workers`` does not affect results.

    Attributes:
      workers: number of processes that read and decode training images; 0 uses threads of the main process, as
        evaluations always do.
      strict: whether a photograph that cannot be decoded stops the run.
    """

    workers: int = 0
    strict: bool = False


THREAD_READER = ReaderOptions()


class RunSeeds(Protocol):
    """Protocol of the seeds of runs that are trained together, implemented by ``training.seeds.Seeds``."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The seed of each run."""

    @property
    def batch_axis(self) -> int:
        """The example axis of a batch."""

    def stack(self, trees: Sequence[Any]) -> Any:
        """Combines the batches of the seeds, one per seed, into one."""


class ArrayFeed:
    """Training batches of images in memory.

    Args:
      dataset: the dataset.
      augmentation: the run's augmentation.
      batch_size: images per step, on all devices.
      seeds: the seeds of the runs that are trained together.
      mesh: the devices' mesh.

    Attributes:
      shared: arrays that stay on the devices during the whole run.
      augmentation: the augmentation that is left to the devices.
    """

    def __init__(self, dataset: Dataset, augmentation: Augmentation, batch_size: int, seeds: RunSeeds, mesh: Any):
        self._seeds, self._mesh = seeds, mesh
        self._sizes = len(dataset.train), batch_size, augmentation.augmentation_repeats
        self.shared: Any = to_devices((dataset.train.pixels, dataset.train.labels), replicated(mesh))
        self.augmentation = augmentation

    def batch(self, step: int) -> Any:
        """The input of the step function for a step: indices of examples, sharded over the devices."""
        orders = [train_indices(seed, step, *self._sizes) for seed in self._seeds.numbers]
        return to_devices(self._seeds.stack(orders), split_batch(self._mesh, self._seeds.batch_axis))

    peek = batch

    def batches(self, step: int, count: int) -> Any:
        """The inputs of ``count`` steps of one epoch from ``step`` on, with a leading axis of steps, for one seed."""
        steps = range(step, step + count)
        orders = [
            np.stack([train_indices(seed, number, *self._sizes) for number in steps]) for seed in self._seeds.numbers
        ]
        return to_devices(self._seeds.stack(orders), split_batch(self._mesh, self._seeds.batch_axis + 1))

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets or None, and indices of a batch, within the step function."""
        images, labels = shared
        return images[batch], None if labels is None else labels[batch], batch

    @staticmethod
    def counts(batch: Any) -> dict[str, jax.Array]:
        """Counts per batch, within the step function."""
        del batch
        return {}

    def close(self) -> None:
        """Does nothing: there is nothing to close."""


class PhotographFeed:
    """Training batches of photographs, cropped and resized on the host. Attributes as in ``ArrayFeed``.

    Args:
      dataset: the dataset.
      augmentation: the run's augmentation; ``resized_crop`` is applied here, once for all views.
      batch_size: images per step, on all devices of all machines.
      seeds: the seeds of the runs that are trained together.
      mesh: the devices' mesh.
      steps: number of steps of the whole run.
      interpolation: a key of ``preprocessing.INTERPOLATIONS``, for resizing.
      options: how photographs are read.
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
        self._reported: set[int] = set()
        self.shared: Any = ()

    def batch(self, step: int) -> Any:
        """The input of the step function for a step: images, targets and indices, sharded over the devices.

        Raises:
          InputError: a photograph cannot be decoded, nor can any of its replacements.
          StorageError: a worker process ended.
        """
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
            self._report_replaced(asked[part['replaced']])
            part['index'] = asked
        return place_rows(self._seeds.stack(found), self._mesh, self._seeds.batch_axis)

    def peek(self, step: int) -> Any:
        """As ``batch``; the next call of ``batch`` for this step returns the same object."""
        batch = self.batch(step)
        self._peeked = step, batch
        return batch

    def _report_replaced(self, damaged: np.ndarray) -> None:
        """Reports damaged images that were replaced, each once."""
        for example in damaged.tolist():
            if example not in self._reported:
                self._reported.add(example)
                name, fault = self._images.name(example), stream.fault_of(self._images, example)
                line = f'{name}: cannot be decoded ({fault}), replaced by another image'
                print(printable(line), file=sys.stderr)

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets or None, and indices of a batch, within the step function."""
        del shared
        return batch['image'], batch.get('label'), batch['index']

    @staticmethod
    def counts(batch: Any) -> dict[str, jax.Array]:
        """``replaced``: the number of images that replace damaged ones, int32."""
        return {'replaced': jnp.sum(batch['replaced'], dtype=jnp.int32)}

    def close(self) -> None:
        """Stops reading ahead."""
        for iterator in self._iterators:
            if (close := getattr(iterator, 'close', None)) is not None:
                with contextlib.suppress(ValueError):  # of a thread that waits for its first batch, and ends later
                    close()
        self._iterators, self._next = [], None


class EvalArrays:
    """Evaluation batches of images in memory, without augmentation.

    Args:
      split: the examples.
      mesh: the devices' mesh.
    """

    all_there = True

    def __init__(self, split: Split, mesh: Any):
        self._mesh, self.shared = mesh, to_devices((split.pixels, split.labels), replicated(mesh))
        self._size = len(split)

    def batches(self, size: int, chosen: np.ndarray | None = None) -> Iterator[Any]:
        """Yields batches ``(indices, mask)``.

        Args:
          size: batch size.
          chosen: indices of the examples to evaluate, a multiple of ``size``; None means all, in order.
        """
        found: Iterator[Any] = eval_batches(self._size, size)
        if chosen is not None:
            found = ((indices, np.ones(size, bool)) for indices in chosen.reshape(-1, size))
        return (to_devices(batch, split_batch(self._mesh)) for batch in found)

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets or None, and mask of a batch, within the compiled program."""
        (images, labels), (indices, mask) = shared, batch
        return images[indices], None if labels is None else labels[indices], mask


class EvalPhotographs:
    """Evaluation batches of photographs, without augmentation.

    Args:
      split: the examples.
      mesh: the devices' mesh.
      preprocessing: sizes and filter.
      options: how photographs are read.
    """

    all_there = False  # some may be damaged

    def __init__(self, split: Split, mesh: Any, preprocessing: Preprocessing, options: ReaderOptions):
        self._split, self._mesh, self.shared = split, mesh, ()
        self._prepare = functools.partial(resized_and_cropped, preprocessing=preprocessing)
        # The placeholder of an unreadable image needs a target, too; it is masked out.
        label = split.photographs.read(0)[1] if split.labels is None else split.labels[0]
        blank_label = None if label is None else np.zeros_like(label)
        self._blank = np.zeros((preprocessing.size, preprocessing.size, 3), np.uint8), blank_label
        self._strict, self._reported = options.strict, set[int]()

    def batches(self, size: int, chosen: np.ndarray | None = None) -> Iterator[Any]:
        """As in ``EvalArrays``. Damaged photographs are reported and masked out; chosen ones are replaced.

        Raises:
          InputError: with ``strict``, a photograph cannot be decoded.
        """
        tries = 100
        if chosen is None:
            padded = (np.where(mask, indices, -1) for indices, mask in eval_batches(len(self._split), size))
            chosen, tries = np.concatenate(list(padded)), 1
        rows = local_rows(self._mesh, size)
        local = chosen.reshape(-1, size)[:, rows].ravel()
        function = stream.EvalImages(self._split.photographs, local, self._prepare, self._blank, tries)
        # With threads, since worker processes would have to be started for every evaluation.
        found = stream.batches(function, 0, len(local) // len(rows), len(rows), 0)
        for examples, batch in zip(local.reshape(-1, len(rows)), found, strict=True):
            self._report_damaged(examples[~batch['mask'] & (examples >= 0)])
            yield place_rows(batch, self._mesh)

    def _report_damaged(self, damaged: np.ndarray) -> None:
        for example in damaged.tolist():
            if example in self._reported:
                continue
            self._reported.add(example)
            images = self._split.photographs
            line = f'{images.name(example)}: cannot be decoded ({stream.fault_of(images, example)})'
            if self._strict:
                raise InputError(line)
            print(printable(f'{line}, skipped'), file=sys.stderr)

    @staticmethod
    def examples(shared: Any, batch: Any) -> tuple[jax.Array, Any, jax.Array]:
        """Images, targets or None, and mask of a batch, within the compiled program."""
        del shared
        return batch['image'], batch.get('label'), batch['mask']


def eval_images(
    split: Split, mesh: Any, preprocessing: Preprocessing | None, options: ReaderOptions
) -> EvalArrays | EvalPhotographs:
    """Makes ``EvalArrays`` or ``EvalPhotographs``, whichever fits the split; arguments as theirs.

    Raises:
      InputError: photographs without ``preprocessing``.
    """
    if isinstance(split.images, np.ndarray):
        return EvalArrays(split, mesh)
    if preprocessing is None:
        raise InputError('preprocessing is required for photographs')
    return EvalPhotographs(split, mesh, preprocessing, options)


def eval_preprocessing(dataset: Dataset, crop_pct: float, interpolation: str) -> Preprocessing | None:
    """The preprocessing of photographs in evaluations; None for images in memory.

    Args:
      dataset: the dataset.
      crop_pct: as in ``Preprocessing``.
      interpolation: as in ``Preprocessing``.
    """
    if dataset.image_size is None:
        return None
    return Preprocessing(dataset.image_size, crop_pct, interpolation)
