"""The compiled programs of a plan: a step, an evaluation, and what they cost."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.data.augment import augment_views, example_keys
from resnet_jax.data.batches import copy_numbers
from resnet_jax.data.feeds import ArrayFeed, PhotographFeed, eval_preprocessing
from resnet_jax.data.mixing import mix
from resnet_jax.devices import replicated, to_devices
from resnet_jax.models.cost import multiply_adds
from resnet_jax.training.cost import Cost
from resnet_jax.training.evaluation import Evaluation, Evaluator, StatisticsEstimator
from resnet_jax.training.plan import AUGMENT, DROPOUT, MIXING, Plan
from resnet_jax.training.states import with_statistics
from resnet_jax.training.step import StepOptions, TrainState, train_step

# Calls a function, perhaps beside something else: ``interruption.StopRequest.wait_for``.
Wait = Callable[[Callable[[], Any]], Any]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a training whose steps are one program.

    Attributes:
      first_step: with which it begins.
      image_size: side in pixels to which augmented images are resized; None leaves them.
      steps_per_call: steps that one call takes, in a loop on the devices, where so many are left in the epoch.
    """

    first_step: int = 0
    image_size: int | None = None
    steps_per_call: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """The programs of a plan, compiled.

    Attributes:
      step: ``(state, step) -> (state, sums)``: takes the step with that number from 0, or as many from there as its
        phase takes in a call, and gives the sums of each; the input state is donated.
      evaluate: ``(variables, poll) -> Evaluation`` of one seed's variables on the test set; ``poll`` may raise.
      reestimate: ``(state, poll) -> state`` before an evaluation; None where the statistics are averages, too.
      cost: of the step.
      close: ends what reads ahead.
    """

    step: Callable[[TrainState, int], tuple[TrainState, tuple[dict[str, Any], ...]]]
    evaluate: Callable[[dict[str, Any], Callable[[], None]], Evaluation]
    reestimate: Callable[[TrainState, Callable[[], None]], TrainState] | None
    cost: Cost
    close: Callable[[], None]


def compile_program(
    plan: Plan,
    state: TrainState,
    first_step: int = 0,
    wait: Wait = lambda function: function(),
    compile_seconds: float = 0.0,
    phases: Sequence[Phase] = (Phase(),),
) -> Compiled:
    """Compiles a plan's step and evaluation.

    Args:
      plan: what is trained.
      state: of shapes and placement like the ones that the step will be given.
      first_step: the number of the first step that will be taken.
      wait: calls what takes long, the compilation itself.
      compile_seconds: that were spent before.
      phases: of the training, by their first steps, of which the earliest is 0.

    Raises:
      Interrupted: ``wait`` raises it; and whatever a loss or a damaged photograph raises. Nothing is open then.
    """
    everywhere = replicated(plan.mesh)
    seeds, programs = to_devices(plan.seeds.array, everywhere), {}
    teacher = {} if plan.teacher is None else to_devices(plan.teacher.variables, everywhere)
    first = min(first_step, plan.total_steps - 1)  # a run may be at its end
    feed = make_feed(plan)
    try:
        shared = {'data': feed.shared, 'teacher': teacher}
        start = time.perf_counter()
        batch = wait(lambda: feed.peek(first))
        for (size, steps), jitted in _jitted_steps(plan, feed, phases, first).items():
            # Tracing stays in this thread, so that an error in a loss has a short traceback, and no signal interrupts
            # it; the waits before and after it obey one.
            lowered = jitted.lower(state, seeds, batch if steps == 1 else (batch,) * steps, shared)
            programs[size, steps] = wait(lowered.compile)
        compile_seconds += time.perf_counter() - start
        evaluator, estimator = _evaluation_of(plan)
        variables = plan.seeds.select(state.eval_variables, 0)
        wait(lambda: evaluator.compile(variables))
        if estimator is not None:
            wait(lambda: estimator.compile(variables))
    except BaseException:
        feed.close()
        raise

    def step(state: TrainState, index: int) -> tuple[TrainState, tuple[dict[str, Any], ...]]:
        size, steps = _program_of(plan, phases, index)
        if steps == 1:
            state, sums = programs[size, 1](state, seeds, feed.batch(index), shared)
            return state, (sums,)
        batches = tuple(feed.batch(number) for number in range(index, index + steps))
        return programs[size, steps](state, seeds, batches, shared)

    return Compiled(
        step=step,
        evaluate=evaluator,
        reestimate=None if estimator is None else functools.partial(_reestimated, plan, estimator),
        cost=_cost_of(plan, next(iter(programs.values())).memory_analysis(), compile_seconds),
        close=feed.close,
    )


def _jitted_steps(
    plan: Plan, feed: ArrayFeed | PhotographFeed, phases: Sequence[Phase], first_step: int
) -> dict[tuple[int | None, int], Any]:
    """The functions that take all steps from one on, by image size and number of steps, not yet traced."""
    functions = {}
    for size, steps in _programs_of(plan, phases, first_step):
        function: Callable[..., Any] = functools.partial(take_step, plan, feed, size)
        if steps > 1:
            function = functools.partial(take_steps, function)
        shardings = plan.shardings, replicated(plan.mesh)
        functions[size, steps] = jax.jit(plan.seeds.map(function, 3), donate_argnums=0, out_shardings=shardings)
    return functions


