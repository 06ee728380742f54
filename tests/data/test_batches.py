"""The order of examples and the padding of the last batch."""

import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax.data.batches import copy_numbers, epoch_order, eval_batches, steps_per_epoch, train_indices


def test_an_epoch_has_each_example_at_most_once():
    seen = np.concatenate([train_indices(0, step, 103, 10) for step in range(10)])
    assert len(set(seen)) == 100
    assert set(seen) <= set(range(103))


def test_the_order_depends_only_on_seed_and_epoch():
    assert np.array_equal(epoch_order(1, 2, 50), np.random.default_rng((1, 2)).permutation(50))
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert np.array_equal(train_indices(3, 7, 50, 10), epoch_order(3, 1, 50)[20:30])


@pytest.mark.parametrize(('size', 'batch_size'), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_eval_batches_have_every_example_once(size, batch_size):
    batches = list(eval_batches(size, batch_size))
    assert all(len(indices) == len(mask) == batch_size for indices, mask in batches)
    seen = np.concatenate([indices[mask] for indices, mask in batches])
    np.testing.assert_array_equal(seen, np.arange(size))
    assert all((indices < size).all() for indices, _ in batches)


@pytest.mark.parametrize('batch_size', [0, 11])
def test_a_batch_larger_than_the_dataset_is_refused(batch_size):
    with pytest.raises(InputError, match=f'batch_size={batch_size} must be between 1 and 10 .training examples'):
        steps_per_epoch(10, batch_size)


def test_repeats_use_the_first_part_of_the_order():
    order, steps = epoch_order(5, 1, 50), steps_per_epoch(50, 12)
    assert steps == 4
    seen = np.concatenate([train_indices(5, step, 50, 12, 3) for step in range(steps, 2 * steps)])
    np.testing.assert_array_equal(seen, np.repeat(order[: 4 * 12 // 3], 3))
    np.testing.assert_array_equal(copy_numbers(12, 3), [0, 1, 2] * 4)
    pairs = set(zip(seen, np.tile(copy_numbers(12, 3), steps), strict=True))
    assert len(pairs) == 48  # no copy of an example twice
    np.testing.assert_array_equal(copy_numbers(4), 0)


def test_the_last_example_of_a_batch_may_have_fewer_copies():
    """As in the published batch of 2,048 with three copies of each example."""
    order = epoch_order(0, 0, 50)
    for step in range(steps_per_epoch(50, 12)):
        a, b, c = order[3 * step : 3 * step + 3]
        np.testing.assert_array_equal(train_indices(0, step, 50, 12, 5), [a] * 5 + [b] * 5 + [c] * 2)
    np.testing.assert_array_equal(copy_numbers(12, 5), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    assert len(train_indices(0, 624, 1_281_167, 2048, 3)) == 2048
