"""Collects training metrics from the devices and writes them to files, the terminal and sinks."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.checkpoints.checkpoint import checkpoint_steps
from resnet_jax.checkpoints.metrics_files import EventFile, MetricsFile
from resnet_jax.checkpoints.record import CHECKPOINTS
from resnet_jax.errors import DivergenceError, InputError
from resnet_jax.tasks import metrics
from resnet_jax.text import shown
from resnet_jax.training.plan import Plan
from resnet_jax.training.progress import Display

# Entries of a step's sums that are not sums of the task.
_NOT_TASK_SUMS = ('skipped', 'replaced', 'gradient_norm', 'norms')
# Counts in records, which are summed over the run.
_COUNTS = ('skipped_steps', 'replaced_images')
# Entries of an evaluation record that are not metrics.
_NOT_METRICS = ('split', 'step', 'epoch', 'train_seconds', 'evaluation_seconds', 'seed')


class Log:
    """The log of one seed: lines of ``metrics.jsonl``, TensorBoard events, and terminal output.

    Args:
      plan: the plan of the run.
      index: index of the seed within the plan.
      workdir: the folder of the seed.
      step: number of steps taken so far.
      display: where training records are shown.
      sinks: functions that are called with every written record and the seed.
      writes: whether this process writes; the others only read what the main process wrote before they started.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        workdir: pathlib.Path,
        step: int,
        display: Display,
        sinks: Sequence[Callable[[dict[str, Any]], None]] = (),
        writes: bool = True,
    ):
        self._plan, self._index, self._workdir, self._sinks = plan, index, workdir, sinks
        self._reporting = plan.config.reporting
        plan.rate(step)  # compiles it, before the clock starts
        self.file = MetricsFile(workdir / 'metrics.jsonl', step, writes)
        self._norms = MetricsFile(workdir / 'norms.jsonl', step) if self._reporting.log_norms and writes else None
        self.train_seconds = self.file.records[-1]['train_seconds'] if self.file.records else 0.0
        self._board = EventFile(workdir, step) if writes else None
        self._display = display
        self._window: list[dict[str, Any]] = []
        self._step, self._interval_start, self._skipped_in_a_row = step, step, 0
        self._since = time.perf_counter()
        self._speed: float | None = None

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records of the run, including those from before it was resumed."""
        return self.file.records

    @property
    def examples_per_second(self) -> float | None:
        """Training speed in the last complete interval; None before the first."""
        return self._speed

    def totals(self) -> dict[str, Any]:
        """Best test score, seconds and counts of the whole run, including the time before it was resumed."""
        records, task = self.records, self._plan.task
        tests = [record for record in records if record['split'] == 'test']
        best = max if task.higher_is_better else min
        return {
            f'best_test_{task.primary_metric}': best(record[task.primary_metric] for record in tests),
            'train_seconds': self.train_seconds,
            'evaluation_seconds': sum(record.get('evaluation_seconds', 0.0) for record in tests),
            **{name: sum(record.get(name, 0) for record in records) for name in _COUNTS},
        }

    def start_clock(self) -> None:
        """Starts counting training time."""
        self._since = time.perf_counter()

    def step(self, step: int, sums: dict[str, Any], last: bool) -> None:
        """Records a call that has been dispatched; the calls before it have finished.

        Intervals are counted from the start of an epoch, or from where a run was resumed within it. They consist of
        whole calls, because the time of a single step within a call is not known. They end with the epoch, when
        ``last`` is set; other intervals are written with the next call, when their own calls have finished.

        Args:
          step: number of steps taken, including those of the call.
          sums: the sums of the call's steps, with a leading axis of steps.
          last: whether the call is the last of its epoch.

        Raises:
          DivergenceError: too many consecutive steps were skipped.
        """
        if self._step - self._interval_start >= self._reporting.log_every_steps:
            self._close_interval()
        self._window.append(sums)
        self._display.steps(step - self._step)
        self._step = step
        if last:
            self.flush()

    def flush(self) -> None:
        """Waits for the last call, writes everything recorded so far, and starts a new interval."""
        if self._window:
            jax.block_until_ready(self._window)
            self._close_interval()

    def _close_interval(self) -> None:
        """Writes an interval whose calls have finished, and starts the next one."""
        now = time.perf_counter()
        step, window, seconds = self._step, self._window, now - self._since
        self._window, self._since, self._interval_start = [], now, step
        calls = self._plan.seeds.select(jax.device_get(window), self._index)
        fetched = [one for call in calls for one in _single_steps(call)]
        self.train_seconds += seconds
        self._count_skipped(step - len(fetched), fetched)
        total = metrics.add_up([{k: v for k, v in one.items() if k not in _NOT_TASK_SUMS} for one in fetched])
        skipped = int(sum(one['skipped'] for one in fetched))
        rate = self._rate(step)
        record: dict[str, Any] = {'learning_rate': rate} if np.isfinite(rate) else {}
        if skipped < len(fetched):
            norms = [one['gradient_norm'] for one in fetched if not one['skipped']]
            record = self._summary(total) | record | {'gradient_norm': float(np.mean(norms))}
        self._speed = record['examples_per_second'] = len(fetched) * self._plan.config.batch_size / seconds
        if skipped:
            record['skipped_steps'] = skipped
        if replaced := int(sum(one.get('replaced', 0) for one in fetched)):
            record['replaced_images'] = replaced
        self._record('train', step, record)
        if self._norms is not None:
            layers = {name: np.asarray(values).tolist() for name, values in fetched[-1]['norms'].items()}
            if all(np.isfinite(values).all() for values in layers.values()):
                self._norms.write({'step': step, 'norms': layers})

    def _summary(self, total: dict[str, Any]) -> dict[str, float]:
        """Metrics from the sums of some steps; a custom loss only has the loss."""
        if callable(self._plan.config.objective.loss):
            return {'loss': float(total['loss'] / int(total['count']))}
        return self._plan.task.summarize(total)

    def _rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return float(self._plan.rate(step - 1))

    def _count_skipped(self, before: int, fetched: list[dict[str, Any]]) -> None:
        """Raises DivergenceError after too many consecutive skipped steps."""
        for step, one in enumerate(fetched, start=before + 1):
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if one['skipped'] else 0
            if self._skipped_in_a_row == self._reporting.max_skipped_steps:
                who = self._plan.seeds.prefix(self._workdir)
                raise DivergenceError(
                    f'{who}the loss or a gradient was not finite in {self._skipped_in_a_row} consecutive steps, up to'
                    f' step {step} (learning rate {self._rate(step):.3g}, gradient norm'
                    f' {float(one["gradient_norm"]):.3g});'
                    f' they were skipped; {self._saved()}; restart in another --workdir with a lower --learning_rate or'
                    ' more --warmup_epochs'
                )

    def _saved(self) -> str:
        """Says which checkpoint the run leaves."""
        last = max(checkpoint_steps(self._workdir / CHECKPOINTS), default=None)
        return 'no checkpoint was saved' if last is None else f'the last checkpoint, step {last}, is valid'

    def test(self, step: int, summary: dict[str, float], more: dict[str, float], evaluation_seconds: float) -> str:
        """Writes an evaluation unless it is already written, and returns its line for the terminal.

        Args:
          step: number of steps taken.
          summary: metrics of the evaluation.
          more: additional metrics; non-finite ones are dropped.
          evaluation_seconds: duration of the evaluation.

        Raises:
          DivergenceError: the loss is not finite.
          InputError: an additional metric has the name of an existing entry.
        """
        add_metrics(dict.fromkeys(_NOT_METRICS, 0.0) | summary, more)
        if not np.isfinite(summary['loss']):
            raise divergence(f'the test loss is {summary["loss"]} after step {step}')
        more = {name: float(value) for name, value in more.items() if np.isfinite(value)}
        if not self.has_test(step):
            self._record('test', step, summary | more | {'evaluation_seconds': evaluation_seconds})
        names = list(dict.fromkeys(('loss', self._plan.task.primary_metric)))
        line = f'epoch {step / self._plan.epoch_steps:g}'
        trained = [r for r in self.records if r['split'] == 'train' and 'loss' in r and r['step'] <= step]
        if trained:
            line += f'  train {_metrics(trained[-1], names)}'
        line += f'  test {_metrics(summary, names)}'
        if trained:
            line += f'  {trained[-1]["examples_per_second"]:,.0f} images/s'
        self.start_clock()
        return line

    def _record(self, split: str, step: int, values: dict[str, float]) -> None:
        place = {'split': split, 'step': step, 'epoch': step / self._plan.epoch_steps}
        record = {**place, **values, 'train_seconds': self.train_seconds}
        self.file.write(record)
        if self._board is not None:
            self._board.write({shown(f'{split}/{name}'): value for name, value in values.items()}, step)
        if split == 'train':
            self._display.training(record)
        for sink in self._sinks:
            sink(record | {'seed': self._plan.seeds.numbers[self._index]})

    def has_test(self, step: int) -> bool:
        """Whether the evaluation after a step is written."""
        return any(record['split'] == 'test' and record['step'] == step for record in self.records)

    def sync(self) -> None:
        """Flushes the metrics file to disk."""
        self.file.sync()

    def close(self) -> None:
        """Closes the files."""
        self.file.close()
        if self._norms is not None:
            self._norms.close()
        if self._board is not None:
            self._board.close()


def _single_steps(sums: dict[str, Any]) -> list[dict[str, Any]]:
    """Splits the sums of a call, ``[steps, …]``, into those of its steps."""
    count = len(sums['skipped'])
    return [jax.tree.map(lambda leaf, index=index: leaf[index], sums) for index in range(count)]


def _metrics(values: dict[str, Any], names: Sequence[str]) -> str:
    """Formats those of the named metrics that exist, for the terminal."""
    return '  '.join(f'{name} {values[name]:.4f}' for name in names if name in values)


def add_metrics(known: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """Adds the metrics of a hook to the known ones.

    Raises:
      InputError: a name occurs in both.
    """
    if taken := sorted(known.keys() & more.keys()):
        raise InputError(f'a hook returns {taken[0]!r}, which every test record already has; choose another name')
    return known | more


def divergence(what: str) -> DivergenceError:
    """The error of a run that has diverged."""
    return DivergenceError(
        f'{what}; this state was not saved; restart in another --workdir with a lower --learning_rate or more'
        ' --warmup_epochs'
    )