def _program_of(plan: Plan, phases: Sequence[Phase], index: int) -> tuple[int | None, int]:
    """Image size and number of steps of the call that takes a step."""
    phase = max((phase for phase in phases if phase.first_step <= index), key=lambda phase: phase.first_step)
    epoch_ends = index - index % plan.epoch_steps + plan.epoch_steps
    ends = min([epoch_ends, *(other.first_step for other in phases if other.first_step > index)])
    return phase.image_size, phase.steps_per_call if phase.steps_per_call <= ends - index else 1


def _programs_of(plan: Plan, phases: Sequence[Phase], first_step: int) -> list[tuple[int | None, int]]:
    """What ``_program_of`` gives for the steps from one on, each once, in their order."""
    if all(phase.steps_per_call == 1 for phase in phases) and len(phases) == 1:
        return [(phases[0].image_size, 1)]
    found: dict[tuple[int | None, int], None] = {}
    index = first_step
    while index < plan.total_steps:
        program = _program_of(plan, phases, index)
        found[program] = None
        index += program[1]
    return list(found)


def take_steps(
    take: Callable[..., Any], state: TrainState, seed: jax.Array, given: tuple[Any, ...], shared: Any
) -> tuple[TrainState, tuple[dict[str, Any], ...]]:
    """Several steps of one seed in a loop, each with a batch of its own; the sums of each."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
    state, sums = jax.lax.scan(lambda state, batch: take(state, seed, batch, shared), state, stacked)
    return state, tuple(jax.tree.map(lambda leaf, index=index: leaf[index], sums) for index in range(len(given)))


def take_step(
    plan: Plan,
    feed: ArrayFeed | PhotographFeed,
    image_size: int | None,
    state: TrainState,
    seed: jax.Array,
    given: Any,
    shared: Any,
) -> tuple[TrainState, dict[str, Any]]:
    """One step of one seed: gathers its examples, augments, resizes, mixes, teaches, trains."""
    config, key = plan.config, jax.random.key(seed)
    images, labels, indices = feed.examples(shared['data'], given)
    dropout, mixing = (
        jax.random.fold_in(jax.random.fold_in(key, purpose), state.step) for purpose in (DROPOUT, MIXING)
    )
    # What is drawn for an image belongs to its example, epoch and copy, wherever in the batch it lies.
    epoch, copies = state.step // plan.epoch_steps, copy_numbers(len(indices), config.augmentation.augmentation_repeats)
    keys = example_keys(jax.random.fold_in(key, AUGMENT), epoch, indices, jnp.asarray(copies))
    views = augment_views(keys, images, plan.dataset.mean, plan.dataset.std, feed.augmentation)
    if image_size is not None:
        shape = len(indices), image_size, image_size, views[0].shape[-1]
        views = [jax.image.resize(view, shape, 'linear') for view in views]
    batch = {'image': views[0] if len(views) == 1 else jnp.stack(views, axis=1)}
    if labels is not None:
        batch['label'] = labels
    if config.augmentation.mixup or config.augmentation.cutmix:
        outputs = jnp.zeros((len(indices), plan.model.spec.head.num_classes))  # for its shape alone
        targets = plan.task.dense_targets(outputs, batch['label'])
        batch['image'], batch['target'] = mix(mixing, batch['image'], targets, config.augmentation)
    if plan.teacher is not None:
        batch['teacher'] = plan.teacher.outputs(shared['teacher'], batch['image'])
    loss = config.objective.loss if callable(config.objective.loss) else None
    state, sums = train_step(
        state,
        batch,
        model=plan.model,
        optimizer=plan.optimizer,
        task=plan.task,
        loss=loss,
        key=dropout,
        options=StepOptions.of(config),
    )
    return state, sums | feed.counts(given)


def make_feed(plan: Plan) -> ArrayFeed | PhotographFeed:
    """How the training examples come to the devices."""
    config, dataset, seeds = plan.config, plan.dataset, plan.seeds
    if dataset.image_size is None:
        return ArrayFeed(dataset, config.augmentation, config.batch_size, seeds, plan.mesh)
    return PhotographFeed(
        dataset,
        config.augmentation,
        config.batch_size,
        seeds,
        plan.mesh,
        plan.total_steps,
        config.data.interpolation,
        plan.reader,
    )


def _evaluation_of(plan: Plan) -> tuple[Evaluator, StatisticsEstimator | None]:
    """What scores the test set, and what estimates running statistics again in front of it, where that is asked for."""
    config, dataset, averaging = plan.config, plan.dataset, plan.config.averaging
    seen: dict[str, Any] = {
        'mean': dataset.mean,
        'std': dataset.std,
        'devices': list(plan.mesh.devices.flat),
        'preprocessing': eval_preprocessing(dataset, config.data.crop_pct, config.data.interpolation),
        'reader': plan.reader,
    }
    data = config.data
    evaluator = Evaluator(plan.model, dataset.test, task=plan.task, flip=data.test_flip, shift=data.test_shift, **seen)
    if averaging is None or not averaging.reestimate_examples:
        return evaluator, None
    examples = averaging.reestimate_examples
    return evaluator, StatisticsEstimator(plan.model, dataset.train, num_examples=examples, **seen)


def _reestimated(plan: Plan, estimator: StatisticsEstimator, state: TrainState, poll: Callable[[], None]) -> TrainState:
    return with_statistics(plan, state, estimator, poll)


def _cost_of(plan: Plan, memory: Any, compile_seconds: float) -> Cost:
    return Cost(
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(plan.single.params)),
        multiply_adds=multiply_adds(plan.model, plan.trained_shape),
        step_bytes=getattr(memory, 'temp_size_in_bytes', 0),
        compile_seconds=compile_seconds,
        device_kind=plan.mesh.devices.flat[0].device_kind,
        num_devices=plan.mesh.size,
    )
