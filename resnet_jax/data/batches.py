"""Which examples a step sees. Positions are functions of the step, so that there is no iterator state to save."""

import functools
from collections.abc import Iterator

import numpy as np

from resnet_jax.errors import InputError


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; the remainder is left out, another one in every epoch.

    Args:
      num_examples: in the training set.
      batch_size: images in a step, copies counted.

    Raises:
      InputError: a batch larger than the data.
    """
    if not 1 <= batch_size <= num_examples:
        raise InputError(f'batch_size={batch_size} must be from 1 to the {num_examples} training examples')
    return num_examples // batch_size


@functools.lru_cache(maxsize=8)  # of several seeds that train together, too
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of an epoch: a permutation of the examples that depends on (seed, epoch), int32 ``[num_examples]``."""
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False  # it is shared by the steps of the epoch
    return order


def train_indices(seed: int, step: int, num_examples: int, batch_size: int, repeats: int = 1) -> np.ndarray:
    """The examples of one training step, int32 ``[batch_size]``.

    With repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335; Berman et al. 2019, arXiv:1902.05509) each of
    ``batch_size / repeats`` examples is there so many times, its copies in a row, the last one perhaps less often;
    ``copy_numbers`` tells them apart. An epoch keeps its number of steps, and so of images that the network sees, and
    goes through the first part of its order alone, ``1 / repeats`` of it, as with torchvision's ``RASampler``; the next
    epoch has another order.
    """
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size))
    distinct = -(-batch_size // repeats)
    examples = epoch_order(seed, epoch, num_examples)[position * distinct : (position + 1) * distinct]
    return np.repeat(examples, repeats)[:batch_size]


def copy_numbers(batch_size: int, repeats: int = 1) -> np.ndarray:
    """Which copy of its example each image of a step is, from 0: int32 ``[batch_size]``, the same in every step."""
    return np.arange(batch_size, dtype=np.int32) % repeats


def eval_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All examples once, in order, in batches of one size.

    Yields:
      ``(indices int32 [batch_size], mask bool [batch_size])``. The last batch is filled up with example 0, whose
      mask is False there.
    """
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        mask = indices < num_examples
        yield np.where(mask, indices, 0), mask
