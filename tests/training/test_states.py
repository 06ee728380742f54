"""The training state: sharding, and transfer to the host and back."""

import jax
import numpy as np
import pytest

from resnet_jax.data.feeds import THREAD_READER
from resnet_jax.devices import data_mesh
from resnet_jax.training.plan import make_plan
from resnet_jax.training.program import compile_program
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.states import initial_state, restored_state, saved_like, saved_states
from tests.training.runs import CONFIG, SPEC


def plan_of(shades, seeds=(0,), **changes):
    return make_plan(SPEC, CONFIG.replace(**changes), Seeds(seeds), shades, data_mesh(), THREAD_READER)


def test_the_optimizer_state_can_be_sharded(shades):
    for shard in (False, True):
        plan = plan_of(shades, shard_optimizer=shard)
        state, _ = initial_state(plan)
        trace = max(jax.tree.leaves(state.opt_state), key=lambda leaf: leaf.size)
        assert trace.is_fully_replicated == (not shard)
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        state, _ = compile_program(plan, state).step(state, 0)
        trace = max(jax.tree.leaves(state.opt_state), key=lambda leaf: leaf.size)
        assert trace.is_fully_replicated == (not shard)


@pytest.mark.parametrize('seeds', [(3,), (3, 4)])
def test_transfer_to_the_host_and_back(shades, seeds):
    plan = plan_of(shades, seeds)
    state, _ = initial_state(plan)
    saved = saved_states(plan, state)
    assert len(saved) == len(seeds)
    like = saved_like(plan)
    for one in saved:
        assert jax.tree.map(lambda leaf: leaf.shape, one) == jax.tree.map(lambda leaf: leaf.shape, like)
    again = restored_state(plan, saved)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    jax.tree.map(lambda one, other: np.testing.assert_equal(one.sharding, other.sharding), again, state)


def test_every_seed_has_its_own_weights(shades):
    """They agree with those of a single run."""
    plan = plan_of(shades, (3, 4))
    both = saved_states(plan, initial_state(plan)[0])
    alone = plan_of(shades, (4,))
    single = saved_states(alone, initial_state(alone)[0])[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), both[1].params, single.params)
    assert not np.array_equal(both[0].params['stem']['conv']['kernel'], both[1].params['stem']['conv']['kernel'])
