"""Training runs: opened, compiled, fitted."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.record import (
    CHECKPOINTS,
    CONFIG,
    claim_workdir,
    describe_devices,
    describe_run,
    finished_result,
    read_record,
)
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset
from resnet_jax.data.feeds import THREAD_READER, ReaderOptions
from resnet_jax.devices import (
    broadcast_from_main,
    check_batch_size,
    data_mesh,
    in_main_process,
    is_main_process,
    override_mesh,
)
from resnet_jax.errors import StorageError
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.cost import Profile
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.interruption import StopRequest
from resnet_jax.training.journal import Hook, Journal, Sink, open_journal
from resnet_jax.training.log import add_metrics
from resnet_jax.training.plan import Plan, dataset_record, make_plan, normalize_for_run, open_weights
from resnet_jax.training.program import Compiled, compile_program
from resnet_jax.training.result import summarize_seeds, write_results
from resnet_jax.training.seeds import Seeds, runs_of
from resnet_jax.training.states import initial_state, loaded_state, restored_state, saved_like
from resnet_jax.training.step import TrainState

# Of a run's record, what may change when it is resumed: how often it reports changes nothing that it computes.
MAY_DIFFER = ('config.reporting',)


def train_and_evaluate(
    spec: ResNetSpec,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    num_seeds: int | None = None,
    arch: str = 'custom',
    data_dir: str | None = None,
    dataset: Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
    profile_steps: int = 0,
    reader: ReaderOptions = THREAD_READER,
    sinks: Sequence[Sink] = (),
    hooks: Sequence[Hook] = (),
) -> dict[str, Any]:
    """Trains a network, evaluates it, and leaves everything in a folder; resumes what was interrupted there.

    Args:
      spec: architecture; its ``num_classes`` gives way to what dataset and task need.
      config: everything else that changes the result.
      workdir: where the files go: new, empty, or that of the same run.
      num_seeds: train the seeds ``config.seed``, ``config.seed + 1``, … in one program, each in a folder ``seedS``.
      arch: the architecture's name, for the record.
      data_dir: where prepared datasets lie; None is TFDS's own folder.
      dataset: the data themselves, in place of ``config.data.dataset``, which then only names them.
      devices: to train on; None is all of them.
      profile_steps: so many steps, after the first few, are traced into ``workdir/profile``.
      reader: how photographs are read; it changes no result.
      sinks: where numbers go beside the files, see ``journal.Sink``.
      hooks: what is evaluated beside the test set, see ``journal.Hook``.

    Returns:
      The content of ``result.json``; of several seeds their results in ``runs``, with mean and standard deviation.

    Raises:
      InputError: a value that cannot be used; the folder is as it was.
      DivergenceError: the loss is not finite; checkpoints and metrics up to there are kept.
      StorageError: the disk does not take what is written; the last checkpoint is intact.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    workdir, mesh = pathlib.Path(workdir), data_mesh(devices)
    runs = runs_of(config.seed, workdir, num_seeds)
    results = _finished(spec, config, runs)
    left = [run for run in runs if run[0] not in results]
    if left:
        # Before a dataset is loaded, which may take long.
        check_batch_size(config.batch_size, config.execution.accumulation_steps, mesh)
        dataset = _loaded(config, data_dir, dataset)
        opening = functools.partial(open_run, spec, config, dataset=dataset, mesh=mesh, arch=arch, reader=reader)
    with override_mesh(mesh):
        for run in _opened(at_one_step(left), opening) if left else ():
            with StopRequest() as stop, open_journal(run.plan, run.workdirs, run.state, run.step, sinks) as journal:
                journal.message(run.greeting)
                with journal.saved_on_signal():
                    compiled = compile_program(run.plan, run.state, run.step, stop.wait_for, run.compile_seconds)
                profile = Profile(run.workdirs[0], profile_steps)
                with contextlib.closing(compiled), profile, journal.saved_on_signal():
                    evaluations = fit(run, compiled, journal, stop, profile, hooks)
                results |= write_results(run.plan, run.workdirs, arch, compiled.cost, journal, evaluations)
    return results[config.seed] if num_seeds is None else summarize_seeds(config, workdir, results)


def _opened(groups: list[list[tuple[int, pathlib.Path]]], opening: Callable[..., 'Run']) -> Iterator['Run']:
    """The runs of groups of seeds, one by one; a group whose checkpoints share no step is split."""
    while groups:
        group, *groups = groups
        try:
            run = opening(group)
        except NoCommonStepError:
            groups = [*at_one_step(group), *groups]
        else:
            yield run


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """An open run, or several that take every step together, whose folders have been claimed.

    Attributes:
      plan: what is trained.
      workdirs: of each seed.
      state: after ``step`` steps, on the devices.
      step: steps taken, by this process and others before it.
      greeting: lines that say what begins, or goes on.
      compile_seconds: spent so far.
    """

    plan: Plan
    workdirs: tuple[pathlib.Path, ...]
    state: TrainState
    step: int
    greeting: str
    compile_seconds: float


