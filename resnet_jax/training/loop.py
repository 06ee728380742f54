"""The training loop: opens runs, compiles them and fits them."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.environment import describe_devices
from resnet_jax.checkpoints.metrics_files import MetricsFile
from resnet_jax.checkpoints.record import CHECKPOINTS, CONFIG, read_record
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset
from resnet_jax.data.feeds import THREAD_READER, ReaderOptions
from resnet_jax.devices import (
    broadcast_from_main,
    check_batch_size,
    data_mesh,
    in_main_process,
    override_mesh,
)
from resnet_jax.errors import StorageError
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.text import printable
from resnet_jax.training.claims import claim, finished_results, record_extensions
from resnet_jax.training.config import TrainConfig, rate_of
from resnet_jax.training.cost import Profile
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.interruption import StopRequest
from resnet_jax.training.journal import Hook, Journal, Sink, open_journal
from resnet_jax.training.log import add_metrics
from resnet_jax.training.plan import Plan, make_plan, normalize_for_run, open_weights
from resnet_jax.training.program import Compiled, compile_program
from resnet_jax.training.result import summarize_seeds, write_results
from resnet_jax.training.seeds import Seeds, runs_of
from resnet_jax.training.states import initial_state, loaded_state, restored_state, saved_like
from resnet_jax.training.step import TrainState


def train_and_evaluate(
    spec: ResNetSpec,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    num_seeds: int | None = None,
    in_sequence: bool = False,
    arch: str = 'custom',
    data_dir: str | None = None,
    dataset: Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
    profile_steps: int = 0,
    reader: ReaderOptions = THREAD_READER,
    sinks: Sequence[Sink] = (),
    hooks: Sequence[Hook] = (),
    extend: bool = False,
) -> dict[str, Any]:
    """Trains and evaluates a network and writes everything to a folder; resumes a run that was interrupted there.

    Args:
      spec: architecture; its ``num_classes`` is replaced by what dataset and task need.
      config: everything else that affects the result.
      workdir: output folder: new, empty, or that of the same run.
      num_seeds: train the seeds ``config.seed``, ``config.seed + 1``, … in one program, each in a folder ``seedS``.
      in_sequence: train one seed after the other, with one compiled program, instead of all in the same steps.
      arch: name of the architecture, for the record.
      data_dir: folder of prepared datasets; None uses the default folder of TFDS.
      dataset: the data itself; ``config.data.dataset`` is then only its name.
      devices: devices to train on; None uses all.
      profile_steps: number of steps, after the first few, to trace into ``workdir/profile``.
      reader: how photographs are read; does not change results.
      sinks: functions that receive every record of the metrics, see ``journal.Sink``.
      hooks: functions that add metrics to every evaluation, see ``journal.Hook``.
      extend: train a run of fewer epochs on to ``config.epochs``, from its last checkpoint and with the learning rates
        of the longer schedule; nothing else may differ.

    Returns:
      The content of ``result.json``; with several seeds, their results in ``runs``, with mean and standard deviation.

    Raises:
      InputError: a value is not usable; the folder is unchanged.
      DivergenceError: the loss is not finite; earlier checkpoints and metrics are kept.
      StorageError: a file cannot be written; the last checkpoint is intact.
      Interrupted: SIGTERM or SIGINT arrived; the state is saved.
    """
    runs, mesh = runs_of(config.seed, pathlib.Path(workdir), num_seeds), data_mesh(devices)
    results = finished_results(spec, config, runs, extend)
    groups, built = _unfinished(runs, results, in_sequence), None
    if groups:
        opening = _opener(spec, config, mesh, data_dir, dataset, arch=arch, reader=reader, extend=extend)
    with override_mesh(mesh):
        for run in _open_groups(groups, opening) if groups else ():
            with StopRequest() as stop, open_journal(run.plan, run.workdirs, run.state, run.step, sinks) as journal:
                journal.message(run.greeting)
                with journal.saved_on_signal():
                    built = compile_program(run.plan, run.state, run.step, stop.wait_for, run.compile_seconds, built)
                evaluations = _fit(run, built, journal, stop, Profile(run.workdirs[0], profile_steps), hooks)
                results |= write_results(run.plan, run.workdirs, arch, built.cost, journal, evaluations)
    return results[config.seed] if num_seeds is None else summarize_seeds(config, pathlib.Path(workdir), results)


def _unfinished(
    runs: Sequence[tuple[int, pathlib.Path]], results: dict[int, Any], in_sequence: bool
) -> list[list[tuple[int, pathlib.Path]]]:
    """The groups of runs without a result: those that are trained together."""
    remaining = [run for run in runs if run[0] not in results]
    return [[run] for run in remaining] if in_sequence else at_one_step(remaining)


def _opener(
    spec: ResNetSpec, config: TrainConfig, mesh: Any, data_dir: str | None, dataset: Dataset | None, **options: Any
) -> Callable[..., 'Run']:
    """Loads the dataset; returns ``open_run`` as a function of the seeds and folders."""
    # Checked before loading a dataset, which may take long.
    check_batch_size(config.batch_size, config.execution.accumulation_steps, mesh)
    dataset = _load_dataset(config, data_dir, dataset)
    return functools.partial(open_run, spec, config, dataset=dataset, mesh=mesh, **options)


def _open_groups(groups: list[list[tuple[int, pathlib.Path]]], opening: Callable[..., 'Run']) -> Iterator['Run']:
    """Opens one group of seeds after another; splits a group whose checkpoints have no step in common."""
    before: Plan | None = None
    while groups:
        group, *groups = groups
        try:
            run = opening(group, before=before)
        except NoCommonStepError:
            groups = [*at_one_step(group), *groups]
        else:
            before = run.plan
            yield run


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """An open run, or several seeds that are trained together, with claimed folders.

    Attributes:
      plan: the plan of the run.
      workdirs: the folder of each seed.
      state: the state after ``step`` steps, on the devices.
      step: number of steps taken, including those of earlier processes.
      greeting: lines to show when the run starts or resumes.
      compile_seconds: time spent on compilation so far.
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
    extend: bool = False,
    before: Plan | None = None,
) -> Run:
    """Claims the folders of runs that differ only in the seed, or restores their last checkpoints.

    Args:
      spec: architecture.
      config: their common configuration; the seeds come from ``runs``.
      runs: seed and folder of each run.
      dataset: the dataset, before it gets the runs' mean and standard deviation.
      mesh: mesh of the devices.
      arch: name of the architecture.
      reader: how photographs are read.
      extend: whether runs of fewer epochs are extended.
      before: the plan of earlier runs that differ only in the seeds; their program is used again if possible.

    Raises:
      InputError: a value is not usable, or a folder belongs to another run.
      NoCommonStepError: because of damaged checkpoints, the runs have no step in common.
    """
    seeds, workdirs = Seeds(tuple(seed for seed, _ in runs)), tuple(workdir for _, workdir in runs)
    # Process 0 decides, because its files may appear before another process checks.
    started = bool(broadcast_from_main(all((workdir / CONFIG).exists() for workdir in workdirs)))
    init_from = config.start.init_from
    # A run that was started before contains everything it took from its initial weights.
    prefix = config.start.weights_prefix
    source = None if started or init_from is None else open_weights(init_from, spec, prefix)
    record = read_record(workdirs[0]) if started else None
    dataset = normalize_for_run(dataset, config, source, record)
    if before is not None and before.fits(seeds, dataset):
        plan = before.with_seeds(seeds)
    else:
        plan = make_plan(spec, config, seeds, dataset, mesh, reader, started)
    loaded = None if source is None else loaded_state(plan, source)
    claim(plan, workdirs, arch, extend)
    step, state, seconds = 0, loaded, 0.0
    if started and (found := _restored(plan, workdirs)):
        step, state = found
    elif started and len(at_one_step(runs)) > 1:
        raise NoCommonStepError
    elif started and init_from is not None:
        state = loaded_state(plan, open_weights(init_from, spec, prefix))
    if state is None:
        state, seconds = initial_state(plan)
    if started:
        in_main_process(lambda: record_extensions(plan, workdirs, step))
    return Run(plan, workdirs, state, step, _greeting(plan, workdirs, step, record), seconds)


