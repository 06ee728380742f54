"""Whole runs on folders of photographs, with different readers and with damaged files."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from resnet_jax import InputError, Interrupted, TrainConfig, load_dataset, make_spec, train_and_evaluate
from resnet_jax.data.decode import DamagedImageError, decode
from resnet_jax.data.feeds import THREAD_READER, PhotographFeed, ReaderOptions
from tests.data import coloured, odd_files
from tests.training.ports import free_address

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
CONFIG = TrainConfig().replace(
    dataset='folder',
    epochs=3,
    batch_size=8,
    learning_rate=0.05,
    image_size=8,
    crop_area=(0.3, 1.0),
    horizontal_flip=True,
    log_every_steps=2,
)


DAMAGED = ('train/red/00.png', 'train/blue/11.jpg', 'test/green/04.png')
COUNTED = ('num_test_examples', 'replaced_images', 'skipped_steps')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """33 training and 9 test images, whose color is their class."""
    return coloured.write(tmp_path_factory.mktemp('photographs'), train=33, test=9)


def train(folder, workdir, reader=THREAD_READER, **changes):
    config = CONFIG.replace(**changes)
    dataset = load_dataset(f'folder:{folder}', image_size=config.data.image_size)
    return train_and_evaluate(SPEC, config, workdir, dataset=dataset, reader=reader)


def losses_of(workdir):
    records = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [(record['split'], record['step'], record['loss']) for record in records]


@pytest.fixture(scope='module')
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    return workdir, train(folder, workdir)


def test_a_run_learns_from_photographs(finished):
    _, result = finished
    assert result['test_accuracy'] == 1
    assert (result['num_train_examples'], result['num_test_examples'], result['replaced_images']) == (33, 9, 0)


def test_a_resumed_run_has_the_same_losses(folder, finished, tmp_path, monkeypatch):
    batch = PhotographFeed.batch

    def stopping(self, step):
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patch, contextlib.suppress(Interrupted):
        patch.setattr(PhotographFeed, 'batch', stopping)
        train(folder, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'result.json').exists()
    train(folder, tmp_path / 'run')
    tests = [loss for loss in losses_of(tmp_path / 'run') if loss[0] == 'test']
    assert tests == [loss for loss in losses_of(finished[0]) if loss[0] == 'test']


def test_a_signal_after_the_last_step_lets_the_run_finish(folder, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / 'run')
    (tmp_path / 'run' / 'result.json').unlink()
    assert train(folder, tmp_path / 'run')['test_loss'] == finished[1]['test_loss']


SIGNALED = """
import sys
from tests.data.test_feeds import ReaderOptions, train
if __name__ == '__main__':
    train(sys.argv[1], sys.argv[2], ReaderOptions(workers=2), epochs=10_000, image_size=64)