def open_run(
    spec: ResNetSpec,
    config: TrainConfig,
    runs: Sequence[tuple[int, pathlib.Path]],
    dataset: Dataset,
    mesh: Any,
    arch: str = 'custom',
    reader: ReaderOptions = THREAD_READER,
) -> Run:
    """Claims the folders of runs that differ in their seed alone, or restores what lies there.

    Args:
      spec: architecture.
      config: of all of them; their seeds come with ``runs``.
      runs: seed and folder of each.
      dataset: not yet normalized as the runs need it.
      mesh: of the devices.
      arch: the architecture's name.
      reader: how photographs are read.

    Raises:
      InputError: a value that cannot be used, or a folder that is not theirs.
      NoCommonStepError: damage has left the runs without a step that all of them have.
    """
    seeds, workdirs = Seeds(tuple(seed for seed, _ in runs)), tuple(workdir for _, workdir in runs)
    # Process 0 decides, for its files may be there before another process looks.
    begun = bool(broadcast_from_main(all((workdir / CONFIG).exists() for workdir in workdirs)))
    init_from = config.start.init_from
    # A run that has begun holds everything that its initial weights brought.
    source = None if begun or init_from is None else open_weights(init_from, spec)
    record = read_record(workdirs[0]) if begun else None
    plan = make_plan(spec, config, seeds, normalize_for_run(dataset, config, source, record), mesh, reader)
    loaded = None if source is None else loaded_state(plan, source)
    in_main_process(lambda: _claim(plan, workdirs, arch))
    step, state, seconds = 0, loaded, 0.0
    if begun and (found := _restored(plan, workdirs)):
        step, state = found
    elif begun and len(at_one_step(runs)) > 1:
        raise NoCommonStepError
    elif begun and init_from is not None:
        state = loaded_state(plan, open_weights(init_from, spec))
    if state is None:
        state, seconds = initial_state(plan)
    return Run(plan, workdirs, state, step, _greeting(plan, workdirs, step, record), seconds)


class NoCommonStepError(Exception):
    """Damage has left runs without a step in common, though some of them have steps."""


def fit(
    run: Run,
    compiled: Compiled,
    journal: Journal,
    stop: StopRequest,
    profile: Profile,
    hooks: Sequence[Hook] = (),
) -> list[Evaluation]:
    """Runs the remaining steps, reports to the journal, and returns the last evaluation of each seed."""
    plan, state, parts = run.plan, run.state, _Parts(run.plan, compiled, journal, stop, hooks)
    before: Any = ()
    every = plan.config.reporting.checkpoint_every_steps
    journal.message(compiled.cost.card())
    journal.start_clock()
    if run.step and run.step % plan.epoch_steps == 0:  # what came after this step may have been cut off
        state = parts.end_epoch(run.step, state)
    step = run.step
    while step < plan.total_steps:
        profile.at(step - run.step)
        with jax.transfer_guard('disallow'):
            try:
                state, sums = compiled.step(state, step)
            except StorageError:
                stop.check()  # whoever terminates a run may have killed its reader processes first
                raise
        # So many calls are under way at most that a signal is obeyed within one of them.
        jax.block_until_ready(before)
        before, first = sums, step
        for step, of_step in enumerate(sums, start=first + 1):
            journal.step(step, state, of_step, step % plan.epoch_steps == 0, compiled.cost)
        epoch_ends = step % plan.epoch_steps == 0
        if every and step // every > first // every and not epoch_ends:
            journal.save()
        if stop.at_step(step):
            stop.check()
        if epoch_ends:
            state = parts.end_epoch(step, state)
    if not journal.is_evaluated:
        parts.evaluate(state)
    return journal.evaluations


@dataclasses.dataclass(frozen=True, eq=False)
class _Parts:
    """What ``fit`` works with; the attributes are its arguments."""

    plan: Plan
    compiled: Compiled
    journal: Journal
    stop: StopRequest
    hooks: Sequence[Hook]

    def end_epoch(self, step: int, state: TrainState) -> TrainState:
        """Evaluates and saves where that is due and not done."""
        config, journal, epoch = self.plan.config, self.journal, step // self.plan.epoch_steps
        reporting = config.reporting
        if is_due(epoch, reporting.eval_every_epochs, config.epochs) and not journal.is_test_recorded():
            state = self.evaluate(state)
            journal.write_test()
        due = is_due(epoch, reporting.checkpoint_every_epochs, config.epochs)
        if due and (journal.is_evaluated or not journal.is_saved):
            journal.save()
        return state

    def evaluate(self, state: TrainState) -> TrainState:
        """Scores the test set, and whatever hooks do, for each seed; the state may get other running statistics."""
        start = time.perf_counter()
        if self.compiled.reestimate is not None:
            state = self.compiled.reestimate(state, self.stop.check)
        evaluations, more = [], []
        for index in range(len(self.plan.seeds.numbers)):
            evaluations.append(self._score(state.eval_variables, index))
            more.append(self._more(state, index))
        self.journal.evaluated(state, evaluations, more, time.perf_counter() - start)
        return state

    def _score(self, variables: dict[str, Any], index: int) -> Evaluation:
        return self.compiled.evaluate(self.plan.seeds.select(variables, index), self.stop.check)

    def _more(self, state: TrainState, index: int) -> dict[str, float]:
        """Scores beside those of what is evaluated: of the trained weights where there is an average, and of hooks."""
        found: dict[str, float] = {}
        if state.average is not None:  # weights that are trained may be of no use where their average is
            plain = self._score(state.variables, index).summary
            found = {f'unaveraged_{name}': plain[name] for name in ('loss', self.plan.task.primary_metric)}
        if self.hooks:
            one = self.plan.seeds.select(state, index)
            for hook in self.hooks:
                found = add_metrics(found, hook(one))
        return found


