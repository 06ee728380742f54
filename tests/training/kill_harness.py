"""Kills and interrupts real training runs at random moments and compares them with an undisturbed run.

python -m tests.training.kill_harness --kills=25 --terminations=10 --of_two_processes=5

Each fault starts a training in a new folder and sends it SIGKILL, SIGTERM or SIGINT once or twice, at any time between
the start of the process and the end of an undisturbed run. Then the same command is repeated until it finishes, and
every array of the last checkpoint, the result and the evaluations are compared bit for bit. In jobs of two processes,
one or both are hit; if one was killed or failed, the other is killed a second later, as a scheduler would do.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from experiments.shared.checks.runs import differences, outcome
from resnet_jax.checkpoints.checkpoint import checkpoint_steps
from resnet_jax.errors import InputError
from tests.training.ports import free_address

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (
    *(sys.executable, '-m', 'experiments.resnet', '--arch=resnet20', '--dataset=digits', '--batch_size=128'),
    *('--crop_padding=1', '--horizontal_flip', '--policy=rand_augment', '--mixup=0.2', '--cutmix=1'),
    *('--ema_decay=0.99', '--ema_warmup', '--eval_every_epochs=1', '--log_every_steps=3'),
    *('--checkpoint_every_epochs=1', '--checkpoint_every_steps=5'),
)
# Longer than anything takes on a busy machine unless it hangs.
TIMEOUT_SECONDS = 600
SCHEDULER_SECONDS = 1.0
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@dataclasses.dataclass
class Strike:
    """A signal to a job and its effect.

    Attributes:
      signal: name of the signal.
      targets: indices of the processes that receive it.
      moment: seconds from the start of the job.
      saved_step: step of the newest checkpoint when it was sent; None if there was none.
      statuses: exit statuses of the processes.
      leave_seconds: seconds from the signal to the end of the last process.
      said: last message of the first process.
      problem: description of a problem, or the empty string.
    """

    signal: str
    targets: list[int]
    moment: float
    saved_step: int | None = None
    statuses: list[int] = dataclasses.field(default_factory=list)
    leave_seconds: float = 0.0
    said: str = ''
    problem: str = ''


@dataclasses.dataclass
class Fault:
    """One run that receives signals."""

    number: int
    processes: int
    strikes: list[Strike]
    differences: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return not self.differences and not any(strike.problem for strike in self.strikes)

    def line(self) -> str:
        parts = [f'{self.number:3}  {self.processes} process{"es" if self.processes > 1 else "  "}']
        for strike in self.strikes:
            to = f' to {"+".join(map(str, strike.targets))}' if self.processes > 1 else ''
            parts.append(
                f'{strike.signal}{to} at {strike.moment:5.2f} s (saved: {strike.saved_step}),'
                f' left in {strike.leave_seconds:.2f} s with {strike.statuses}: {strike.said or "no message"}'
            )
            parts += [f'WRONG: {strike.problem}'] if strike.problem else []
        differing = f'DIFFERENT: {", ".join(self.differences[:5])} ({len(self.differences)})'
        return '; '.join([*parts, differing if self.differences else 'equal'])


class Job:
    """One or two processes of the same training in a folder.

    Args:
      workdir: folder of the training.
      count: number of processes.
      epochs: number of epochs.
      cache: folder of the compilation cache.
    """

    def __init__(self, workdir: pathlib.Path, count: int, epochs: int, cache: pathlib.Path):
        address = free_address()
        self.start, self.workdir = time.monotonic(), workdir
        self.first_record: float | None = None  # seconds from the start until it is written
        self._logs = [workdir.with_name(f'{workdir.name}.{index}.log') for index in range(count)]
        flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=1', 'JAX_PLATFORMS': 'cpu'}
        environment = os.environ | flags | {'JAX_COMPILATION_CACHE_DIR': str(cache), 'PYTHONUNBUFFERED': '1'}
        self.processes = []
        for index, log in enumerate(self._logs):
            command = [*COMMAND, f'--epochs={epochs}', f'--workdir={workdir}']
            if count > 1:
                job = {'coordinator_address': address, 'num_processes': count, 'process_index': index}
                command += [f'--{name}={value}' for name, value in job.items()]
            with log.open('wb') as out:
                options: dict[str, Any] = {'cwd': ROOT, 'env': environment, 'stdout': out, 'stderr': out}
                # In its own session: the harness handles Ctrl-C, and its children must not outlive it.
                self.processes.append(subprocess.Popen(command, **options, start_new_session=True))

    def wait(self) -> list[int]:
        """Waits for all processes and returns their statuses; if one fails or hangs, the others are killed.

        Raises:
          TimeoutError: the job hung and was killed.
        """
        end, failed = time.monotonic() + TIMEOUT_SECONDS, None
        while self.is_running():
            if failed is None and any(process.returncode for process in self.processes):
                failed = time.monotonic()
            if failed is not None and time.monotonic() > failed + self._grace():
                self.kill()
            if self.first_record is None and self._has_records():
                self.first_record = time.monotonic() - self.start
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f'hung for {TIMEOUT_SECONDS} s: {self.said()}')
            time.sleep(0.01)
        return [process.returncode for process in self.processes]

    def _has_records(self) -> bool:
        metrics = self.workdir / 'metrics.jsonl'
        return metrics.exists() and metrics.stat().st_size > 0

    def is_running(self) -> bool:
        return None in [process.poll() for process in self.processes]  # polls all, so that all statuses are known

    def _grace(self) -> float:
        """Seconds that the others have to exit after the first; after a clean stop they are still saving the state."""
        stopped = any((process.returncode or 0) > 128 for process in self.processes)
        return 10 * SCHEDULER_SECONDS if stopped else SCHEDULER_SECONDS

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def log(self) -> str:
        """The log of the first process."""
        return self._logs[0].read_text(errors='replace')

    def said(self, index: int = 0) -> str:
        """The last line of a process's log."""
        lines = self._logs[index].read_text(errors='replace').replace('\r', '\n').split('\n')
        return next((line.strip() for line in reversed(lines) if line.strip()), '')


