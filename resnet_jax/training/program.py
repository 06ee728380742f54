"""The compiled programs of a plan: the step, the evaluation, and their cost."""

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
from resnet_jax.training.plan import AUGMENT, DROPOUT, MIXING, Plan, run_key
from resnet_jax.training.states import with_statistics
from resnet_jax.training.step import StepOptions, TrainState, train_step

# Calls a function and returns its result, as ``interruption.StopRequest.wait_for`` does.
Wait = Callable[[Callable[[], Any]], Any]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of training whose steps use one program.

    Attributes:
      first_step: the step it starts with.
      image_size: height and width in pixels that augmented images are resized to; None does not resize.
      steps_per_call: steps per call, in a loop on the devices; the last call of an epoch, or of the phase, has fewer if
        this does not divide the steps that are left. More than one needs images in memory.
    """

    first_step: int = 0
    image_size: int | None = None
    steps_per_call: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """The compiled programs of a plan.

    Attributes:
      step: ``(state, step) -> (state, sums)``: takes the step with this index (from 0) and the further steps of its
        phase's call. The sums have a leading axis of steps, ``[steps, …]``, or ``[seeds, steps, …]`` with several
        seeds. The input state is donated.
      evaluate: ``(variables, poll) -> Evaluation`` of one seed's variables on the test set; ``poll`` may raise.
      reestimate: ``(state, poll) -> state``, called before an evaluation; None if running statistics are not
        recomputed.
      cost: cost of the step.
      close: stops reading ahead.
      programs: what ``compile_program`` can reuse.
    """

    step: Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]]
    evaluate: Callable[[dict[str, Any], Callable[[], None]], Evaluation]
    reestimate: Callable[[TrainState, Callable[[], None]], TrainState] | None
    cost: Cost
    close: Callable[[], None]
    programs: 'Programs'


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The compiled functions of plans that differ only in the numbers of their seeds.

    Attributes:
      plan: one of these plans.
      steps: the step functions, by image size and number of steps.
      evaluator: the evaluator of the test set.
      estimator: the estimator of running statistics; None if they are not recomputed.
    """

    plan: Plan
    steps: dict[tuple[int | None, int], Any]
    evaluator: Evaluator
    estimator: StatisticsEstimator | None


