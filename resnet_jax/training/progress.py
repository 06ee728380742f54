"""Terminal output of a run: a progress bar, or plain lines if stdout is not a terminal."""

import sys
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_jax.text import print_lines, printable


class Display(Protocol):
    """The interface of terminal outputs."""

    def message(self, line: str) -> None:
        """Shows a permanent line."""

    def steps(self, count: int) -> None:
        """Counts steps."""

    def training(self, record: dict[str, Any]) -> None:
        """Shows a record of the training metrics."""

    def close(self) -> None:
        """Restores the terminal."""


class Bar:
    """A progress bar with epoch, loss, the task's primary metric, images per second and the time left."""

    def __init__(self, total_steps: int, done_steps: int, primary_metric: str):
        self._primary_metric = primary_metric
        columns = (
            TextColumn('{task.description}', markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('{task.fields[status]}', markup=False),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(file=sys.stdout))
        self._task = self._progress.add_task('training', total=total_steps, completed=done_steps, status='')
        self._progress.start()

    def message(self, line: str) -> None:
        line = '\n'.join(map(printable, line.split('\n')))
        self._progress.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def steps(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def training(self, record: dict[str, Any]) -> None:
        speed = f'{record["examples_per_second"]:,.0f} images/s'
        names = dict.fromkeys(('loss', self._primary_metric))
        metrics = '  '.join(f'{name} {record[name]:.3f}' for name in names if name in record)
        status = f'{metrics or "-"}  {speed}'
        self._progress.update(self._task, status=status, description=f'epoch {record["epoch"]:.1f}')

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """Plain lines for logs and pipes: messages, and training metrics at most every 30 seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def message(self, line: str) -> None:
        print_lines(line)

    def steps(self, count: int) -> None:
        pass

    def training(self, record: dict[str, Any]) -> None:
        if time.monotonic() - self._last >= 30:
            self._last = time.monotonic()
            print(
                f'  epoch {record["epoch"]:.2f}  step {record["step"]}  loss {record.get("loss", float("nan")):.4f}'
                f'  {record["examples_per_second"]:,.0f} images/s',
                flush=True,
            )

    def close(self) -> None:
        pass


class Silence:
    """Shows nothing: for all processes and seeds but the first."""

    def message(self, line: str) -> None:
        pass

    def steps(self, count: int) -> None:
        pass

    def training(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def open_display(total_steps: int, done_steps: int, primary_metric: str) -> Display:
    """Opens a progress bar on a terminal, plain lines otherwise."""
    return Bar(total_steps, done_steps, primary_metric) if sys.stdout.isatty() else Lines()
