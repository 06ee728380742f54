"""Batches of photographs, read and decoded while the network trains.

What is in a batch is a function of (seed, step), and what is cut out of an image one of (seed, epoch, example, copy):
the same with any number of workers, on any number of machines, and after a resumption.
"""

import dataclasses
import math
import multiprocessing.connection
import os
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

# In front of (seed, epoch, example, copy), so that no other draw has the same numbers.
_CROP = 0x63726F70
# So many images behind one that cannot be decoded are tried in its place.
_NEIGHBOURS = 100
# So many images at most are one thread's work at a time: more of them cost less to hand over.
_PART = 16


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """What is cut out of a training image: as torchvision's ``RandomResizedCrop``, or without ``area`` the middle.

    Attributes:
      size: pixels of both sides of the result.
      area: smallest and largest share of the image's area; None takes the largest square in the middle.
      ratio: smallest and largest ratio of width to height.
      resample: Pillow's filter.
    """

    size: int
    area: tuple[float, float] | None
    ratio: tuple[float, float] = CROP_RATIO
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def draw(self, random: np.random.Generator, height: int, width: int) -> Box:
        """A box in an image of this size."""
        if self.area is None:
            return Box.centered(height, width)
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area, ratio = height * width * random.uniform(*self.area), math.exp(random.uniform(low, high))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                top, left = random.integers(0, (height - down, width - across), endpoint=True).tolist()
                return Box(top, left, down, across)
        # None fitted, for the image is long.
        return Box.centered(height, width, self.ratio)


def fault_of(images: EncodedImages, index: int) -> str:
    """Why one cannot be decoded."""
    try:
        decode(images.read(index)[0])
    except (DamagedImageError, OSError) as error:
        return reason(error)
    return 'now it can'


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingImages:
    """The training images of one seed: a function of their position, which ``batches`` makes batches of.

    Attributes:
      images: encoded.
      seed: of the order and of the crops.
      batch_size: images in a step, on all machines.
      repeats: as in ``batches.train_indices``.
      crop: what is cut out.
      rows: positions in the batch that this machine holds.
      strict: an image that cannot be decoded stops the run.
    """

    images: EncodedImages
    seed: int
    batch_size: int
    repeats: int
    crop: RandomCrop
    rows: Sequence[int] | np.ndarray
    strict: bool = False

    def __call__(self, position: int) -> dict[str, Any]:
        """Position ``step * len(rows) + k``: ``image`` uint8 ``[S, S, 3]``, whose ``source`` it is, ``label``, if any.

        Raises:
          InputError: it cannot be decoded, nor any that may stand in for it.
        """
        step, place = divmod(position, len(self.rows))
        sizes = len(self.images), self.batch_size, self.repeats
        epoch, row = step // steps_per_epoch(*sizes[:2]), self.rows[place]
        example = int(train_indices(self.seed, step, *sizes)[row])
        drawn_for = self.seed, epoch, example, int(copy_numbers(self.batch_size, self.repeats)[row])
        tries = 1 if self.strict else min(_NEIGHBOURS + 1, len(self.images))
        failures = []
        for source in range(example, example + tries):
            source %= len(self.images)
            try:
                data, label = self.images.read(source)
                image = self._part(data, np.random.default_rng((_CROP, *drawn_for)))
                return _labelled({'image': image, 'source': np.int32(source)}, label)
            except (DamagedImageError, OSError) as error:
                failures.append(error)
        more = '' if tries == 1 else f', nor can the {tries - 1} behind it'
        raise InputError(f'{self.images.name(example)}: cannot be decoded ({reason(failures[0])}){more}')

    def _part(self, data: bytes, random: np.random.Generator) -> np.ndarray:
        def choose(height: int, width: int) -> Box:
            return self.crop.draw(random, height, width)

        return decode_part(data, choose, (self.crop.size, self.crop.size), self.crop.resample)


