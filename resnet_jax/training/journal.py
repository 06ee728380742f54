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

# Takes a record, as a line of ``metrics.jsonl`` has it: ``split``, ``step``, ``epoch``, ``seed`` and metrics by name.
# It is called in the main process, after the record is written.
Sink = Callable[[dict[str, Any]], None]
# Takes the state of one seed where an evaluation is due, and gives metrics by name.
Hook = Callable[[TrainState], dict[str, float]]


class Journal:
    """The logs, terminal output and checkpoints of a run; it knows the last step and its state.

    Args:
      plan: what is trained.
      workdirs: of each seed.
      state: after ``step`` steps.
      step: steps taken before.
      logs: of each seed.
      display: where messages go.
      writer: of checkpoints, in the main process alone.

    Attributes:
      evaluations: of each seed, the last ones.
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
        self._more: list[dict[str, float]] = []
        self._evaluation_seconds = 0.0
        self._speed_is_told = False
        self.logs = logs
        self.evaluations: list[Evaluation] = []

    @property
    def is_evaluated(self) -> bool:
        """Whether ``evaluations`` are of the last step."""
        return self._evaluated == self._step

    @property
    def is_saved(self) -> bool:
        """Whether the last step is saved, perhaps without its score."""
        return self._saved == self._step

    def message(self, line: str) -> None:
        """Shows a line that stays."""
        self._display.message(line)

    def start_clock(self) -> None:
        """Training time counts from here."""
        for log in self.logs:
            log.start_clock()

    def step(self, step: int, state: TrainState, sums: dict[str, Any], epoch_ends: bool, cost: Cost) -> None:
        """Notes a step that is under way.

        Raises:
          DivergenceError: too many steps in a row were skipped.
          StorageError: the disk does not take what is written.
        """
        self._step, self._state = step, state
        for log in self.logs:
            log.step(step, sums, epoch_ends)
        if not self._speed_is_told and (speed := self.logs[0].examples_per_second) is not None:
            self._speed_is_told = True
            self.message(cost.speed(speed * len(self.logs)))
        if self._writer is not None:
            self._writer.check()  # a full disk, at once

    def is_test_recorded(self) -> bool:
        """Whether the last step was evaluated, and both its records and its checkpoint say so."""
        # A checkpoint of a run that was stopped here, and was killed before it was written anew, has no score.
        scored = not self.is_saved or None not in [checkpoint.score_of(folder, self._step) for folder in self._folders]
        return bool(broadcast_from_main(scored and all(log.has_test(self._step) for log in self.logs)))

    def evaluated(
        self,
        state: TrainState,
        evaluations: Sequence[Evaluation],
        more: Sequence[dict[str, float]],
        seconds: float,
    ) -> None:
        """Notes what the evaluation of the last step found, and more metrics, of each seed."""
        self._state, self._evaluated, self._evaluation_seconds = state, self._step, seconds
        self.evaluations, self._more = list(evaluations), list(more)

    def write_test(self) -> None:
        """Writes what was noted last, and shows a line of it."""
        lines = [
            log.test(self._step, test.summary, more, self._evaluation_seconds)
            for log, test, more in zip(self.logs, self.evaluations, self._more, strict=True)
        ]
        metric, epoch = self._plan.task.primary_metric, self._step // self._plan.epoch_steps
        scores = [test.summary[metric] for test in self.evaluations]
        self.message(self._plan.seeds.summary_line(lines, f'epoch {epoch}  test {metric}', scores))

    def save(self) -> None:
        """Hands the state to the writer, with the score if it was just evaluated.

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
        """Ends what a signal interrupts inside with what is saved and a message.

        It must be innermost: what else is closed then may fail, and must not come before the state is saved.

        Raises:
          Interrupted: with the message.
        """
        try:
            yield
        except Interrupted as interrupted:
            self._leave(interrupted)

    def _leave(self, interrupted: Interrupted) -> NoReturn:
        """Saves what is not saved, and says so."""
        if self._step > (self._saved or 0):
            self.save()
        self.finish()
        barrier('stopped')
        kept = f'after step {self._step}, which is saved' if self._step else 'before the first step'
        name = signal.Signals(interrupted.signal).name
        raise Interrupted(f'stopped by {name} {kept}; the same command goes on from there', interrupted.signal)

    def finish(self) -> None:
        """Waits until every checkpoint is on the disk."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def open_journal(
    plan: Plan, workdirs: Sequence[pathlib.Path], state: TrainState, step: int, sinks: Sequence[Sink] = ()
) -> Iterator[Journal]:
    """The journal of runs that are open.

    Args:
      plan: what is trained.
      workdirs: of each seed.
      state: after ``step`` steps.
      step: steps taken before.
      sinks: get every record.
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
