"""Commands in their own processes, as users start them: tests that a single process cannot do."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.shared.environment import MEMORY
from tests.experiments.commands import ROOT, start

linux = pytest.mark.skipif(sys.platform != 'linux', reason='these variables exist only on Linux')


def test_help():
    done = start('resnet', '--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith('Residual networks')
    assert '--learning_rate:' in done.stdout


def test_compiled_programs_are_cached_for_the_user_only(monkeypatch, tmp_path, cache_home):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    rng = np.random.default_rng(0)
    for split, size in (('train', 8), ('test', 5)):
        images = rng.integers(0, 255, (size, 8, 8, 3), np.uint8)
        np.savez(tmp_path / f'{split}.npz', images=images, labels=np.arange(size) % 3)
    given = (f'--dataset=arrays:{tmp_path}', f'--workdir={tmp_path / "run"}', '--epochs=2', '--batch_size=8')
    done = start('resnet', *given)
    assert (done.returncode, done.stderr) == (0, '')
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['steps'] == 2
    folder = cache_home / 'resnet_jax' / 'compiled'
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.glob('*-cache'))


def test_a_bad_flag_is_one_line_and_status_2():
    done = start('evaluate', '--chekpoint=best')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == (
        'error: unknown flag --chekpoint; nearest known: checkpoint;'
        ' python -m experiments.evaluate --help explains all flags\n'
    )


@linux
def test_a_command_restarts_once_with_its_environment(monkeypatch, tmp_path):
    """Starting without the variables; values that the user set stay."""
    for name in MEMORY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('MALLOC_ARENA_MAX', '3')
    (tmp_path / 'sitecustomize.py').write_text(
        'import os, sys; print(os.getpid(), file=sys.stderr)'
    )  # runs at every start
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    package = tmp_path / 'experiments'
    package.mkdir()
    for name in ('__init__.py', 'shared'):
        (package / name).symlink_to(ROOT / 'experiments' / name)
    code = f'import os; print({{name: os.environ.get(name) for name in {sorted(MEMORY)}}})'
    (package / 'settings.py').write_text(code)
    done = start('settings', cwd=tmp_path)
    assert done.stdout == f'{dict(sorted((MEMORY | {"MALLOC_ARENA_MAX": "3"}).items()))}\n'
    starts = done.stderr.split()
    assert len(starts) == 2
    assert len(set(starts)) == 1  # the process restarts itself


def test_an_interrupted_command_says_how_to_resume(tmp_path):
    # A shell starts background jobs with SIGINT ignored, and the tests may be part of one.
    heeding = (
        'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])'
    )
    command = [sys.executable, '-m', 'experiments.resnet', '--dataset=synthetic', f'--workdir={tmp_path / "run"}']
    command = [sys.executable, '-c', heeding, *command]
    pipes = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            end = time.monotonic() + 300
            while not (tmp_path / 'run').exists():
                assert time.monotonic() < end
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130
    assert 'the same command' in err
    assert 'Traceback' not in err


@pytest.mark.parametrize('given', ['--pattern=resnet18', '--help'])
def test_a_broken_pipe_is_not_reported(monkeypatch, given):
    monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
    command = [sys.executable, '-m', 'experiments.list_models', given]
    read, write = os.pipe()
    os.close(read)
    with open(write, 'wb') as closed:
        done = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, '')