@dataclasses.dataclass(frozen=True, eq=False)
class EvalImages:
    """Images without augmentation: a function of their position, which ``batches`` makes batches of.

    Attributes:
      images: encoded.
      examples: int ``[N]``, which of them; below zero for none, where a batch is filled up.
      prepare: from uint8 ``[H, W, 3]`` to uint8 ``[S, S, 3]``.
      blank: an image and a target for what is none.
      tries: with more than one, images behind one that cannot be decoded stand in for it.
    """

    images: EncodedImages
    examples: np.ndarray
    prepare: Callable[[np.ndarray], np.ndarray]
    blank: tuple[np.ndarray, Any]
    tries: int = 1

    def __call__(self, position: int) -> dict[str, Any]:
        """``image``, ``mask``, which is False of what could not be decoded, and ``label``, if there are any."""
        example = int(self.examples[position])
        for source in range(example, example + self.tries) if example >= 0 else ():
            try:
                data, label = self.images.read(source % len(self.images))
                return _labelled({'image': self.prepare(decode(data)), 'mask': np.bool_(True)}, label)
            except (DamagedImageError, OSError):
                continue  # the caller, who sees the mask, says so
        return _labelled({'image': self.blank[0], 'mask': np.bool_(False)}, self.blank[1])


def _labelled(example: dict[str, Any], label: Any) -> dict[str, Any]:
    """With a target, if there is one."""
    return example if label is None else example | {'label': label}


def batches(
    function: Callable[[int], dict[str, Any]], first: int, last: int, size: int, workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of what a function gives for the positions from ``first * size`` to ``last * size``, made ahead.

    Args:
      function: of a position; for workers one that can be sent to another process, and has no last position.
      first: number of the first batch.
      last: number behind the last batch.
      size: of a batch.
      workers: processes that make them; with 0 as many threads as there are cores do.

    Raises:
      StorageError: a worker came to an end.
    """
    import grain  # takes a second

    if first == last:
        return iter(())
    # Workers never come to an end, where grain would leave shared memory behind; they are ended.
    end = sys.maxsize // size if workers else last
    dataset = grain.MapDataset.range(first * size, end * size).map(function)
    if not workers:
        cores = usable_cores()
        # Parts of batches, so that all cores work on the next one; ahead are two batches, however many cores there are.
        part = max(divisor for divisor in range(1, min(size, _PART) + 1) if size % divisor == 0)
        ahead = grain.ReadOptions(num_threads=cores, prefetch_buffer_size=max(2 * size // part, cores))
        return iter(dataset.batch(part).to_iter_dataset(ahead).batch(size // part, batch_fn=_joined))
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain's own, which have their defaults outside of a script
        flags.FLAGS.mark_as_parsed()
    alone = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    options = grain.MultiprocessingOptions(num_workers=min(workers, last - first))
    iterated = dataset.batch(size).to_iter_dataset(alone).mp_prefetch(options, _live_as_long_as_the_run)
    return _by_workers(iter(iterated), last - first)


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _live_as_long_as_the_run(worker: int, workers: int) -> None:
    """A terminal or a scheduler signals the whole group; the run obeys, and ends its workers when it has saved.

    Of one that is killed they would not know: grain's wait for ever.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if (run := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            multiprocessing.connection.wait([run.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _by_workers(iterator: Any, count: int) -> Iterator[dict[str, np.ndarray]]:
    """So many batches of an iterator of grain's; then, or if this is closed, no process and no memory is left."""
    try:
        for _ in range(count):
            try:
                batch = next(iterator)
            except RuntimeError as error:  # of grain's, for a worker that is gone
                more = 'fewer --num_workers take less memory'
                raise StorageError(f'a process that reads photographs ended: {reason(error)}; {more}') from error
            # Copied out of the shared memory, which is given back where nothing holds it any more, at the latest here.
            copied = {name: np.array(values) for name, values in batch.items()}
            del batch
            yield copied
    finally:
        iterator.close()
        del iterator
        # A thread of grain's gives shared memory back; cut off by the end of the program, it would leave a warning.
        time.sleep(0.2)
