"""Strikes runs of a real training at random moments, and compares what they come to with a run left alone.

python -m tests.training.kill_harness --kills=25 --terminations=10 --of_two_processes=5

Each fault starts a training in a new folder, strikes it once or twice with SIGKILL, SIGTERM or SIGINT anywhere between
the start of the process and the end of the undisturbed run, gives the same command again until it has ended, and
compares every array of the last checkpoint, the result and the evaluations bit for bit. Of two processes one alone is
struck, or both; of one that was killed, or has failed, the other is killed a second later, as a scheduler does.
"""

import argparse
import collections
import dataclasses
import hashlib
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
import warnings
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.checkpoints.checkpoint import checkpoint_steps
from resnet_jax.checkpoints.files import check_files, read_manifest
from resnet_jax.errors import InputError
from tests.training.ports import free_address

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (
    *(sys.executable, '-m', 'experiments.resnet', '--arch=resnet20', '--dataset=digits', '--batch_size=128'),
    *('--crop_padding=1', '--horizontal_flip', '--policy=rand_augment', '--mixup=0.2', '--cutmix=1'),
    *('--ema_decay=0.99', '--ema_warmup', '--eval_every_epochs=1', '--log_every_steps=3'),
    *('--checkpoint_every_epochs=1', '--checkpoint_every_steps=5'),
)
# Of result.json and metrics.jsonl, what two runs of the same training need not have in common.
TIMES = {'train_seconds', 'evaluation_seconds', 'compile_seconds', 'examples_per_second', 'peak_share'}
# Longer than anything that does not hang takes on a busy machine.
PATIENCE_SECONDS = 600
SCHEDULER_SECONDS = 1.0
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@dataclasses.dataclass
class Strike:
    """A signal to a job, and what came of it.

    Attributes:
      signal: its name.
      targets: indices of the processes that it goes to.
      moment: seconds from the start of the job.
      saved_step: of the newest checkpoint when it came; None where there was none.
      statuses: how the processes ended.
      leave_seconds: from the signal to the end of the last process.
      said: what the first process said on leaving.
      problem: what was wrong, or the empty string.
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
    """One run that was struck."""

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
                f' left in {strike.leave_seconds:.2f} s with {strike.statuses}: {strike.said or "no word"}'
            )
            parts += [f'WRONG: {strike.problem}'] if strike.problem else []
        differing = f'DIFFERENT: {", ".join(self.differences[:5])} ({len(self.differences)})'
        return '; '.join([*parts, differing if self.differences else 'equal'])


class Job:
    """One or two processes of the same training in a folder.

    Args:
      workdir: of the training.
      count: of processes.
      epochs: that it takes.
      cache: where compiled programs are kept.
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
                # A group of its own: Ctrl-C is the harness's to obey, and what it starts must not outlive it.
                self.processes.append(subprocess.Popen(command, **options, start_new_session=True))

    def wait(self) -> list[int]:
        """The statuses when all have left; where one fails, or hangs, the others are killed.

        Raises:
          TimeoutError: the job hung, and was killed.
        """
        end, failed = time.monotonic() + PATIENCE_SECONDS, None
        while self.is_running():
            if failed is None and any(process.returncode for process in self.processes):
                failed = time.monotonic()
            if failed is not None and time.monotonic() > failed + self._grace():
                self.kill()
            if self.first_record is None and self._has_records():
                self.first_record = time.monotonic() - self.start
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f'hung for {PATIENCE_SECONDS} s: {self.said()}')
            time.sleep(0.01)
        return [process.returncode for process in self.processes]

    def _has_records(self) -> bool:
        metrics = self.workdir / 'metrics.jsonl'
        return metrics.exists() and metrics.stat().st_size > 0

    def is_running(self) -> bool:
        return None in [process.poll() for process in self.processes]  # asks every one, so that all statuses are known

    def _grace(self) -> float:
        """Seconds that the others have to leave when one has: those stopped in order write the state meanwhile."""
        stopped = any((process.returncode or 0) > 128 for process in self.processes)
        return 10 * SCHEDULER_SECONDS if stopped else SCHEDULER_SECONDS

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def log(self) -> str:
        """What the first process wrote."""
        return self._logs[0].read_text(errors='replace')

    def said(self, index: int = 0) -> str:
        """The last line that a process wrote."""
        lines = self._logs[index].read_text(errors='replace').replace('\r', '\n').split('\n')
        return next((line.strip() for line in reversed(lines) if line.strip()), '')


def run_whole(workdir: pathlib.Path, count: int, epochs: int, cache: pathlib.Path) -> tuple[float, float]:
    """Runs a job to its end; gives the seconds until its first record, and all of them.

    Raises:
      RuntimeError: it ended otherwise.
    """
    job = Job(workdir, count, epochs, cache)
    try:
        if any(job.wait()):
            raise RuntimeError(f'failed: {[job.said(index) for index in range(count)]}')
    finally:
        job.kill()
    seconds = time.monotonic() - job.start
    return job.first_record or 0.0, seconds