def run_whole(workdir: pathlib.Path, count: int, epochs: int, cache: pathlib.Path) -> tuple[float, float]:
    """Runs a job to completion; returns the seconds until its first record and until its end.

    Raises:
      RuntimeError: the job failed.
    """
    job = Job(workdir, count, epochs, cache)
    try:
        if any(job.wait()):
            raise RuntimeError(f'failed: {[job.said(index) for index in range(count)]}')
    finally:
        job.kill()
    seconds = time.monotonic() - job.start
    return job.first_record or 0.0, seconds


def strike(job: Job, planned: Strike) -> None:
    """Waits for the moment, sends the signal, and records its effect."""
    while time.monotonic() < job.start + planned.moment and job.is_running():
        time.sleep(0.005)
    number = signal.Signals[planned.signal]
    planned.saved_step = _newest(job.workdir)
    gone = not job.is_running()
    start = time.monotonic()
    for index in planned.targets:
        job.processes[index].send_signal(number)
    try:
        planned.statuses = job.wait()
    except TimeoutError as error:
        planned.said = planned.problem = str(error)
        return
    planned.leave_seconds = time.monotonic() - start
    if gone:
        planned.said = 'it had finished'
        planned.problem = '' if not any(planned.statuses) else job.said()
    elif number == KILL:
        planned.said = 'killed'
    else:
        planned.said, planned.problem = judge(job, number, planned.statuses)


def judge(job: Job, number: signal.Signals, statuses: list[int]) -> tuple[str, str]:
    """Describes how an interrupted run ended, and the problem if there is one."""
    said = job.said()
    if not any(statuses):
        return 'it was past its last step and finished', ''
    noted = TERM if len(statuses) > 1 else number  # multi-process jobs turn SIGINT into SIGTERM
    stopped = re.search(rf'stopped by {noted.name} (after step (\d+), which is saved|before the first step)', said)
    if stopped is None:
        if (job.workdir / 'result.json').exists():
            return 'it was finished and exiting', ''
        if 'compiling' not in job.log():  # printed once signals are handled
            return 'before it handled signals', ''
        return said, 'the message does not name the step'
    saved, wanted = _newest(job.workdir), int(stopped[2]) if stopped[2] else None
    if saved != wanted:
        return stopped[0], f'the newest checkpoint is {saved}'
    wrong = statuses != [128 + noted] * len(statuses)
    return stopped[0], f'status {statuses}, not {128 + noted}: {job.said(-1)}' if wrong else ''


def _newest(workdir: pathlib.Path) -> int | None:
    return max(checkpoint_steps(workdir / 'checkpoints'), default=None)


def plan(
    kills: int, terminations: int, of_two: int, times: dict[int, tuple[float, float]], rng: random.Random
) -> list[Fault]:
    """The faults in order of execution; the jobs of two processes are spread evenly over the kinds of signals.

    Half of the moments are drawn from the whole duration of the undisturbed run, half from after its first record,
    because most of a short run is startup and compilation.
    """
    kinds = [KILL] * kills + [TERM if index % 3 < 2 else INT for index in range(terminations)]
    # Evenly spaced, so that even a few of them include each kind if possible.
    two = {int((index + 0.5) * len(kinds) / of_two) for index in range(of_two)}
    faults = []
    for index, kind in enumerate(kinds):
        processes = 2 if index in two else 1
        strikes = []
        for _ in range(2 if rng.random() < 0.25 else 1):
            targets = [0] if processes == 1 else rng.choice([[0], [1]] + [[0, 1]] * (kind != KILL))
            first, end = times[processes]
            strikes.append(Strike(kind.name, targets, rng.uniform(rng.choice([0.0, first]), end)))
        faults.append(Fault(index + 1, processes, strikes))
    return faults


