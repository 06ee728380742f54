"""Training metrics on their way from the device to the files and the terminal."""

import pathlib
import time

import jax
import numpy as np
from tensorboardX import SummaryWriter

from resnet_jax.errors import DivergenceError
from resnet_jax.training import metrics
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.optim import learning_rate_schedule
from resnet_jax.training.progress import Display, open_display
from resnet_jax.training.tasks import Task
from resnet_jax.training.workdir import MetricsFile


class Log:
    """What a run reports: lines of ``metrics.jsonl``, TensorBoard's events, and what the terminal shows.

    Args:
      workdir: of the run.
      task: what the network is trained for.
      config: of the run.
      epoch_steps: steps in an epoch.
      step: the steps taken so far.
    """

    def __init__(self, workdir: pathlib.Path, task: Task, config: TrainConfig, epoch_steps: int, step: int):
        self._task, self._config, self._epoch_steps = task, config, epoch_steps
        self._schedule = learning_rate_schedule(config, epoch_steps)
        self.file = MetricsFile(workdir / 'metrics.jsonl', step)
        self.train_seconds = self.file.records[-1]['train_seconds'] if self.file.records else 0.0
        self._board = SummaryWriter(str(workdir), purge_step=step + 1)
        self.display: Display = open_display(config.epochs * epoch_steps, step, task.headline)
        self._window: list[dict[str, jax.Array]] = []
        self._ready: tuple[int, list[dict[str, jax.Array]]] | None = None
        self._since = time.perf_counter()

    def start_clock(self) -> None:
        """Training time counts from here."""
        self._since = time.perf_counter()

    def step(self, step: int, sums: dict[str, jax.Array], last: bool) -> None:
        """Takes the sums of a step; writes those of the interval before, which the device has finished by now.

        Intervals are counted from the start of an epoch and end with it, when ``last`` is set.
        """
        self._window.append(sums)
        self.display.step()
        if last or len(self._window) == self._config.log_every_steps:
            self._write_ready()
            self._ready, self._window = (step, self._window), []
        if last:
            self._write_ready()

    def _write_ready(self) -> None:
        if self._ready is None:
            return
        (step, window), self._ready = self._ready, None
        summary = self._task.summarize(total := metrics.add_up(window))
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.train_seconds += seconds
        rate = float(self._schedule(step - 1))
        if not np.isfinite(summary['loss']):
            raise divergence(f'the loss is {summary["loss"]} at step {step} (learning rate {rate:.3g})')
        self._record('train', step, summary | {'learning_rate': rate, 'examples_per_second': total['count'] / seconds})

    def test(self, step: int, summary: dict[str, float]) -> None:
        """Writes an evaluation."""
        if not np.isfinite(summary['loss']):
            raise divergence(f'the test loss is {summary["loss"]} after step {step}')
        self._record('test', step, summary)
        train = next(record for record in reversed(self.file.records) if record['split'] == 'train')
        headline = self._task.headline
        self.display.message(
            f'epoch {step / self._epoch_steps:g}  train loss {train["loss"]:.4f}  {headline} {train[headline]:.4f}'
            f'  test loss {summary["loss"]:.4f}  {headline} {summary[headline]:.4f}'
            f'  {train["examples_per_second"]:,.0f} images/s'
        )
        self.start_clock()

    def _record(self, split: str, step: int, values: dict[str, float]) -> None:
        place = {'split': split, 'step': step, 'epoch': step / self._epoch_steps}
        record = {**place, **values, 'train_seconds': self.train_seconds}
        self.file.write(record)
        for name, value in values.items():
            self._board.add_scalar(f'{split}/{name}', value, step)
        if split == 'train':
            self.display.training(record)

    def close(self) -> None:
        """Leaves the files whole and the terminal as it was."""
        self.display.close()
        self.file.close()
        self._board.close()


def divergence(what: str) -> DivergenceError:
    """The error of a run that cannot go on."""
    return DivergenceError(
        f'{what}; nothing of it was saved: start again in another --workdir with a lower --learning_rate or more'
        ' --warmup_epochs'
    )
