"""The state of a plan's runs: made, loaded, brought to the host and back."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from resnet_jax.devices import replicated, to_devices, to_host
from resnet_jax.models.resnet import init_variables
from resnet_jax.models.scanned import as_computed, as_stored
from resnet_jax.training.plan import Plan, init_key, wants_head_of
from resnet_jax.training.step import TrainState, create_train_state
from resnet_jax.weights.sources import Source, source_variables


def initial_state(plan: Plan) -> tuple[TrainState, float]:
    """The state before the first step, on the devices, with fresh weights; and the seconds of its compilation."""

    start = time.perf_counter()
    state = jax.jit(plan.seeds.map(plan.create, 1), out_shardings=plan.shardings)(plan.seeds.array)
    return state, time.perf_counter() - start


def _start(plan: Plan, variables: dict[str, Any]) -> TrainState:
    return create_train_state(variables, plan.optimizer, average=plan.config.averaging is not None)


def loaded_state(plan: Plan, source: Source) -> TrainState:
    """The state before the first step with the weights of a source; only a new head depends on the seed."""
    channels, states = plan.dataset.image_shape[-1], []
    name, new_head = str(plan.config.start.init_from), plan.config.start.new_head
    for seed in plan.seeds.numbers:
        variables = source_variables(source, name, plan.model, channels, init_key(seed))
        if new_head or not wants_head_of(source, plan):
            head = init_variables(plan.model, init_key(seed), plan.dataset.image_shape)['params']['head']
            variables = variables | {'params': variables['params'] | {'head': head}}
        states.append(jax.device_get(_start(plan, variables)))
    return restored_state(plan, states)


def saved_like(plan: Plan) -> TrainState:
    """Shapes and dtypes of what ``saved_states`` gives for each seed."""
    return jax.eval_shape(as_stored, plan.single)


def saved_states(plan: Plan, state: TrainState) -> list[TrainState]:
    """The state of each seed as NumPy arrays, the same whether blocks are scanned or not."""
    return [as_stored(one) for one in plan.seeds.unstack(to_host(state, plan.mesh))]


def restored_state(plan: Plan, saved: Sequence[TrainState]) -> TrainState:
    """The inverse of ``saved_states``."""
    return to_devices(plan.seeds.stack([as_computed(plan.model, one) for one in saved]), plan.shardings)


def with_statistics(
    plan: Plan, state: TrainState, estimate: Callable[..., dict[str, Any]], poll: Callable[[], None]
) -> TrainState:
    """The state whose average has running statistics that were estimated again; ``poll`` may raise meanwhile."""
    # From the trained network's own, so that what is found depends on nothing but this state.
    begin = dataclasses.replace(state, average=state.average | {'batch_stats': state.batch_stats})
    variables = plan.seeds.unstack(begin.eval_variables)
    found = [to_host(estimate(one, poll)['batch_stats'], plan.mesh) for one in variables]
    stats = to_devices(plan.seeds.stack(found), replicated(plan.mesh))
    return dataclasses.replace(state, average=state.average | {'batch_stats': stats})