def outcome(workdir: pathlib.Path) -> dict[str, str]:
    """What must not depend on interruptions: name and value, or its hash."""
    last = checkpoint_steps(workdir / 'checkpoints')[-1]
    path = (workdir / 'checkpoints' / str(last)).absolute()
    manifest = read_manifest(path)
    check_files(path, manifest)
    with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings(action='ignore', category=UserWarning):
        tree = checkpointer.restore(path / 'state')
    leaves = [
        (jax.tree_util.keystr(place, simple=True, separator='/'), np.asarray(leaf))
        for place, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    if {name for name, _ in leaves} != manifest.arrays.keys():
        raise AssertionError(f'the arrays in {path} are not those of its manifest')
    found = {name: f'{leaf.dtype}{leaf.shape} {hashlib.sha256(leaf.tobytes()).hexdigest()}' for name, leaf in leaves}
    found |= {'last step': str(last), 'score': repr(manifest.score)}
    result = json.loads((workdir / 'result.json').read_text())
    found |= {f'result.json {name}': repr(value) for name, value in result.items() if name not in TIMES}
    tests = []
    for line in (workdir / 'metrics.jsonl').read_text().splitlines():
        record = json.loads(line)
        if record['split'] == 'test':
            tests.append({name: value for name, value in record.items() if name not in TIMES})
    found['metrics.jsonl steps'] = repr([record['step'] for record in tests])
    found |= {f'metrics.jsonl {record["step"]}': repr(record) for record in tests}
    return found


def strike(job: Job, planned: Strike) -> None:
    """Waits for the moment, strikes, and notes what comes of it."""
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
    """What became of a run that was asked to leave, and what is wrong with that."""
    said = job.said()
    if not any(statuses):
        return 'it was past its last step, and finished', ''
    noted = TERM if len(statuses) > 1 else number  # several processes make a SIGTERM of SIGINT
    stopped = re.search(rf'stopped by {noted.name} (after step (\d+), which is saved|before the first step)', said)
    if stopped is None:
        if (job.workdir / 'result.json').exists():
            return 'it was finished, and ended its process', ''
        if 'compiling' not in job.log():  # which is said when signals are handled
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
    """The faults, in the order in which they are done; each kind has its share of those of two processes.

    Half of the moments are anywhere in the time of the undisturbed run, half in that from its first record on: most of
    a short run is start and compilation.
    """
    kinds = [KILL] * kills + [TERM if index % 3 < 2 else INT for index in range(terminations)]
    # Evenly spaced, so that of few there is one of each kind where that is possible.
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


def suffer(fault: Fault, folder: pathlib.Path, epochs: int, reference: dict[str, str]) -> None:
    """Does a fault in a folder, and notes what differs in the end."""
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
        fault.differences = [f'it cannot be resumed: {error}']
    else:
        fault.differences = differences(found, reference)


def differences(found: dict[str, str], reference: dict[str, str]) -> list[str]:
    """Names of what two outcomes do not have in common."""
    return sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))


def run_references(
    folder: pathlib.Path, epochs: int, counts: list[int]
) -> dict[int, tuple[tuple[float, float], dict[str, str]]]:
    """Times and outcome of the run that nobody strikes, by number of processes.

    Raises:
      RuntimeError: two of them differ, so that they are no reference.
    """
    references, cache = {}, folder / 'compiled'
    for count in counts:
        first, again = folder / f'whole{count}', folder / f'again{count}'
        run_whole(first, count, epochs, cache)
        times = run_whole(again, count, epochs, cache)  # with what is compiled, as those that are struck
        references[count] = times, outcome(again)
        if differing := differences(outcome(first), references[count][1]):
            raise RuntimeError(f'two undisturbed runs of {count} processes differ: {differing}')
        shown = f'{times[1]:.1f} s, the first record after {times[0]:.1f} s, {len(references[count][1])} values'
        print(f'undisturbed, {count} process(es): {shown}', flush=True)
    return references


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=25, help='faults by SIGKILL')
    parser.add_argument('--terminations', type=int, default=10, help='faults by SIGTERM, every third by SIGINT')
    parser.add_argument('--of_two_processes', type=int, default=5, help='so many of the faults strike such a job')
    parser.add_argument('--epochs', type=int, default=8, help='length of the training')
    parser.add_argument('--seed', type=int, default=secrets.randbelow(2**32), help='of the moments')
    parser.add_argument('--folder', type=pathlib.Path, help='new, for the runs, which are kept there')
    parser.add_argument('--json', type=pathlib.Path, help='file for everything that is printed')
    arguments = parser.parse_args()
    if arguments.of_two_processes > arguments.kills + arguments.terminations:
        parser.error(f'--of_two_processes={arguments.of_two_processes}: there are not so many faults')
    return arguments


def run_all(arguments: argparse.Namespace, folder: pathlib.Path) -> bool:
    """Runs everything; whether all ended as they should."""
    print(f'seed {arguments.seed}', flush=True)
    faults, two = arguments.kills + arguments.terminations, arguments.of_two_processes
    references = run_references(folder, arguments.epochs, [1] * (faults > two) + [2] * (two > 0))
    times = {count: one for count, (one, _) in references.items()}
    numbers = arguments.kills, arguments.terminations, two
    planned = plan(*numbers, times, random.Random(arguments.seed))
    start = time.monotonic()
    for fault in planned:
        suffer(fault, folder, arguments.epochs, references[fault.processes][1])
        print(fault.line(), flush=True)
    equal = sum(fault.is_equal for fault in planned)
    strikes = collections.Counter(one.signal for fault in planned for one in fault.strikes)
    summary = f'{equal} of {len(planned)} faults ended as if nothing had happened'
    told = ', '.join(f'{count} {name}' for name, count in sorted(strikes.items()))
    print(f'{summary}; {two} of two processes; {told}; {time.monotonic() - start:.0f} s', flush=True)
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
