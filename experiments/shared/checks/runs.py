"""Checks that start other processes: resumption after SIGKILL, and the tests."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.shared.checks.outcomes import Outcome, Places
from resnet_jax.checkpoints.checkpoint import checkpoint_steps
from resnet_jax.checkpoints.files import check_files, read_manifest

ROOT = pathlib.Path(__file__).parents[2]
# A short run with most kinds of random draws; needs no download.
RUN = (
    *(sys.executable, '-m', 'experiments.resnet', '--arch=resnet20', '--dataset=digits', '--batch_size=128'),
    *('--crop_padding=1', '--horizontal_flip', '--cutout=2', '--mixup=0.2', '--ema_decay=0.99'),
    *('--eval_every_epochs=10', '--checkpoint_every_epochs=10', '--checkpoint_every_steps=10'),
)
# Without it, XLA may add up in any order on GPUs, and chooses algorithms by timing them.
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
# Entries of result.json and metrics.jsonl that may differ between two runs of the same training.
TIMES = {'train_seconds', 'evaluation_seconds', 'compile_seconds', 'examples_per_second', 'peak_share'}


class RunError(RuntimeError):
    """A child process ended in a way that it should not; the message has its last line."""


@dataclasses.dataclass(frozen=True)
class Child:
    """A training in child processes.

    Attributes:
      command: the command without ``--workdir``.
      folder: folder of the workdirs and of the compiled programs, which later processes load: a program that is
        compiled again may use other algorithms, and then it rounds differently.
      xla_flags: added to the variable ``XLA_FLAGS``.
    """

    command: tuple[str, ...]
    folder: pathlib.Path
    xla_flags: str = ''

    def start(self, workdir: pathlib.Path) -> subprocess.Popen[str]:
        """Starts or resumes a run in a workdir."""
        flags = f'{os.environ.get("XLA_FLAGS", "")} {self.xla_flags}'.strip()
        environment = os.environ | {
            **{'XLA_FLAGS': flags, 'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'compiled')},
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
        }
        pipes: dict[str, Any] = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        return subprocess.Popen([*self.command, f'--workdir={workdir}'], cwd=ROOT, env=environment, **pipes)

    def finish(self, name: str) -> tuple[dict[str, str], str]:
        """Runs to the end; returns the outcome and what was printed.

        Raises:
          RunError: the process failed.
        """
        process = self.start(self.folder / name)
        try:
            said, _ = process.communicate()
        finally:
            process.kill()
        if process.returncode:
            last = ' '.join(said.split('\n')[-3:]).strip()
            raise RunError(f'status {process.returncode}: {last[-300:]}')
        return outcome(self.folder / name), said

    def kill(self, name: str) -> int:
        """Starts a run, kills it with SIGKILL at its first checkpoint, and returns the step of the newest one.

        Raises:
          RunError: the process ended before.
        """
        process = self.start(self.folder / name)
        try:
            while process.poll() is None and not checkpoint_steps(self.folder / name / 'checkpoints'):
                time.sleep(0.002)
        finally:
            process.kill()  # SIGKILL
            said, _ = process.communicate()
        if process.returncode >= 0:
            last = ' '.join(said.split('\n')[-3:]).strip()
            raise RunError(f'status {process.returncode} before it was killed: {last[-300:]}')
        return checkpoint_steps(self.folder / name / 'checkpoints')[-1]


def check_resumption(places: Places, command: Sequence[str]) -> Outcome:
    """Kills a run, resumes it, and compares every array, metric and result with an uninterrupted run, bit for bit.

    On a GPU, two uninterrupted runs may differ. If the resumed run differs, both are therefore compared with a second
    uninterrupted run, and if that differs as well, everything is repeated with XLA's deterministic operations.
    """
    values: dict[str, Any] = {}
    for flags in ('',) if places.is_cpu else ('', DETERMINISTIC):
        with tempfile.TemporaryDirectory() as folder:
            child = Child(tuple(command), pathlib.Path(folder), flags)
            whole, _ = child.finish('whole')
            killed = child.kill('killed')
            resumed, said = child.finish('killed')
            found = re.search(r'resuming .* after step (\d+)', said)
            wrong = differences(resumed, whole)
            with_flags = f' with {flags}' if flags else ''
            values[f'resumed{with_flags}'] = wrong
            step = int(found[1]) if found else 0
            if not 0 < step < int(whole['last step']):
                return Outcome.of(False, f'killed after step {killed}, but it was not resumed there', values)
            steps = f'killed after step {step} of {whole["last step"]}'
            if not wrong:
                return Outcome.of(True, f'{steps}: {len(whole)} values equal bit for bit{with_flags}', values)
            again, _ = child.finish('again')
            values[f'uninterrupted{with_flags}'] = differences(again, whole)
            if not values[f'uninterrupted{with_flags}']:
                break  # only the resumed run differs
    uninterrupted = ['two uninterrupted runs agree', 'two uninterrupted runs differ as well']
    said = uninterrupted[bool(values[f'uninterrupted{with_flags}'])]
    return Outcome.of(False, f'{steps}: {len(wrong)} of {len(whole)} values differ; {said}', values)


def outcome(workdir: pathlib.Path) -> dict[str, str]:
    """Everything that must not depend on interruptions: values or their hashes by name."""
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
    result = json.loads((workdir / 'result.json').read_text(encoding='utf-8'))
    found |= {f'result.json {name}': repr(value) for name, value in result.items() if name not in TIMES}
    tests = []
    for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines():
        record = json.loads(line)
        if record['split'] == 'test':
            tests.append({name: value for name, value in record.items() if name not in TIMES})
    found['metrics.jsonl steps'] = repr([record['step'] for record in tests])
    found |= {f'metrics.jsonl {record["step"]}': repr(record) for record in tests}
    return found


def differences(found: dict[str, str], reference: dict[str, str]) -> list[str]:
    """Names of the entries that differ between two outcomes."""
    return sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))


# Test files whose tests compare values on one device with NumPy or PyTorch.
TEST_FILES = (
    *(f'tests/models/test_{name}.py' for name in ('conv', 'norm', 'pooling', 'block_end', 'blocks', 'branch_blocks')),
    *(f'tests/models/test_{name}.py' for name in ('attention', 'layers', 'example_norm', 'scanned')),
    *(f'tests/models/test_{name}.py' for name in ('batch_norm', 'gram_norm', 'folded_norm', 'conv_gpu')),
    *('tests/tasks/test_losses.py', 'tests/training/test_step.py', 'tests/training/test_optim.py'),
    *('tests/data/test_image_ops.py', 'tests/data/test_policies.py', 'tests/data/test_random_ops.py'),
)


def check_tests(places: Places, files: Sequence[str], processes: int = 4) -> Outcome:
    """Runs test files on the device in child processes; its memory is shared by ``processes`` of them.

    Tests of meshes are left out: they need two devices.
    """
    platform = {'gpu': 'cuda'}.get(places.device.platform, places.device.platform)
    platforms = platform if places.is_cpu else f'{platform},cpu'
    environment = os.environ | {'RESNET_JAX_TEST_PLATFORMS': platforms}
    command = [sys.executable, '-m', 'pytest', '-q', '-rfE', '--tb=line', '-knot mesh', f'-n{processes}', *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    failed = [line.split(' - ')[0].split(maxsplit=1)[1] for line in lines if line.startswith(('FAILED ', 'ERROR '))]
    last = lines[-1].strip('= ') if lines else ' '.join(done.stderr.split())[-200:]
    return Outcome.of(done.returncode == 0, f'{last}, on {platforms}', {'failed': failed, 'status': done.returncode})
