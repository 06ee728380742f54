"""The examples of each step. They are a function of the step, so there is no iterator state to save."""

import functools
from collections.abc import Iterator

import numpy as np

from resnet_jax.errors import InputError


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of full batches per epoch; the remainder, different in every epoch, is dropped.

    Args:
      num_examples: number of training examples.
      batch_size: images per step, including copies.

    Raises:
      InputError: the batch is larger than the dataset.
    """
    if not 1 <= batch_size <= num_examples:
        raise InputError(f'batch_size={batch_size} must be between 1 and {num_examples} (training examples)')
    return num_examples // batch_size


@functools.lru_cache(maxsize=8)  # several seeds may train together
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of the examples in an epoch: a permutation, int32 ``[num_examples]``, drawn from (seed, epoch)."""
    order = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False  # shared by all steps of the epoch
    return order


def train_indices(seed: int, step: int, num_examples: int, batch_size: int, repeats: int = 1) -> np.ndarray:
    """The indices of the examples of a training step, int32 ``[batch_size]``.

    With repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335; Berman et al. 2019, arXiv:1902.05509), a batch
    holds ``batch_size / repeats`` distinct examples, each ``repeats`` times in a row (the last one possibly fewer
    times); ``copy_numbers`` distinguishes the copies. The number of steps per epoch stays the same, so an epoch uses
    only the first ``1 / repeats`` of its order, as in torchvision's ``RASampler``. The next epoch has another order.

    Args:
      seed: seed of the run.
      step: number of the step, from 0.
      num_examples: number of training examples.
      batch_size: images per step, including copies.
      repeats: copies of each example.

    Raises:
      InputError: as in ``steps_per_epoch``.
    """
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size))
    distinct = -(-batch_size // repeats)
    examples = epoch_order(seed, epoch, num_examples)[position * distinct : (position + 1) * distinct]
    return np.repeat(examples, repeats)[:batch_size]


def copy_numbers(batch_size: int, repeats: int = 1) -> np.ndarray:
    """The copy number of each image of a step, from 0: int32 ``[batch_size]``, the same in every step."""
    return np.arange(batch_size, dtype=np.int32) % repeats


def eval_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all examples once, in order, in batches of equal size.

    Yields:
      ``(indices int32 [batch_size], mask bool [batch_size])``. The last batch is padded with example 0, where the mask
      is False.
    """
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        mask = indices < num_examples
        yield np.where(mask, indices, 0), mask