def _fit(
    run: Run, compiled: Compiled, journal: Journal, stop: StopRequest, profile: Profile, hooks: Sequence[Hook]
) -> list[Evaluation]:
    """``fit`` with the profile open; the state is saved on a signal, and the feed is closed at the end."""
    with contextlib.closing(compiled), profile, journal.saved_on_signal():
        return fit(run, compiled, journal, stop, profile, hooks)


class NoCommonStepError(Exception):
    """Runs have no step in common because checkpoints are damaged, although some have checkpoints."""


def fit(
    run: Run,
    compiled: Compiled,
    journal: Journal,
    stop: StopRequest,
    profile: Profile,
    hooks: Sequence[Hook] = (),
) -> list[Evaluation]:
    """Runs the remaining steps, reports to the journal, and returns the last evaluation of each seed."""
    plan, state, epoch_end = run.plan, run.state, _EpochEnd(run.plan, compiled, journal, stop, hooks)
    before: Any = ()
    every = plan.config.reporting.checkpoint_every_steps
    journal.message(compiled.cost.card())
    journal.start_clock()
    if run.step and run.step % plan.epoch_steps == 0:  # the end of this epoch may have been interrupted
        state = epoch_end.run(run.step, state)
    step = run.step
    while step < plan.total_steps:
        profile.at(step - run.step)
        with jax.transfer_guard('disallow'):
            try:
                state, sums = compiled.step(state, step)
            except StorageError:
                stop.check()  # a signal may have killed the reader processes first
                raise
        # Wait for the previous call, so that a signal is handled within one call.
        jax.block_until_ready(before)
        before, first = sums, step
        step += plan.seeds.num_steps(sums)
        epoch_ends = step % plan.epoch_steps == 0
        journal.step(step, state, sums, epoch_ends, compiled.cost)
        if every and step // every > first // every and not epoch_ends:
            journal.save()
        if stop.after_call():
            stop.check()
        if epoch_ends:
            state = epoch_end.run(step, state)
    if not journal.is_evaluated:
        epoch_end.evaluate(state)
    return journal.evaluations


