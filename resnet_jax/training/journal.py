"""The logs, terminal output and checkpoints of a run."""

import contextlib
import pathlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.record import CHECKPOINTS
from resnet_jax.checkpoints.writer import CheckpointWriter
from resnet_jax.devices import barrier, broadcast_from_main, is_main_process
from resnet_jax.errors import Interrupted
from resnet_jax.training.cost import Cost
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.log import Log, divergence
from resnet_jax.training.plan import Plan
from resnet_jax.training.progress import Display, Silence, open_display
from resnet_jax.training.states import saved_states
from resnet_jax.training.step import TrainState

# Receives each record of ``metrics.jsonl``: ``split``, ``step``, ``epoch``, ``seed`` and metrics by name. It is called
# in the main process after the record is written.
Sink = Callable[[dict[str, Any]], None]
# Called with the state of one seed at every evaluation; returns metrics by name.
Hook = Callable[[TrainState], dict[str, float]]


class Journal:
    """The logs, terminal output and checkpoints of a run; it keeps track of the last step and its state.

    Args:
      plan: the plan of the run.
      workdirs: the folder of each seed.
      state: the state after ``step`` steps.
      step: number of steps already taken.
      logs: the log of each seed.
      display: where messages are shown.
      writer: writes checkpoints; None except in the main process.

    Attributes:
      evaluations: the last evaluation of each seed.
    """

    def __init__(
        self,
        plan: Plan,
        workdirs: Sequence[pathlib.Path],
        state: TrainState,
        step: int,
        logs: Sequence[Log],
        display: Display,
        writer: CheckpointWriter | None,
    ):
        self._plan, self._display, self._writer = plan, display, writer
        self._folders = [workdir / CHECKPOINTS for workdir in workdirs]
        self._step, self._state, self._saved = step, state, step or None
        self._evaluated: int | None = None
        self._extra_metrics: list[dict[str, float]] = []
        self._evaluation_seconds = 0.0
        self._speed_reported = False
        self.logs = logs
        self.evaluations: list[Evaluation] = []

    @property
    def is_evaluated(self) -> bool:
        """Whether ``evaluations`` belong to the last step."""
        return self._evaluated == self._step

    @property
    def is_saved(self) -> bool:
        """Whether the last step is saved, possibly without its score."""
        return self._saved == self._step

    def message(self, line: str) -> None:
        """Shows a permanent line."""
        self._display.message(line)

    def start_clock(self) -> None:
        """Starts counting training time."""
        for log in self.logs:
            log.start_clock()

    def step(self, step: int, state: TrainState, sums: dict[str, Any], epoch_ends: bool, cost: Cost) -> None:
        """Records the steps of a call, up to ``step``, that have been dispatched; ``sums`` as from ``Compiled.step``.

        Raises:
          DivergenceError: too many consecutive steps were skipped.
          StorageError: a file cannot be written.
        """
        self._step, self._state = step, state
        for log in self.logs:
            log.step(step, sums, epoch_ends)
        if not self._speed_reported and (speed := self.logs[0].examples_per_second) is not None:
            self._speed_reported = True
            self.message(cost.speed(speed * len(self.logs)))
        if self._writer is not None:
            self._writer.check()  # reports a full disk at once

    def is_test_recorded(self) -> bool:
        """Whether the last step was evaluated, and both its records and its checkpoint contain the result."""
        # The checkpoint has no score if the run was interrupted here and then killed before saving it again.
        scored = not self.is_saved or None not in [checkpoint.score_of(folder, self._step) for folder in self._folders]
        return bool(broadcast_from_main(scored and all(log.has_test(self._step) for log in self.logs)))

    def evaluated(
        self,
        state: TrainState,
        evaluations: Sequence[Evaluation],
        more: Sequence[dict[str, float]],
        seconds: float,
    ) -> None:
        """Records the evaluation of the last step and additional metrics, one of each per seed."""
        self._state, self._evaluated, self._evaluation_seconds = state, self._step, seconds
        self.evaluations, self._extra_metrics = list(evaluations), list(more)

    def write_test(self) -> None:
        """Writes the last evaluation to the logs and shows it in one line."""
        lines = [
            log.test(self._step, test.summary, more, self._evaluation_seconds)
            for log, test, more in zip(self.logs, self.evaluations, self._extra_metrics, strict=True)
        ]
        metric, epoch = self._plan.task.primary_metric, self._step // self._plan.epoch_steps
        scores = [test.summary[metric] for test in self.evaluations]
        self.message(self._plan.seeds.summary_line(lines, f'epoch {epoch}  test {metric}', scores))

    def save(self) -> None:
        """Passes the state to the writer, with its score if it was just evaluated.

        Raises:
          DivergenceError: a weight is not finite.
        """
        for log in self.logs:
            log.flush()
        states = saved_states(self._plan, self._state)
        for state in states:
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)):
                raise divergence(f'a weight is not finite after step {self._step}')
        scores: list[float | None] = [None] * len(states)
        if self.is_evaluated:
            sign = 1 if self._plan.task.higher_is_better else -1
            scores = [sign * test.summary[self._plan.task.primary_metric] for test in self.evaluations]
        if self._writer is not None:
            for log in self.logs:
                log.sync()
            self._writer.save(self._step, list(zip(self._folders, states, scores, strict=True)))
        self._saved = self._step
        self.start_clock()

    @contextlib.contextmanager
    def saved_on_signal(self) -> Iterator[None]:
        """Saves the state if a signal interrupts the body, and adds a message to the exception.

        It must be the innermost context: closing others may fail, so the state must be saved first.

        Raises:
          Interrupted: with the message.
        """
        try:
            yield
        except Interrupted as interrupted:
            self._save_and_raise(interrupted)

    def _save_and_raise(self, interrupted: Interrupted) -> NoReturn:
        """Saves the state if needed and raises Interrupted with a message."""
        if self._step > (self._saved or 0):
            self.save()
        self.finish()
        barrier('stopped')
        place = f'after step {self._step}, which is saved' if self._step else 'before the first step'
        name = signal.Signals(interrupted.signal).name
        raise Interrupted(f'stopped by {name} {place}; the same command resumes there', interrupted.signal)

    def finish(self) -> None:
        """Waits until every checkpoint is written."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def open_journal(
    plan: Plan, workdirs: Sequence[pathlib.Path], state: TrainState, step: int, sinks: Sequence[Sink] = ()
) -> Iterator[Journal]:
    """Opens the journal of a run.

    Args:
      plan: the plan of the run.
      workdirs: the folder of each seed.
      state: the state after ``step`` steps.
      step: number of steps already taken.
      sinks: functions that receive every record.
    """
    main = is_main_process()
    with contextlib.ExitStack() as stack:
        display: Display = open_display(plan.total_steps, step, plan.task.primary_metric) if main else Silence()
        stack.callback(display.close)
        writer = stack.enter_context(CheckpointWriter(keep=2)) if main else None
        logs = []
        for index, workdir in enumerate(workdirs):
            shown = Silence() if index else display
            logs.append(Log(plan, index, workdir, step, shown, sinks if main else (), writes=main))
            stack.callback(logs[-1].close)
        yield Journal(plan, workdirs, state, step, logs, display, writer)