def is_due(epoch: int, every: int, last: int) -> bool:
    """Whether something that happens every so many epochs, and after the last, happens after this one (from 1)."""
    return epoch % every == 0 or epoch == last


def at_one_step(runs: Sequence[tuple[int, pathlib.Path]]) -> list[list[tuple[int, pathlib.Path]]]:
    """The runs that can go on together: all, or if they have no checkpoint in common, those that have the same."""
    if not runs:
        return []
    steps = [checkpoint.checkpoint_steps(workdir / CHECKPOINTS) for _, workdir in runs]
    if len(set(map(bool, steps))) == 1 and (not steps[0] or set.intersection(*map(set, steps))):
        return [list(runs)]
    groups: dict[int, list[tuple[int, pathlib.Path]]] = {}
    for run, found in zip(runs, steps, strict=True):
        groups.setdefault(max(found, default=0), []).append(run)
    return list(groups.values())


def _finished(
    spec: ResNetSpec, config: TrainConfig, runs: Sequence[tuple[int, pathlib.Path]]
) -> dict[int, dict[str, Any]]:
    """The results of the runs that are finished, by their seeds."""
    results = {}
    for seed, workdir in runs:
        parts = {'spec': spec.to_json(), 'config': dataclasses.replace(config, seed=seed).to_json()}
        if result := finished_result(workdir, parts, (*MAY_DIFFER, 'spec.head.num_classes')):
            if is_main_process():
                print(f'{workdir} is finished: nothing to do')
            results[seed] = result
    return results


def _loaded(config: TrainConfig, data_dir: str | None, given: Dataset | None) -> Dataset:
    """The dataset that is given or that a configuration names, in the size that it asks for."""
    data, task = config.data, config.objective.task
    if given is not None:  # whether it is for this task is checked with everything else
        return load_dataset(given, image_size=data.image_size)
    return load_dataset(data.dataset, task=task, data_dir=data_dir, image_size=data.image_size)


def _claim(plan: Plan, workdirs: Sequence[pathlib.Path], arch: str) -> None:
    data, devices = dataset_record(plan.dataset), list(plan.mesh.devices.flat)
    for seed, workdir in zip(plan.seeds.numbers, workdirs, strict=True):
        config = dataclasses.replace(plan.config, seed=seed).to_json()
        claim_workdir(workdir, describe_run(arch, plan.model.spec.to_json(), config, data, devices), MAY_DIFFER)


def _restored(plan: Plan, workdirs: Sequence[pathlib.Path]) -> tuple[int, TrainState] | None:
    """The newest step that every folder has intact, which process 0 decides, and its state; None without one."""
    folders, like = [workdir / CHECKPOINTS for workdir in workdirs], saved_like(plan)

    def newest() -> tuple[int, list[Any]] | None:
        for folder in folders:
            checkpoint.remove_partial_checkpoints(folder)
        return checkpoint.restore_newest_of_all(folders, like, lambda line: print(line, file=sys.stderr))

    found = in_main_process(newest)
    step = broadcast_from_main(-1 if found is None else found[0])
    if step < 0:
        return None
    saved = found[1] if found else [checkpoint.restore_checkpoint(folder, step, like) for folder in folders]
    return step, restored_state(plan, saved)


def _greeting(plan: Plan, workdirs: Sequence[pathlib.Path], step: int, record: dict[str, Any] | None) -> str:
    """What the terminal shows before a run is compiled."""
    here = describe_devices(list(plan.mesh.devices.flat))
    lines = []
    if step:
        # The numbers of other devices differ by rounding.
        elsewhere = '' if record is None or record['device'] == here else f'; it was begun on {record["device"]}'
        lines.append(f'resuming {plan.seeds.common_folder(workdirs)} after step {step}{elsewhere}')
    train, test = len(plan.dataset.train), len(plan.dataset.test)
    lines.append(f'{plan.config.recipe}: {train:,} training and {test:,} test examples, {here}; compiling')
    return '\n'.join(lines)
