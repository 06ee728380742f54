"""The training state of a plan's runs: initialized, loaded, and moved between devices and host."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from resnet_jax.devices import replicated, to_devices, to_host
from resnet_jax.models.resnet import init_variables
from resnet_jax.models.scanned import as_computed, as_stored
from resnet_jax.training.plan import Plan, init_key, keeps_head_of
from resnet_jax.training.step import TrainState, create_train_state
from resnet_jax.weights.sources import Source, source_variables


def initial_state(plan: Plan) -> tuple[TrainState, float]:
    """The state before the first step with random weights, on the devices; and the seconds to compile it."""
    start = time.perf_counter()
    state = jax.jit(plan.seeds.map(plan.create, 1), out_shardings=plan.shardings)(plan.seeds.array)
    return state, time.perf_counter() - start


def _create_state(plan: Plan, variables: dict[str, Any]) -> TrainState:
    return create_train_state(variables, plan.optimizer, average=plan.config.averaging is not None)


def loaded_state(plan: Plan, source: Source) -> TrainState:
    """The state before the first step with weights from a source; only a new head depends on the seed."""
    channels, states = plan.dataset.image_shape[-1], []
    name, new_head = str(plan.config.start.init_from), plan.config.start.new_head
    for seed in plan.seeds.numbers:
        variables = source_variables(source, name, plan.model, channels, init_key(seed))
        if new_head or not keeps_head_of(source, plan):
            head = init_variables(plan.model, init_key(seed), plan.dataset.image_shape)['params']['head']
            variables = variables | {'params': variables['params'] | {'head': head}}
        states.append(jax.device_get(_create_state(plan, variables)))
    return restored_state(plan, states)


def saved_like(plan: Plan) -> TrainState:
    """Shapes and dtypes of the states that ``saved_states`` returns."""
    return jax.eval_shape(as_stored, plan.single)


def saved_states(plan: Plan, state: TrainState) -> list[TrainState]:
    """The state of each seed as NumPy arrays in stored form, independent of ``scan_blocks``."""
    return [as_stored(one) for one in plan.seeds.unstack(to_host(state, plan.mesh))]


def restored_state(plan: Plan, saved: Sequence[TrainState]) -> TrainState:
    """The inverse of ``saved_states``."""
    return to_devices(plan.seeds.stack([as_computed(plan.model, one) for one in saved]), plan.shardings)


def with_statistics(
    plan: Plan, state: TrainState, estimate: Callable[..., dict[str, Any]], poll: Callable[[], None]
) -> TrainState:
    """Returns the state with recomputed running statistics in its average; ``poll`` may raise."""
    # Starts from the unaveraged statistics, so that the result depends only on this state.
    begin = dataclasses.replace(state, average=state.average | {'batch_stats': state.batch_stats})
    variables = plan.seeds.unstack(begin.eval_variables)
    found = [to_host(estimate(one, poll)['batch_stats'], plan.mesh) for one in variables]
    stats = to_devices(plan.seeds.stack(found), replicated(plan.mesh))
    return dataclasses.replace(state, average=state.average | {'batch_stats': stats})
