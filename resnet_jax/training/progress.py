"""What a run shows on the terminal: a bar that moves, or plain lines where nobody watches."""

import sys
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display(Protocol):
    """Where a run reports."""

    def message(self, line: str) -> None:
        """Shows a line that stays."""

    def step(self) -> None:
        """Notes that a step was started."""

    def training(self, record: dict[str, Any]) -> None:
        """Shows a record of the training metrics."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


class Bar:
    """A progress bar with epoch, loss, the task's primary metric, images per second and the time left."""

    def __init__(self, total_steps: int, done_steps: int, primary_metric: str):
        self._primary_metric = primary_metric
        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('{task.fields[status]}'),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(file=sys.stdout))
        self._task = self._progress.add_task('training', total=total_steps, completed=done_steps, status='')
        self._progress.start()

    def message(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def step(self) -> None:
        self._progress.advance(self._task)

    def training(self, record: dict[str, Any]) -> None:
        speed = f'{record["examples_per_second"]:,.0f} images/s'
        names = dict.fromkeys(('loss', self._primary_metric))
        learnt = '  '.join(f'{name} {record[name]:.3f}' for name in names if name in record)
        status = f'{learnt or "-"}  {speed}'
        self._progress.update(self._task, status=status, description=f'epoch {record["epoch"]:.1f}')

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """Plain lines for logs and pipes: messages, and a line of training metrics at most every half a minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def message(self, line: str) -> None:
        print(line, flush=True)

    def step(self) -> None:
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
    """Shows nothing: for processes and runs beside the one that speaks."""

    def message(self, line: str) -> None:
        pass

    def step(self) -> None:
        pass

    def training(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def open_display(total_steps: int, done_steps: int, primary_metric: str) -> Display:
    """A bar on a terminal, lines elsewhere."""
    return Bar(total_steps, done_steps, primary_metric) if sys.stdout.isatty() else Lines()