def execute(fault: Fault, folder: pathlib.Path, epochs: int, reference: dict[str, str]) -> None:
    """Executes a fault and records the differences of its outcome."""
    workdir, cache = folder / f'fault{fault.number}', folder / 'compiled'
    for planned in fault.strikes:
        job = Job(workdir, fault.processes, epochs, cache)
        try:
            strike(job, planned)
        finally:
            job.kill()
    try:
        run_whole(workdir, fault.processes, epochs, cache)
        found = outcome(workdir)
    except (RuntimeError, TimeoutError, InputError, OSError) as error:
        fault.differences = [f'cannot be resumed: {error}']
    else:
        fault.differences = differences(found, reference)


def run_references(
    folder: pathlib.Path, epochs: int, counts: list[int]
) -> dict[int, tuple[tuple[float, float], dict[str, str]]]:
    """Times and outcome of undisturbed runs, by number of processes.

    Raises:
      RuntimeError: two undisturbed runs differ, so that they cannot serve as a reference.
    """
    references, cache = {}, folder / 'compiled'
    for count in counts:
        first, again = folder / f'whole{count}', folder / f'again{count}'
        run_whole(first, count, epochs, cache)
        times = run_whole(again, count, epochs, cache)  # with a warm compilation cache, as for the faults
        references[count] = times, outcome(again)
        if differing := differences(outcome(first), references[count][1]):
            raise RuntimeError(f'two undisturbed runs of {count} processes differ: {differing}')
        shown = f'{times[1]:.1f} s, the first record after {times[0]:.1f} s, {len(references[count][1])} values'
        print(f'undisturbed, {count} process(es): {shown}', flush=True)
    return references


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=25, help='number of faults by SIGKILL')
    parser.add_argument(
        '--terminations', type=int, default=10, help='number of faults by SIGTERM, every third by SIGINT'
    )
    parser.add_argument('--of_two_processes', type=int, default=5, help='number of faults in jobs of two processes')
    parser.add_argument('--epochs', type=int, default=8, help='epochs per training')
    parser.add_argument('--seed', type=int, default=secrets.randbelow(2**32), help='random seed of the moments')
    parser.add_argument('--folder', type=pathlib.Path, help='new folder to keep the runs in')
    parser.add_argument('--json', type=pathlib.Path, help='file for the results as JSON')
    arguments = parser.parse_args()
    if arguments.of_two_processes > arguments.kills + arguments.terminations:
        parser.error(f'--of_two_processes={arguments.of_two_processes} must be at most the number of faults')
    return arguments


def run_all(arguments: argparse.Namespace, folder: pathlib.Path) -> bool:
    """Executes all faults; returns whether all outcomes are equal."""
    print(f'seed {arguments.seed}', flush=True)
    faults, two = arguments.kills + arguments.terminations, arguments.of_two_processes
    references = run_references(folder, arguments.epochs, [1] * (faults > two) + [2] * (two > 0))
    times = {count: one for count, (one, _) in references.items()}
    numbers = arguments.kills, arguments.terminations, two
    planned = plan(*numbers, times, random.Random(arguments.seed))
    start = time.monotonic()
    for fault in planned:
        execute(fault, folder, arguments.epochs, references[fault.processes][1])
        print(fault.line(), flush=True)
    equal = sum(fault.is_equal for fault in planned)
    strikes = collections.Counter(one.signal for fault in planned for one in fault.strikes)
    summary = f'{equal} of {len(planned)} faults ended like the undisturbed run'
    signals = ', '.join(f'{count} {name}' for name, count in sorted(strikes.items()))
    print(f'{summary}; {two} of two processes; {signals}; {time.monotonic() - start:.0f} s', flush=True)
    if arguments.json:
        content = {'seed': arguments.seed, 'epochs': arguments.epochs, 'first_record_and_end_seconds': times}
        content |= {'faults': [dataclasses.asdict(fault) | {'is_equal': fault.is_equal} for fault in planned]}
        arguments.json.write_text(json.dumps(content | {'equal': equal, 'strikes': strikes}, indent=1) + '\n')
    return equal == len(planned)


def main() -> None:
    arguments = parse_arguments()
    if arguments.folder:
        arguments.folder.mkdir(parents=True)
        sys.exit(not run_all(arguments, arguments.folder.absolute()))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(not run_all(arguments, pathlib.Path(folder)))


if __name__ == '__main__':
    main()