"""


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_saves_the_run(root, folder, tmp_path, number):
    (tmp_path / 'struck.py').write_text(SIGNALED)
    command = [sys.executable, str(tmp_path / 'struck.py'), str(folder), str(tmp_path / 'run')]
    environment = os.environ | {'PYTHONPATH': str(root)}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        log, end = tmp_path / 'run' / 'metrics.jsonl', time.monotonic() + 200
        while not (log.exists() and log.read_text().count('\n') > 3):
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        os.killpg(process.pid, number)
        printed = process.communicate(timeout=100)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert 'stopped by' in printed, printed
    assert 'Worker' not in printed, printed
    assert 'leaked' not in printed, printed
    assert list((tmp_path / 'run' / 'checkpoints').iterdir())


@pytest.mark.slow
def test_worker_processes_do_not_change_results(folder, finished, tmp_path):
    train(folder, tmp_path / 'run', ReaderOptions(workers=2))
    assert losses_of(tmp_path / 'run') == losses_of(finished[0])


@pytest.mark.slow
def test_one_and_two_devices_have_the_same_losses(folder, finished, tmp_path):
    dataset = load_dataset(f'folder:{folder}', image_size=8)
    train_and_evaluate(SPEC, CONFIG, tmp_path / 'run', dataset=dataset, devices=jax.devices()[:1])
    for mine, theirs in zip(losses_of(tmp_path / 'run'), losses_of(finished[0]), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], rel=1e-4)


ONE_OF_TWO = """
import sys
from tests.data.test_feeds import train
from resnet_jax.devices import join_processes
folder, workdir, address, index = sys.argv[1:]
join_processes(address, 2, int(index))
train(folder, workdir, log_every_steps=1)
"""


@pytest.mark.slow
def test_two_processes_train_like_one(start, folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'data')
    for name in DAMAGED:
        (tmp_path / 'data' / name).write_bytes(b'nothing')
    alone = train(tmp_path / 'data', tmp_path / 'alone', log_every_steps=1)
    address = free_address()
    both = [start(ONE_OF_TWO, tmp_path / 'data', tmp_path / 'two', address, index) for index in range(2)]
    printed = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    for mine, theirs in zip(losses_of(tmp_path / 'two'), losses_of(tmp_path / 'alone'), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], rel=1e-4)
    result = json.loads((tmp_path / 'two' / 'result.json').read_text())
    assert {name: result[name] for name in COUNTED} == {name: alone[name] for name in COUNTED}
    assert result['replaced_images'] > 2
    # Each process reports only the files it read itself.
    damaged = [
        {line.split(': cannot be')[0] for line in text.splitlines() if 'cannot be decoded' in line} for text in printed
    ]
    assert damaged[0] | damaged[1] == {str(tmp_path / 'data' / name) for name in DAMAGED}


def test_damaged_photographs_are_reported_and_replaced(folder, tmp_path, capfd):
    shutil.copytree(folder, tmp_path / 'data')
    for name in DAMAGED:
        (tmp_path / 'data' / name).write_bytes(b'nothing')
    result = train(tmp_path / 'data', tmp_path / 'run')
    assert result['num_test_examples'] == 8
    assert 1 <= result['replaced_images'] <= 6  # two, in three epochs that drop one of 33 examples
    printed = capfd.readouterr().err.splitlines()
    why = ': cannot be decoded (unknown image format)'
    assert f'{tmp_path / "data/test/green/04.png"}{why}, skipped' in printed
    assert f'{tmp_path / "data/train/red/00.png"}{why}, replaced by another image' in printed
    assert len(printed) == 3
    with pytest.raises(InputError, match='cannot be decoded'):
        train(tmp_path / 'data', tmp_path / 'strict', ReaderOptions(strict=True))


def test_a_folder_of_forty_odd_files(folder, tmp_path, capfd):
    """Thirty files are used and ten replaced; the run completes."""
    good = odd_files.write(tmp_path / 'data' / 'train' / 'forty')
    shutil.copytree(folder / 'train' / 'green', tmp_path / 'data' / 'train' / 'green')
    shutil.copytree(folder / 'test' / 'green', tmp_path / 'data' / 'test' / 'green')
    next((tmp_path / 'data' / 'train' / 'green').iterdir()).unlink()  # 50 remain, each once per epoch
    images = load_dataset(f'folder:{tmp_path / "data"}', image_size=8).train.photographs
    for index in range(len(good)):
        data, _ = images.read(index)
        path = pathlib.Path(images.name(index))
        if good[path.name]:
            assert decode(data).shape[2] == 3, path
        else:
            with pytest.raises(DamagedImageError):
                decode(data)
    result = train(tmp_path / 'data', tmp_path / 'run', batch_size=10)
    named = {line.split(': cannot be decoded')[0] for line in capfd.readouterr().err.splitlines()}
    assert {pathlib.Path(name).name for name in named} == {name for name, whole in good.items() if not whole}
    assert (result['steps'], result['replaced_images']) == (15, 30)
    assert np.isfinite(result['test_loss'])


@pytest.mark.slow
def test_seeds_train_together_on_photographs(folder, finished, tmp_path):
    dataset = load_dataset(f'folder:{folder}', image_size=8)
    result = train_and_evaluate(SPEC, CONFIG, tmp_path / 'runs', num_seeds=2, dataset=dataset)
    assert result['runs'][0]['test_loss'] == pytest.approx(finished[1]['test_loss'], rel=1e-4)
    assert result['runs'][1]['test_loss'] != result['runs'][0]['test_loss']
