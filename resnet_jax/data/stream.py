"""Batches of photographs, read and decoded during training.

The content of a batch is a function of (seed, step), and the crop of an image a function of (seed, epoch, example,
copy). Both are the same with any number of workers or machines, and after resuming a run.
"""

import dataclasses
import math
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data.batches import copy_numbers, steps_per_epoch, train_indices
from resnet_jax.data.decode import CROP_RATIO, Box, DamagedImageError, decode, decode_part
from resnet_jax.data.examples import EncodedImages, reason
from resnet_jax.devices import usable_cores
from resnet_jax.errors import InputError, StorageError

# Prepended to (seed, epoch, example, copy), so that no other random numbers have the same seed.
_CROP = 0x63726F70
# A damaged image is replaced by the first of this many following ones that can be decoded.
_NEIGHBORS = 100
# The most images that a thread processes at a time; larger parts reduce the overhead.
_PART = 16


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random crop of a training image, as in torchvision's ``RandomResizedCrop``, or without ``area`` the center.

    Attributes:
      size: height and width of the result in pixels.
      area: smallest and largest fraction of the image's area; None takes the largest central square.
      ratio: smallest and largest ratio of width to height.
      resample: Pillow's filter.
    """

    size: int
    area: tuple[float, float] | None
    ratio: tuple[float, float] = CROP_RATIO
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def draw(self, random: np.random.Generator, height: int, width: int) -> Box:
        """Draws a box in an image.

        Args:
          random: NumPy's generator.
          height: of the image.
          width: of the image.
        """
        if self.area is None:
            return Box.centered(height, width)
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area, ratio = height * width * random.uniform(*self.area), math.exp(random.uniform(low, high))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                top, left = random.integers(0, (height - down, width - across), endpoint=True).tolist()
                return Box(top, left, down, across)
        # None of ten fitted, since the image is elongated.
        return Box.centered(height, width, self.ratio)


def fault_of(images: EncodedImages, index: int) -> str:
    """The reason why an image cannot be decoded."""
    try:
        decode(images.read(index)[0])
    except (DamagedImageError, OSError) as error:
        return reason(error)
    return 'but can be decoded now'


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingImages:
    """The training images of one seed, as a function of the position, for ``batches``.

    Attributes:
      images: the encoded images.
      seed: seed of the order and the crops.
      batch_size: images per step, on all machines.
      repeats: as in ``batches.train_indices``.
      crop: the crop.
      rows: positions in the batch that belong to this machine.
      strict: whether an image that cannot be decoded stops the run.
    """

    images: EncodedImages
    seed: int
    batch_size: int
    repeats: int
    crop: RandomCrop
    rows: Sequence[int] | np.ndarray
    strict: bool = False

    def __call__(self, position: int) -> dict[str, Any]:
        """Returns the image at a position.

        Args:
          position: ``step * len(rows) + k``, for the k-th of ``rows``.

        Returns:
          A dict of ``image``, uint8 ``[S, S, 3]``; ``source``, the index of the image, which differs from the expected
          one if that is damaged; and ``label`` if there are targets.

        Raises:
          InputError: the image cannot be decoded, nor can any of its replacements.
        """
        step, place = divmod(position, len(self.rows))
        sizes = len(self.images), self.batch_size, self.repeats
        epoch, row = step // steps_per_epoch(*sizes[:2]), self.rows[place]
        example = int(train_indices(self.seed, step, *sizes)[row])
        drawn_for = self.seed, epoch, example, int(copy_numbers(self.batch_size, self.repeats)[row])
        tries = 1 if self.strict else min(_NEIGHBORS + 1, len(self.images))
        failures = []
        for source in range(example, example + tries):
            source %= len(self.images)
            try:
                data, label = self.images.read(source)
                image = self._crop(data, np.random.default_rng((_CROP, *drawn_for)))
                return _with_label({'image': image, 'source': np.int32(source)}, label)
            except (DamagedImageError, OSError) as error:
                failures.append(error)
        more = '' if tries == 1 else f', nor can the following {tries - 1}'
        raise InputError(f'{self.images.name(example)}: cannot be decoded ({reason(failures[0])}){more}')

    def _crop(self, data: bytes, random: np.random.Generator) -> np.ndarray:
        def choose(height: int, width: int) -> Box:
            return self.crop.draw(random, height, width)

        return decode_part(data, choose, (self.crop.size, self.crop.size), self.crop.resample)


@dataclasses.dataclass(frozen=True, eq=False)
class EvalImages:
    """Images without augmentation, as a function of the position, for ``batches``.

    Attributes:
      images: the encoded images.
      examples: int ``[N]``, indices of the images; negative for padding.
      prepare: maps uint8 ``[H, W, 3]`` to uint8 ``[S, S, 3]``.
      blank: image and target of padding and of damaged images.
      tries: if above 1, a damaged image is replaced by one of the ``tries - 1`` images that follow it.
    """

    images: EncodedImages
    examples: np.ndarray
    prepare: Callable[[np.ndarray], np.ndarray]
    blank: tuple[np.ndarray, Any]
    tries: int = 1

    def __call__(self, position: int) -> dict[str, Any]:
        """Returns ``image``; ``mask``, False for padding and damaged images; and ``label`` if there are targets."""
        example = int(self.examples[position])
        for source in range(example, example + self.tries) if example >= 0 else ():
            try:
                data, label = self.images.read(source % len(self.images))
                return _with_label({'image': self.prepare(decode(data)), 'mask': np.bool_(True)}, label)
            except (DamagedImageError, OSError):
                continue  # the caller reports it, based on the mask
        return _with_label({'image': self.blank[0], 'mask': np.bool_(False)}, self.blank[1])


def _with_label(example: dict[str, Any], label: Any) -> dict[str, Any]:
    """Adds the target, if there is one."""
    return example if label is None else example | {'label': label}


def batches(
    function: Callable[[int], dict[str, Any]], first: int, last: int, size: int, workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of a function's results for the positions from ``first * size`` to ``last * size``, reading ahead.

    Args:
      function: maps a position to a dict of arrays. With workers, it must be picklable and accept positions beyond the
        last.
      first: index of the first batch.
      last: index after the last batch.
      size: batch size.
      workers: number of worker processes; 0 uses one thread per core.

    Yields:
      Dicts of stacked arrays ``[size, …]``.

    Raises:
      StorageError: a worker process ended.
    """
    import grain  # here, since it takes a second

    if first == last:
        return iter(())
    # Workers never reach their end, where grain would leak shared memory; they are terminated.
    end = sys.maxsize // size if workers else last
    dataset = grain.MapDataset.range(first * size, end * size).map(function)
    if not workers:
        cores = usable_cores()
        # Parts of batches, so that all cores work on the next batch; two batches are read ahead on any number of cores.
        part = max(divisor for divisor in range(1, min(size, _PART) + 1) if size % divisor == 0)
        ahead = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=max(2 * size // part, cores))
        return iter(dataset.batch(part).to_iter_dataset(ahead).batch(size // part, batch_fn=_concatenate))
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads absl flags, which are unparsed outside of a script
        flags.FLAGS.mark_as_parsed()
    alone = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    options = grain.MultiprocessingOptions(num_workers=min(workers, last - first))
    _start_quiet_resource_tracker()
    iterated = dataset.batch(size).to_iter_dataset(alone).mp_prefetch(options, _tie_worker_to_main_process)
    return _from_workers(iter(iterated), last - first)


def _concatenate(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _start_quiet_resource_tracker() -> None:
    """Starts the process of Python that removes the shared memory of ended processes.

    It would warn about what a killed worker left, in two more lines after the one that the run ends with.
    """
    if os.name != 'posix':
        return
    from multiprocessing import resource_tracker

    before = list(sys.warnoptions)
    sys.warnoptions.append('ignore::UserWarning:multiprocessing.resource_tracker')  # inherited by the new process
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions[:] = before


def _tie_worker_to_main_process(worker: int, workers: int) -> None:
    """Makes a worker ignore SIGINT and SIGTERM, and end with the main process.

    A terminal or a scheduler signals the whole process group: the main process handles the signal, and ends its workers
    after saving. If the main process is killed, grain's workers would wait forever.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if (run := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            multiprocessing.connection.wait([run.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _from_workers(iterator: Any, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields ``count`` batches of a grain iterator; afterwards, or if closed, releases its processes and memory."""
    try:
        for _ in range(count):
            try:
                batch = next(iterator)
            except RuntimeError as error:  # raised by grain if a worker is gone
                found = re.search(r'exit code (-?\d+)', str(error))
                how = f'with exit code {found[1]}' if found else f'({reason(error)})'
                raise StorageError(
                    f'a worker process that reads photographs ended {how}; if it ran out of memory, use fewer'
                    ' --num_workers'
                ) from error
            # Copied, since shared memory is released only when nothing refers to it any more.
            copied = {name: np.array(values) for name, values in batch.items()}
            del batch
            yield copied
    finally:
        iterator.close()
        del iterator
        # A grain thread releases shared memory; interrupted by the end of the program, it would print a warning.
        time.sleep(0.2)
