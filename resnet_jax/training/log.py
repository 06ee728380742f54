"""Training metrics on their way from the device to the files and the terminal."""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from resnet_jax.errors import DivergenceError
from resnet_jax.training import metrics
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.progress import Display
from resnet_jax.training.schedules import learning_rate_schedule
from resnet_jax.training.tasks import Task
from resnet_jax.training.workdir import EventFile, MetricsFile

# What a step gives beside the sums of its task.
_OF_A_STEP = ('skipped', 'replaced', 'gradient_norm', 'norms')
# What records count, of which a run has the sums.
_COUNTED = ('skipped_steps', 'replaced_images')


class Log:
    """What a run reports: lines of ``metrics.jsonl``, TensorBoard's events, and what the terminal shows.

    Args:
      workdir: of the run.
      task: what the network is trained for.
      config: of the run.
      epoch_steps: steps in an epoch.
      step: the steps taken so far.
      display: where records of the training are shown.
      place: which of the runs that take every step together this one is; None where it is alone.
      writes: whether this process writes; the ones beside the main one read what it wrote before they started.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        task: Task,
        config: TrainConfig,
        epoch_steps: int,
        step: int,
        display: Display,
        place: int | None = None,
        writes: bool = True,
    ):
        self._task, self._config, self._epoch_steps, self._place = task, config, epoch_steps, place
        self._workdir, self._schedule = workdir, learning_rate_schedule(config, epoch_steps)
        self.file = MetricsFile(workdir / 'metrics.jsonl', step, writes)
        self._norms = MetricsFile(workdir / 'norms.jsonl', step) if config.log_norms and writes else None
        self.train_seconds = self.file.records[-1]['train_seconds'] if self.file.records else 0.0
        self._board = EventFile(workdir, step) if writes else None
        self._display = display
        self._window: list[dict[str, Any]] = []
        self._ready: tuple[int, list[dict[str, Any]], float] | None = None  # last step, sums and seconds
        self._skipped_in_a_row = 0
        self._since = time.perf_counter()
        self._speed: float | None = None

    @property
    def examples_per_second(self) -> float | None:
        """Of the last interval that this process has seen the end of; None before."""
        return self._speed

    def totals(self) -> dict[str, Any]:
        """Of the whole run, before and after all resumptions: the best test score, seconds, and what was counted."""
        records, headline = self.file.records, self._task.headline
        tests = [record for record in records if record['split'] == 'test']
        return {
            f'best_test_{headline}': max(record[headline] for record in tests),
            'train_seconds': self.train_seconds,
            'evaluation_seconds': sum(record.get('evaluation_seconds', 0.0) for record in tests),
            **{name: sum(record.get(name, 0) for record in records) for name in _COUNTED},
        }

    def start_clock(self) -> None:
        """Training time counts from here."""
        self._since = time.perf_counter()

    def step(self, step: int, sums: dict[str, Any], last: bool) -> None:
        """Takes what a step gave; writes that of the interval before, which the device has finished by now.

        Intervals are counted from the start of an epoch, or of a run that was resumed in its midst, and end with it,
        when ``last`` is set.

        Raises:
          DivergenceError: too many steps in a row were skipped.
        """
        self._window.append(sums)
        self._step = step
        self._display.step()
        if len(self._window) == self._config.log_every_steps:
            self._write_ready()
            self._close_interval()  # its last step is under way: that much of its time is in the next one's
        if last:
            self.flush()

    def flush(self) -> None:
        """Writes what there is; a new interval begins."""
        self._write_ready()
        if self._window:
            jax.block_until_ready(self._window)
            self._close_interval()
            self._write_ready()

    def _close_interval(self) -> None:
        now = time.perf_counter()
        self._ready, self._window = (self._step, self._window, now - self._since), []
        self._since = now

    def _write_ready(self) -> None:
        if self._ready is None:
            return
        (step, window, seconds), self._ready = self._ready, None
        fetched = jax.device_get(window)
        if self._place is not None:
            fetched = jax.tree.map(lambda leaf: leaf[self._place], fetched)
        self.train_seconds += seconds
        self._count_skipped(step - len(window), fetched)
        total = metrics.add_up([{k: v for k, v in one.items() if k not in _OF_A_STEP} for one in fetched])
        skipped = int(sum(one['skipped'] for one in fetched))
        record: dict[str, Any] = {'learning_rate': self._rate(step)}
        if skipped < len(window):
            norms = [one['gradient_norm'] for one in fetched if not one['skipped']]
            record = self._task.summarize(total) | record | {'gradient_norm': float(np.mean(norms))}
        self._speed = record['examples_per_second'] = len(window) * self._config.batch_size / seconds
        if skipped:
            record['skipped_steps'] = skipped
        if replaced := int(sum(one.get('replaced', 0) for one in fetched)):
            record['replaced_images'] = replaced
        self._record('train', step, record)
        if self._norms is not None:
            layers = {name: np.asarray(values).tolist() for name, values in fetched[-1]['norms'].items()}
            if all(np.isfinite(values).all() for values in layers.values()):
                self._norms.write({'step': step, 'norms': layers})

    def _rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return float(self._schedule(step - 1))

    def _count_skipped(self, before: int, fetched: list[dict[str, Any]]) -> None:
        """Stops a run that no longer learns."""
        for step, one in enumerate(fetched, start=before + 1):
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if one['skipped'] else 0
            if self._skipped_in_a_row == self._config.max_skipped_steps:
                who = '' if self._place is None else f'{self._workdir}: '
                raise DivergenceError(
                    f'{who}the loss or a gradient was not finite in {self._skipped_in_a_row} steps in a row, to step'
                    f' {step} (learning rate {self._rate(step):.3g}, gradient norm {float(one["gradient_norm"]):.3g});'
                    ' none of them changed the weights, and the last checkpoint is good: start again in another'
                    ' --workdir with a lower --learning_rate or more --warmup_epochs'
                )

    def test(
        self, step: int, summary: dict[str, float], unaveraged: dict[str, float] | None, evaluation_seconds: float
    ) -> str:
        """Writes an evaluation, unless it is written, and gives the line that tells of it.

        Args:
          step: the steps taken.
          summary: metrics of what is evaluated.
          unaveraged: where that is an average, those of the network that is trained.
          evaluation_seconds: that it took.
        """
        if not np.isfinite(summary['loss']):
            raise divergence(f'the test loss is {summary["loss"]} after step {step}')
        headline = self._task.headline
        # Weights that are trained may be of no use where their average is.
        plain = {f'unaveraged_{k}': unaveraged[k] for k in ('loss', headline)} if unaveraged else {}
        plain = {name: value for name, value in plain.items() if np.isfinite(value)}
        if not self.has_test(step):
            self._record('test', step, summary | plain | {'evaluation_seconds': evaluation_seconds})
        line = f'epoch {step / self._epoch_steps:g}'
        trained = [r for r in self.file.records if r['split'] == 'train' and 'loss' in r and r['step'] <= step]
        if trained:
            line += f'  train loss {trained[-1]["loss"]:.4f}  {headline} {trained[-1][headline]:.4f}'
        line += f'  test loss {summary["loss"]:.4f}  {headline} {summary[headline]:.4f}'
        if trained:
            line += f'  {trained[-1]["examples_per_second"]:,.0f} images/s'
        self.start_clock()
        return line

    def _record(self, split: str, step: int, values: dict[str, float]) -> None:
        place = {'split': split, 'step': step, 'epoch': step / self._epoch_steps}
        record = {**place, **values, 'train_seconds': self.train_seconds}
        self.file.write(record)
        if self._board is not None:
            self._board.write({f'{split}/{name}': value for name, value in values.items()}, step)
        if split == 'train':
            self._display.training(record)

    def has_test(self, step: int) -> bool:
        """Whether the evaluation after a step is written."""
        return any(record['split'] == 'test' and record['step'] == step for record in self.file.records)

    def sync(self) -> None:
        """Has what is written on the disk."""
        self.file.sync()

    def close(self) -> None:
        """Leaves the files whole."""
        self.file.close()
        if self._norms is not None:
            self._norms.close()
        if self._board is not None:
            self._board.close()


def divergence(what: str) -> DivergenceError:
    """The error of a run that cannot go on."""
    return DivergenceError(
        f'{what}; nothing of it was saved: start again in another --workdir with a lower --learning_rate or more'
        ' --warmup_epochs'
    )
