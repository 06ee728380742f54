"""The training loop: the only file that logs, times and writes."""

import contextlib
import dataclasses
import pathlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset
from resnet_jax.errors import InputError, Interrupted, StorageError
from resnet_jax.models.resnet import ResNetSpec
from resnet_jax.training import checkpoint
from resnet_jax.training.checkpoint_writer import CheckpointWriter
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.cost import Profile
from resnet_jax.training.evaluation import Evaluation, Evaluator, StatisticsEstimator
from resnet_jax.training.feed import BY_THREADS, Reading, preprocessing_of
from resnet_jax.training.interruption import StopRequest
from resnet_jax.training.log import Log, divergence
from resnet_jax.training.program import Program, described, prepared
from resnet_jax.training.progress import Display, Silence, open_display
from resnet_jax.training.sharding import agree, check_batch_size, data_mesh, in_main_process, is_main_process, meet
from resnet_jax.training.step import TrainState
from resnet_jax.training.tasks import TASKS
from resnet_jax.training.workdir import (
    CHECKPOINTS,
    claim_workdir,
    describe_devices,
    describe_run,
    finished_result,
    read_record,
    write_json,
)
from resnet_jax.weights import open_source


def train_and_evaluate(
    spec: ResNetSpec,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    arch: str = 'custom',
    data_dir: str | None = None,
    dataset: Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
    profile_steps: int = 0,
    reading: Reading = BY_THREADS,
) -> dict[str, Any]:
    """Trains a network, evaluates it, and leaves everything in a folder; resumes what was interrupted there.

    Args:
      spec: architecture; its ``num_classes`` gives way to what the dataset and the task need.
      config: everything else that changes the result.
      workdir: where the files go: new, empty, or that of the same run.
      arch: the architecture's name, for the record.
      data_dir: where prepared datasets lie; None is TFDS's own folder.
      dataset: the data themselves, in place of ``config.dataset``, which then only names them.
      devices: to train on; None is all of them.
      profile_steps: so many steps, after the first few, are traced into ``workdir/profile``.
      reading: how photographs are read; it changes no result.

    Returns:
      The content of ``result.json``.

    Raises:
      InputError: a value that cannot be used; the folder is as it was.
      DivergenceError: the loss is not finite; checkpoints and metrics up to there are kept.
      StorageError: the disk does not take what is written; the last checkpoint is intact.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    runs = [(config.seed, pathlib.Path(workdir))]
    given: dict[str, Any] = {'data_dir': data_dir, 'dataset': dataset, 'devices': devices, 'reading': reading}
    return _train_together(spec, config, runs, arch=arch, profile_steps=profile_steps, **given)[0]


def train_seeds(
    spec: ResNetSpec, config: TrainConfig, workdir: str | pathlib.Path, num_seeds: int, **kwargs: Any
) -> dict[str, Any]:
    """``train_and_evaluate`` with the seeds ``config.seed``, ``config.seed + 1``, …, all in one program.

    Args:
      spec: architecture.
      config: its seed is the first one.
      workdir: gets a folder ``seedS`` for each, and a ``result.json`` of all.
      num_seeds: how many, at least 1.
      **kwargs: for ``train_and_evaluate``.

    Returns:
      The results of the single runs, and mean and sample standard deviation of the task's headline metric.
    """
    if num_seeds < 1:
        raise InputError(f'num_seeds={num_seeds} must be at least 1')
    workdir = pathlib.Path(workdir)
    if (workdir / 'config.json').exists():
        raise InputError(f'workdir={workdir} holds a single run; choose another folder for num_seeds={num_seeds}')
    seeds = range(config.seed, config.seed + num_seeds)
    runs = _train_together(spec, config, [(seed, workdir / f'seed{seed}') for seed in seeds], **kwargs)
    headline = TASKS[config.task].headline
    scores = [run[f'test_{headline}'] for run in runs]
    result = {
        f'test_{headline}_mean': float(np.mean(scores)),
        f'test_{headline}_std': float(np.std(scores, ddof=1)) if num_seeds > 1 else 0.0,
        'seeds': list(seeds),
        'runs': runs,
    }
    if is_main_process():
        write_json(workdir / 'result.json', result)
    return result


def _train_together(
    spec: ResNetSpec,
    config: TrainConfig,
    runs: Sequence[tuple[int, pathlib.Path]],
    *,
    arch: str = 'custom',
    data_dir: str | None = None,
    dataset: Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
    profile_steps: int = 0,
    reading: Reading = BY_THREADS,
) -> list[dict[str, Any]]:
    """As ``train_and_evaluate``, runs that differ in their seed and folder alone; each leaves what it would alone."""
    results: dict[int, dict[str, Any]] = {}
    for seed, workdir in runs:
        if result := finished_result(workdir, dataclasses.asdict(spec), dataclasses.replace(config, seed=seed)):
            if is_main_process():
                print(f'{workdir} is finished: nothing to do')
            results[seed] = result
    open_runs = [(seed, workdir) for seed, workdir in runs if seed not in results]
    if not open_runs:
        return [results[seed] for seed, _ in runs]
    mesh = data_mesh(devices)
    check_batch_size(config.batch_size, config.accumulation_steps, mesh)
    if dataset is None:
        dataset = load_dataset(config.dataset, task=config.task, data_dir=data_dir, image_size=config.image_size)
    groups = _at_one_step(open_runs)
    while groups:
        group = groups.pop(0)
        try:
            run = _Run(spec, config, group, dataset, mesh, arch, reading)
        except _PartedError:
            groups = [*_at_one_step(group), *groups]
            continue
        results |= dict(zip((seed for seed, _ in group), run.train(profile_steps), strict=True))
    return [results[seed] for seed, _ in runs]


def _at_one_step(runs: Sequence[tuple[int, pathlib.Path]]) -> list[list[tuple[int, pathlib.Path]]]:
    """The runs that can go on together: all, or if they have no checkpoint in common, those that have the same."""
    steps = [checkpoint.checkpoint_steps(workdir / CHECKPOINTS) for _, workdir in runs]
    if len(set(map(bool, steps))) == 1 and (not steps[0] or set.intersection(*map(set, steps))):
        return [list(runs)]
    groups: dict[int, list[tuple[int, pathlib.Path]]] = {}
    for run, found in zip(runs, steps, strict=True):
        groups.setdefault(max(found, default=0), []).append(run)
    return list(groups.values())


class _PartedError(Exception):
    """Damage has left runs without a step in common, though some of them have steps."""


class _Run:
    """Runs that take every step together: mostly one.

    Args:
      spec: architecture.
      config: of all of them; their seeds come with ``runs``.
      runs: seed and folder of each.
      dataset: not yet normalized as the run needs it.
      mesh: of the devices.
      arch: the architecture's name.
      reading: how photographs are read.
    """

    def __init__(
        self,
        spec: ResNetSpec,
        config: TrainConfig,
        runs: Sequence[tuple[int, pathlib.Path]],
        dataset: Dataset,
        mesh: Any,
        arch: str,
        reading: Reading,
    ):
        self.reading = reading
        self.config, self.arch, self.devices = config, arch, list(mesh.devices.flat)
        self.seeds, self.workdirs = zip(*runs, strict=True)
        self.folders = [workdir / CHECKPOINTS for workdir in self.workdirs]
        # Process 0 decides, for its files may be there before another process looks.
        begun = bool(agree(all((workdir / 'config.json').exists() for workdir in self.workdirs)))
        # A run that has begun holds everything that its initial weights brought.
        source = None if begun or config.init_from is None else open_source(config.init_from)
        record = read_record(self.workdirs[0]) if begun else None
        self.begun_on = record['device'] if record else describe_devices(self.devices)
        self.dataset = prepared(dataset, config, source, record)
        spec = dataclasses.replace(spec, num_classes=TASKS[config.task].num_outputs(dataset.num_classes))
        self.program = Program(spec, config, self.seeds, self.dataset, mesh, reading)
        loaded = None if source is None else self.program.load(source)
        in_main_process(self._claim)
        self.saved: int | None = None
        state = self._restore() if begun else None
        if state is None:
            if begun and len(_at_one_step(runs)) > 1:
                raise _PartedError
            if begun and config.init_from is not None:
                loaded = self.program.load(open_source(config.init_from))
            state = self.program.initial_state(loaded)
        self.state = state
        self.step = self.saved or 0
        self.tested: int | None = None  # the step that ``tests`` are of
        self.tests: list[Evaluation] = []
        self.told = False

    def _claim(self) -> None:
        spec = dataclasses.asdict(self.program.model.spec)
        for seed, workdir in zip(self.seeds, self.workdirs, strict=True):
            config = dataclasses.replace(self.config, seed=seed)
            claim_workdir(workdir, describe_run(self.arch, spec, config, described(self.dataset), self.devices))

    def _restore(self) -> TrainState | None:
        """The newest state that every folder has intact, which process 0 decides; None where there is none."""
        like = self.program.saved_like

        def newest() -> tuple[int, list[Any]] | None:
            for folder in self.folders:
                checkpoint.remove_partial_checkpoints(folder)
            return checkpoint.restore_newest_of_all(self.folders, like, lambda line: print(line, file=sys.stderr))

        found = in_main_process(newest)
        step = agree(-1 if found is None else found[0])
        if step < 0:
            return None
        self.saved = step
        states = found[1] if found else [checkpoint.restore_checkpoint(folder, step, like) for folder in self.folders]
        return self.program.state_from(states)

    def train(self, profile_steps: int) -> list[dict[str, Any]]:
        """Trains to the end and gives the results."""
        config, program = self.config, self.program
        main = is_main_process()
        with contextlib.ExitStack() as stack:
            shown = main and open_display(program.total_steps, self.step, program.task.headline)
            self.display: Display = shown or Silence()
            stack.callback(self.display.close)
            stack.callback(program.close)
            self.writer = stack.enter_context(CheckpointWriter(keep=2)) if main else None
            self.logs = []
            for index, workdir in enumerate(self.workdirs):
                place = index if len(self.workdirs) > 1 else None
                display = Silence() if index else self.display
                options = (program.task, config, program.epoch_steps, self.step, display, place)
                self.logs.append(Log(workdir, *options, writes=main))
                stack.callback(self.logs[-1].close)
            stop = stack.enter_context(StopRequest())
            try:
                self._train(stop, stack.enter_context(Profile(self.workdirs[0], profile_steps)))
            except Interrupted as interrupted:
                self._leave(interrupted)
            if self.writer is not None:
                self.writer.close()
            results = [self._result(index) for index in range(len(self.workdirs))]
            meet('end of the run')
            return results

    def _train(self, stop: StopRequest, profile: Profile) -> None:
        config, program, dataset = self.config, self.program, self.dataset
        if self.saved is not None:
            where = self.workdirs[0] if len(self.workdirs) == 1 else self.workdirs[0].parent
            here = describe_devices(self.devices)
            # The numbers of other devices differ by rounding.
            elsewhere = '' if self.begun_on == here else f'; it was begun on {self.begun_on}'
            self.display.message(f'resuming {where} after step {self.saved}{elsewhere}')
        self.display.message(
            f'{config.recipe}: {len(dataset.train):,} training and {len(dataset.test):,} test examples,'
            f' {describe_devices(self.devices)}; compiling'
        )
        how: dict[str, Any] = {'mean': dataset.mean, 'std': dataset.std, 'devices': self.devices}
        how |= {'preprocessing': preprocessing_of(dataset, config), 'reading': self.reading}
        asked: dict[str, Any] = {'task': program.task, 'flip': config.test_flip, 'shift': config.test_shift}
        self.evaluator = Evaluator(program.model, dataset.test, **asked, **how)
        self.estimator: StatisticsEstimator | None = None
        if (num := config.reestimate_examples) > 0:
            self.estimator = StatisticsEstimator(program.model, dataset.train, num_examples=num, **how)
        step_fn = stop.wait_for(lambda: program.compile_step(self.state))
        variables = program.eval_variables(self.state)[0]
        stop.wait_for(lambda: self.evaluator.compile(variables))
        if (estimator := self.estimator) is not None:
            stop.wait_for(lambda: estimator.compile(variables))
        self.cost = program.cost()
        self.display.message(self.cost.card())
        for log in self.logs:
            log.start_clock()
        if self.step and self.step % program.epoch_steps == 0:  # what came after this step may have been cut off
            self._end_epoch(stop)
        start: int = self.step
        before: Any = ()
        for step in range(start, program.total_steps):
            profile.at(step - start)
            with jax.transfer_guard('disallow'):
                try:
                    self.state, sums = step_fn(self.state, step)
                except StorageError:
                    stop.check()  # who ends a run may have ended first what reads for it
                    raise
            # So many steps are under way at most that a signal is obeyed within one of them.
            jax.block_until_ready(before)
            before = sums
            self.step = step + 1
            last = self.step % program.epoch_steps == 0
            for log in self.logs:
                log.step(self.step, sums, last)
            self._tell_speed()
            every = config.checkpoint_every_steps
            if every and self.step % every == 0 and not last:
                self._save()
            if self.writer is not None:
                self.writer.check()  # a full disk, at once
            if stop.at_step(self.step):
                stop.check()
            if last:
                self._end_epoch(stop)
        if self.tested != self.step:
            self._evaluate(stop)

    def _tell_speed(self) -> None:
        if not self.told and (speed := self.logs[0].examples_per_second) is not None:
            self.told = True
            self.display.message(self.cost.speed(speed * len(self.seeds)))

    def _evaluate(self, stop: StopRequest) -> None:
        start = time.perf_counter()
        if self.estimator is not None:
            self.state = self.program.with_statistics(self.state, self.estimator, stop.check)
        state, variables_of = self.state, self.program.eval_variables
        self.tests = [self.evaluator(one, stop.check) for one in variables_of(state)]
        self.unaveraged: Sequence[Evaluation | None] = [None] * len(self.tests)
        if state.average is not None:
            plain = dataclasses.replace(state, average=None)
            self.unaveraged = [self.evaluator(one, stop.check) for one in variables_of(plain)]
        self.evaluation_seconds = time.perf_counter() - start
        self.tested = self.step

    def _end_epoch(self, stop: StopRequest) -> None:
        """Evaluates and saves where that is due and not done."""
        config, epoch = self.config, self.step // self.program.epoch_steps
        # A checkpoint of a run that was stopped here, and was killed before it was written anew, has no score.
        scored = self.saved != self.step or None not in [
            checkpoint.score_of(folder, self.step) for folder in self.folders
        ]
        known = agree(scored and all(log.has_test(self.step) for log in self.logs))
        if is_due(epoch, config.eval_every_epochs, config.epochs) and not known:
            self._evaluate(stop)
            lines = []
            for log, test, plain in zip(self.logs, self.tests, self.unaveraged, strict=True):
                unaveraged = None if plain is None else plain.summary
                lines.append(log.test(self.step, test.summary, unaveraged, self.evaluation_seconds))
            self.display.message(lines[0] if len(lines) == 1 else self._of_all(epoch))
        due = is_due(epoch, config.checkpoint_every_epochs, config.epochs)
        if due and (self.tested == self.step or self.saved != self.step):
            self._save()

    def _of_all(self, epoch: int) -> str:
        headline = self.program.task.headline
        scores = [test.summary[headline] for test in self.tests]
        return f'epoch {epoch}  test {headline} {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}'

    def _save(self) -> None:
        """Hands the state to the writer, with the score if it was just evaluated."""
        for log in self.logs:
            log.flush()
        states = self.program.saved_states(self.state)
        for state in states:
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)):
                raise divergence(f'a weight is not finite after step {self.step}')
        scores: list[float | None] = [None] * len(states)
        if self.tested == self.step:
            scores = [test.summary[self.program.task.headline] for test in self.tests]
        if self.writer is not None:
            for log in self.logs:
                log.sync()
            self.writer.save(self.step, list(zip(self.folders, states, scores, strict=True)))
        self.saved = self.step
        for log in self.logs:
            log.start_clock()

    def _leave(self, interrupted: Interrupted) -> NoReturn:
        """Saves what is not saved, and says so."""
        if self.step > (self.saved or 0):
            self._save()
        if self.writer is not None:
            self.writer.close()
        meet('stopped')
        kept = f'after step {self.step}, which is saved' if self.step else 'before the first step'
        name = signal.Signals(interrupted.signal).name
        raise Interrupted(f'stopped by {name} {kept}; the same command goes on from there', interrupted.signal)

    def _result(self, index: int) -> dict[str, Any]:
        """Writes picture and result of a run."""
        from resnet_jax.training.report import draw_report, result_drawing  # Matplotlib is slow to import

        config, dataset, log, test = self.config, self.dataset, self.logs[index], self.tests[index]
        summary, headline = test.summary, self.program.task.headline
        speed = self.program.total_steps * config.batch_size / log.train_seconds
        result = {
            **{f'test_{name}': value for name, value in summary.items()},
            'num_test_examples': len(test.examples),
            'num_train_examples': len(dataset.train),
            'steps': self.program.total_steps,
            'epochs': config.epochs,
            **log.totals(),
            **self.cost.record(speed, len(self.seeds)),
            'seed': self.seeds[index],
            'arch': self.arch,
            'dataset': config.dataset,
            'task': config.task,
            'recipe': config.recipe,
            'device': describe_devices(self.devices),
        }
        if config.dataset == 'synthetic':
            result['note'] = 'random images and labels, for timing only: the accuracy means nothing'
        if is_main_process():
            workdir = self.workdirs[index]
            title = f'{self.arch} on {config.dataset}, seed {result["seed"]}: test {headline} {summary[headline]:.4f}'
            drawing = result_drawing(self.program.task, test, dataset.class_names)
            draw_report(workdir / 'report.png', title, log.file.records, headline, drawing)
            write_json(workdir / 'result.json', result)
        return result


def is_due(epoch: int, every: int, last: int) -> bool:
    """Whether something that happens every so many epochs, and after the last, happens after this one (from 1)."""
    return epoch % every == 0 or epoch == last
