"""The whole of stderr of a training that ends with an error of its disk, folder or data: one line."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.experiments.commands import ROOT, call

pytestmark = pytest.mark.slow
# Times differ between two runs.
_TIMES = {'train_seconds', 'evaluation_seconds', 'examples_per_second'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for split, size in (('train', 64), ('test', 16)):
        images = rng.integers(0, 255, (size, 8, 8, 3), np.uint8)
        np.savez(folder / f'{split}.npz', images=images, labels=np.arange(size) % 4)
    return folder


def train(data, workdir, *given):
    command = [sys.executable, '-m', 'experiments.resnet', f'--dataset=arrays:{data}', '--epochs=4', '--batch_size=16']
    command += ['--checkpoint_every_epochs=1', f'--workdir={workdir}', *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def fill(path):
    with open(path, 'wb', buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def metrics_of(workdir):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in _TIMES} for record in records]


def test_a_full_disk(data, small_disk, tmp_path):
    """After the disk is enlarged, the same command resumes, with the numbers of an uninterrupted run."""
    workdir = small_disk / 'run'
    subprocess.run(['mount', '-o', 'remount,size=4m', str(small_disk)], check=True)
    done = train(data, workdir)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'stopped: cannot write checkpoint {workdir}/checkpoints/')
    assert 'No space left on device; last intact step: ' in line
    subprocess.run(['mount', '-o', 'remount,size=40m', str(small_disk)], check=True)
    resumed, whole = train(data, workdir), train(data, tmp_path / 'whole')
    assert (resumed.returncode, resumed.stderr, whole.stderr) == (0, '', '')
    assert f'resuming {workdir} after step' in resumed.stdout
    assert metrics_of(workdir) == metrics_of(tmp_path / 'whole')


def test_a_disk_that_is_full_from_the_start(data, small_disk):
    fill(small_disk / 'filling')
    done = train(data, small_disk / 'run')
    assert done.returncode == 1
    assert done.stderr == f'stopped: cannot write {small_disk}/run/config.json: No space left on device\n'


@pytest.mark.parametrize('workdir', ['a' * 300, '/'.join(['b' * 200] * 30)])
def test_a_name_that_is_too_long(data, tmp_path, workdir):
    done = call('resnet', f'--dataset=arrays:{data}', f'--workdir={tmp_path}/{workdir}')
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith('stopped: ')
    assert line.endswith(': File name too long')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('damage', [lambda data: data[:3000], lambda data: data[:2000] + b'?' + data[2001:]])
def test_damaged_arrays(data, tmp_path, damage):
    shutil.copytree(data, tmp_path / 'data')
    path = tmp_path / 'data' / 'train.npz'
    path.write_bytes(damage(path.read_bytes()))
    done = call('resnet', f'--dataset=arrays:{path.parent}', f'--workdir={tmp_path}/run')
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'error: {path}: not a valid .npz file of plain arrays (')
    assert not (tmp_path / 'run').exists()


def test_a_compilation_cache_that_is_full(data, tmp_path, small_disk, monkeypatch):
    fill(small_disk / 'filling')
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(small_disk))
    done = train(data, tmp_path / 'run')
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        'warning: compiled programs are not written to the compilation cache: OSError: [Errno 28] No'
    )


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('photographs'), np.random.default_rng(0)
    for split, name, number in itertools.product(('train', 'test'), 'ab', range(16)):
        path = folder / split / name / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return folder


OF_PHOTOGRAPHS = ('--recipe=cifar_sgd', '--warmup_epochs=0', '--image_size=16', '--batch_size=16', '--num_workers=2')


def test_a_killed_worker(photographs, tmp_path):
    """As by a system that is out of memory."""
    command = [sys.executable, '-m', 'experiments.resnet', f'--dataset=folder:{photographs}', *OF_PHOTOGRAPHS]
    command += ['--epochs=10000', f'--workdir={tmp_path}/run']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while 'epoch 2 ' not in (line := run.stdout.readline()):
            assert line
        listed = subprocess.run(['pgrep', '-P', str(run.pid), '-f', 'spawn_main'], capture_output=True, text=True)
        os.kill(int(listed.stdout.split()[-1]), signal.SIGKILL)
        _, stderr = run.communicate(timeout=100)
    assert run.returncode == 1
    assert stderr == (
        'stopped: a worker process that reads photographs ended with exit code -9; if it ran out of memory, use fewer'
        ' --num_workers\n'
    )


def test_a_damaged_photograph(photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / 'data')
    path = tmp_path / 'data' / 'train' / 'a' / '7.png'
    path.write_bytes(path.read_bytes()[:200])
    given = (f'--dataset=folder:{tmp_path}/data', *OF_PHOTOGRAPHS, '--epochs=1')
    done = call('resnet', *given, f'--workdir={tmp_path}/run')
    assert done.returncode == 0
    assert re.fullmatch(rf'{path}: cannot be decoded \(.*\), replaced by another image\n', done.stderr)
    done = call('resnet', *given, '--strict_data', f'--workdir={tmp_path}/strict')
    assert done.returncode == 2
    assert re.fullmatch(rf'error: {path}: cannot be decoded \(.*\)\n', done.stderr)