@dataclasses.dataclass(frozen=True, eq=False)
class _EpochEnd:
    """The work of ``fit`` at the end of an epoch; the attributes are the arguments of ``fit``."""

    plan: Plan
    compiled: Compiled
    journal: Journal
    stop: StopRequest
    hooks: Sequence[Hook]

    def run(self, step: int, state: TrainState) -> TrainState:
        """Evaluates and saves if that is due and not done yet."""
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
        """Evaluates the test set and the hooks for each seed; the returned state may have recomputed statistics."""
        start = time.perf_counter()
        if self.compiled.reestimate is not None:
            state = self.compiled.reestimate(state, self.stop.check)
        evaluations, more = [], []
        for index in range(len(self.plan.seeds.numbers)):
            evaluations.append(self._score(state.eval_variables, index))
            more.append(self._extra_metrics(state, index))
        self.journal.evaluated(state, evaluations, more, time.perf_counter() - start)
        return state

    def _score(self, variables: dict[str, Any], index: int) -> Evaluation:
        return self.compiled.evaluate(self.plan.seeds.select(variables, index), self.stop.check)

    def _extra_metrics(self, state: TrainState, index: int) -> dict[str, float]:
        """Additional metrics: those of the unaveraged weights if there is an average, and those of hooks."""
        found: dict[str, float] = {}
        if state.average is not None:  # the unaveraged weights may be much worse than their average
            plain = self._score(state.variables, index).summary
            found = {f'unaveraged_{name}': plain[name] for name in ('loss', self.plan.task.primary_metric)}
        if self.hooks:
            one = self.plan.seeds.select(state, index)
            for hook in self.hooks:
                found = add_metrics(found, hook(one))
        return found


def is_due(epoch: int, every: int, last: int) -> bool:
    """Whether something that happens every ``every`` epochs and after the last one is due after ``epoch``, from 1."""
    return epoch % every == 0 or epoch == last


def at_one_step(runs: Sequence[tuple[int, pathlib.Path]]) -> list[list[tuple[int, pathlib.Path]]]:
    """Groups runs that can resume together: all of them, or, without a common checkpoint, by their newest step."""
    if not runs:
        return []
    steps = [checkpoint.checkpoint_steps(workdir / CHECKPOINTS) for _, workdir in runs]
    if len(set(map(bool, steps))) == 1 and (not steps[0] or set.intersection(*map(set, steps))):
        return [list(runs)]
    groups: dict[int, list[tuple[int, pathlib.Path]]] = {}
    for run, found in zip(runs, steps, strict=True):
        groups.setdefault(max(found, default=0), []).append(run)
    return list(groups.values())


def _load_dataset(config: TrainConfig, data_dir: str | None, given: Dataset | None) -> Dataset:
    """The given dataset, or the configuration's, at the configuration's image size."""
    data, task = config.data, config.objective.task
    if given is not None:  # whether it fits the task is checked later
        return load_dataset(given, image_size=data.image_size)
    return load_dataset(data.dataset, task=task, data_dir=data_dir, image_size=data.image_size)


def _restored(plan: Plan, workdirs: Sequence[pathlib.Path]) -> tuple[int, TrainState] | None:
    """The newest step that is intact in every folder, chosen by process 0, and its state; None if there is none."""
    folders, like = [workdir / CHECKPOINTS for workdir in workdirs], saved_like(plan)

    def newest() -> tuple[int, list[Any]] | None:
        for folder in folders:
            checkpoint.remove_partial_checkpoints(folder)
        return checkpoint.restore_newest_of_all(folders, like, lambda line: print(printable(line), file=sys.stderr))

    found = in_main_process(newest)
    step = broadcast_from_main(-1 if found is None else found[0])
    if step < 0:
        return None
    saved = found[1] if found else [checkpoint.restore_checkpoint(folder, step, like) for folder in folders]
    return step, restored_state(plan, saved)


def _greeting(plan: Plan, workdirs: Sequence[pathlib.Path], step: int, record: dict[str, Any] | None) -> str:
    """Lines to show before a run is compiled; ``record`` is from before it was extended."""
    folder, lines = plan.seeds.common_folder(workdirs), []
    if record is not None and (epochs := record['config']['epochs']) != plan.config.epochs:
        lines.append(f'extending {folder} from {epochs} to {plan.config.epochs} epochs after step {step}')
        rate = float(rate_of(plan.config, plan.epoch_steps)(step))
        records = MetricsFile(workdirs[0] / 'metrics.jsonl', step, writes=False).records
        before = [one['learning_rate'] for one in records if 'learning_rate' in one]
        if before and math.isfinite(rate):
            lines[-1] += f'; the learning rate was {before[-1]:.3g} and continues at {rate:.3g}, on the longer schedule'
    elif step:
        lines.append(f'resuming {folder} after step {step}')
    train, test = len(plan.dataset.train), len(plan.dataset.test)
    here = describe_devices(list(plan.mesh.devices.flat))
    lines.append(f'{plan.config.recipe}: {train:,} training and {test:,} test examples, {here}; compiling')
    return '\n'.join(lines)