def compile_program(
    plan: Plan,
    state: TrainState,
    first_step: int = 0,
    wait: Wait = lambda function: function(),
    compile_seconds: float = 0.0,
    before: Compiled | None = None,
    phases: Sequence[Phase] | None = None,
) -> Compiled:
    """Compiles a plan's step and evaluation, except what was compiled before.

    Args:
      plan: the plan to compile.
      state: a state with the shapes and placement that the step will receive.
      first_step: index of the first step to take.
      wait: calls slow functions, such as the compilation.
      compile_seconds: compilation time spent before.
      before: the programs of a plan; reused if ``plan`` is its ``with_seeds``.
      phases: phases of the training; the earliest first step is 0. None is one with the setting ``steps_per_call``.

    Raises:
      Interrupted: raised by ``wait``. Errors of a loss or of damaged photographs are raised too. Nothing is left open.
    """
    phases = phases or (Phase(steps_per_call=plan.config.reporting.steps_per_call),)
    everywhere = replicated(plan.mesh)
    seeds = to_devices(plan.seeds.array, everywhere)
    reused = before.programs if before is not None and plan.differs_only_in_seeds(before.programs.plan) else None
    programs = {} if reused is None else dict(reused.steps)
    teacher = {} if plan.teacher is None else to_devices(plan.teacher.variables, everywhere)
    first = min(first_step, plan.total_steps - 1)  # the run may be at its end
    feed = make_feed(plan)
    try:
        shared = {'data': feed.shared, 'teacher': teacher}
        start = time.perf_counter()
        for (size, steps), jitted in _jitted_steps(plan, feed, phases, first).items():
            if (size, steps) in programs:
                continue
            batch = wait(functools.partial(_given, feed, feed.peek, first, steps))
            # Tracing stays in this thread, so that an error in a loss has a short traceback. Signals do not interrupt
            # it; they are handled in the waits before and after it.
            lowered = jitted.lower(state, seeds, batch, shared)
            programs[size, steps] = wait(lowered.compile)
        compile_seconds += time.perf_counter() - start
        evaluator, estimator = (reused.evaluator, reused.estimator) if reused else _evaluators(plan, state, wait)
    except BaseException:
        feed.close()
        raise

    def step(state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        size, steps = _program_of(plan, phases, index)
        return programs[size, steps](state, seeds, _given(feed, feed.batch, index, steps), shared)

    return Compiled(
        step=step,
        evaluate=evaluator,
        reestimate=None if estimator is None else functools.partial(_reestimate, plan, estimator),
        cost=_cost_of(plan, next(iter(programs.values())).memory_analysis(), compile_seconds),
        close=feed.close,
        programs=Programs(plan, programs, evaluator, estimator),
    )


def _jitted_steps(
    plan: Plan, feed: ArrayFeed | PhotographFeed, phases: Sequence[Phase], first_step: int
) -> dict[tuple[int | None, int], Any]:
    """The jitted functions for all steps from ``first_step`` on, by image size and number of steps, not yet traced."""
    functions = {}
    for size, steps in _programs_of(plan, phases, first_step):
        function: Callable[..., Any] = functools.partial(take_step, plan, feed, size)
        if steps > 1:
            function = functools.partial(take_steps, function)
        shardings = plan.shardings, replicated(plan.mesh)
        functions[size, steps] = jax.jit(plan.seeds.map(function, 3), donate_argnums=0, out_shardings=shardings)
    return functions


def _program_of(plan: Plan, phases: Sequence[Phase], index: int) -> tuple[int | None, int]:
    """Image size and number of steps of the call that starts at a step."""
    phase = max((phase for phase in phases if phase.first_step <= index), key=lambda phase: phase.first_step)
    epoch_ends = index - index % plan.epoch_steps + plan.epoch_steps
    ends = min([epoch_ends, *(other.first_step for other in phases if other.first_step > index)])
    return phase.image_size, min(phase.steps_per_call, ends - index)


def _programs_of(plan: Plan, phases: Sequence[Phase], first_step: int) -> list[tuple[int | None, int]]:
    """The distinct values of ``_program_of`` from ``first_step`` on, in order."""
    if all(phase.steps_per_call == 1 for phase in phases) and len(phases) == 1:
        return [(phases[0].image_size, 1)]
    found: dict[tuple[int | None, int], None] = {}
    index = first_step
    while index < plan.total_steps:
        program = _program_of(plan, phases, index)
        found[program] = None
        index += program[1]
    return list(found)


def _given(feed: ArrayFeed | PhotographFeed, single: Callable[[int], Any], index: int, steps: int) -> Any:
    """The input of a call from the feed, where ``single`` is the feed's method for one step."""
    if steps == 1:
        return single(index)
    assert isinstance(feed, ArrayFeed), 'several steps per call need images in memory'
    return feed.batches(index, steps)


def take_steps(
    take: Callable[..., Any], state: TrainState, seed: jax.Array, given: Any, shared: Any
) -> tuple[TrainState, dict[str, Any]]:
    """Takes several steps of one seed in a loop; ``given`` and the returned sums have a leading axis of steps."""

    def body(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        state, sums = take(state, seed, batch, shared)
        return state, jax.tree.map(lambda leaf: leaf[0], sums)

    return jax.lax.scan(body, state, given)


def take_step(
    plan: Plan,
    feed: ArrayFeed | PhotographFeed,
    image_size: int | None,
    state: TrainState,
    seed: jax.Array,
    given: Any,
    shared: Any,
) -> tuple[TrainState, dict[str, Any]]:
    """Takes one step of one seed: gathers examples, augments, resizes and mixes images, runs the teacher, trains.

    The returned sums have a leading axis of one step.
    """
    config, key = plan.config, run_key(seed)
    images, labels, indices = feed.examples(shared['data'], given)
    dropout, mixing = (
        jax.random.fold_in(jax.random.fold_in(key, purpose), state.step) for purpose in (DROPOUT, MIXING)
    )
    # The keys of an image depend on its example, epoch and copy, not on its place in the batch.
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
        outputs = jnp.zeros((len(indices), plan.model.spec.head.num_classes))  # only its shape is used
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
    return state, jax.tree.map(lambda leaf: leaf[None], sums | feed.counts(given))


def make_feed(plan: Plan) -> ArrayFeed | PhotographFeed:
    """Makes the feed that brings training examples to the devices."""
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


def _evaluators(plan: Plan, state: TrainState, wait: Wait) -> tuple[Evaluator, StatisticsEstimator | None]:
    """The evaluator of the test set, and the estimator of running statistics if they are recomputed; compiled."""
    config, dataset, averaging = plan.config, plan.dataset, plan.config.averaging
    inputs: dict[str, Any] = {
        'mean': dataset.mean,
        'std': dataset.std,
        'devices': list(plan.mesh.devices.flat),
        'preprocessing': eval_preprocessing(dataset, config.data.crop_pct, config.data.interpolation),
        'reader': plan.reader,
    }
    data = config.data
    evaluator = Evaluator(
        plan.model, dataset.test, task=plan.task, flip=data.test_flip, shift=data.test_shift, **inputs
    )
    variables = plan.seeds.select(state.eval_variables, 0)
    wait(lambda: evaluator.compile(variables))
    if averaging is None or not averaging.reestimate_examples:
        return evaluator, None
    examples = averaging.reestimate_examples
    estimator = StatisticsEstimator(plan.model, dataset.train, num_examples=examples, **inputs)
    wait(lambda: estimator.compile(variables))
    return evaluator, estimator


def _reestimate(plan: Plan, estimator: StatisticsEstimator, state: TrainState, poll: Callable[[], None]) -> TrainState:
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
