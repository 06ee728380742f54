"""Streamed batches, which are the same for any number of workers and processes."""

import json
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from resnet_jax.data.batches import train_indices
from resnet_jax.data.decode import Box
from resnet_jax.data.folder import FileImages
from resnet_jax.data.stream import EvalImages, RandomCrop, TrainingImages, batches
from resnet_jax.errors import InputError

NAMES = [f'{index:02}.png' for index in range(20)]
LABELS = np.arange(20, dtype=np.int32) % 7


def lives(pid):
    """Whether a process is running; zombies are not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Twenty images, each of one color and a different size."""
    root = tmp_path_factory.mktemp('images')
    for index, name in enumerate(NAMES):
        Image.new('RGB', (30 + index, 50 - index), (10 * index,) * 3).save(root / name)
    return FileImages(str(root), NAMES, LABELS)


@pytest.fixture
def damaged(images, tmp_path):
    """The same, with images 4, 5 and 19 truncated."""
    for index, name in enumerate(NAMES):
        data, _ = images.read(index)
        (tmp_path / name).write_bytes(data[:20] if index in (4, 5, 19) else data)
    return FileImages(str(tmp_path), NAMES, LABELS)


def training(images, first=0, last=7, workers=0, **options):
    chosen = {'seed': 3, 'batch_size': 6, 'repeats': 1, 'crop': RandomCrop(8, (0.1, 1.0)), 'rows': range(6)} | options
    return list(batches(TrainingImages(images, **chosen), first, last, len(chosen['rows']), workers))


def equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys() == {'image', 'label', 'source'}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


class TestTraining:
    def test_an_epoch_has_each_image_once_with_its_label(self, images):
        for epoch in (0, 1):
            found = training(images, 3 * epoch, 3 * epoch + 3)
            assert len(set(np.concatenate([batch['source'] for batch in found]).tolist())) == 18
        for step, batch in enumerate(training(images)):
            np.testing.assert_array_equal(batch['source'], train_indices(3, step, 20, 6, 1))
            assert (batch['image'].dtype, batch['image'].shape) == (np.uint8, (6, 8, 8, 3))
            np.testing.assert_array_equal(batch['image'][:, 4, 4, 0], 10 * batch['source'])
            np.testing.assert_array_equal(batch['label'], LABELS[batch['source']])

    def test_batches_after_resuming(self, images):
        equal(training(images, 4), training(images)[4:])
        assert training(images, 7) == []

    def test_machines_share_a_batch(self, images):
        parts = training(images), training(images, rows=range(4)), training(images, rows=[4, 5])
        for whole, some, others in zip(*parts, strict=True):
            for name in whole:
                np.testing.assert_array_equal(whole[name], np.concatenate([some[name], others[name]]))

    @pytest.mark.slow
    def test_a_hundred_batches_do_not_depend_on_workers_and_processes(self, root, tmp_path):
        """With 0, 1 and 4 workers, in 1 and 2 processes, and resumed at batch 57."""
        random = np.random.default_rng(0)
        for index in range(90):
            path = tmp_path / 'train' / 'abc'[index % 3] / f'{index}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (100 + index, 150 - index, 3), np.uint8)).save(path)
            (tmp_path / 'test' / 'abc'[index % 3]).mkdir(parents=True, exist_ok=True)
        for name in 'abc':
            shutil.copy(next((tmp_path / 'train' / name).iterdir()), tmp_path / 'test' / name)
        (tmp_path / 'train' / 'a' / '3.jpg').write_bytes(b'damaged')

        def made(first, start, end, workers):
            command = [sys.executable, '-m', 'tests.data.hundred_batches', str(tmp_path)]
            command += map(str, (first, start, end, workers))
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return [json.loads(line) for line in done.stdout.splitlines()]

        whole = made(0, 0, 16, 0)
        assert [len(batch) for batch in whole] == [16] * 100
        assert len({checksum for batch in whole for checksum in batch}) == 1600
        assert made(0, 0, 16, 1) == whole
        assert made(0, 0, 16, 4) == whole
        assert made(57, 0, 16, 0) == made(57, 0, 16, 4) == whole[57:]
        halves = made(0, 0, 8, 0), made(0, 8, 16, 2)
        assert [some + others for some, others in zip(*halves, strict=True)] == whole

    def test_workers_end_when_the_run_is_killed(self, images, root):
        code = (
            'import multiprocessing, pickle, sys, time\n'
            'from resnet_jax.data.stream import batches\n'
            'if __name__ == "__main__":\n'
            '    made = batches(pickle.load(sys.stdin.buffer), 0, 1000, 4, 2)\n'
            '    next(made)\n'
            '    print(*(process.pid for process in multiprocessing.active_children()), flush=True)\n'
            '    time.sleep(600)\n'
        )
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, '-c', code], cwd=root, **pipes) as run:
            run.stdin.write(pickle.dumps(TrainingImages(images, 0, 4, 1, RandomCrop(8, None), range(4))))
            run.stdin.close()
            workers = [*map(int, run.stdout.readline().split())]
            run.kill()
        assert len(workers) == 2
        deadline = time.monotonic() + 60
        while any(map(lives, workers)):
            assert time.monotonic() < deadline, workers
            time.sleep(0.1)

    def test_copies_have_different_crops(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        for name in NAMES[:4]:
            Image.fromarray(pixels).save(tmp_path / name)
        images = FileImages(str(tmp_path), NAMES[:4], LABELS[:4])
        (batch,) = training(images, 0, 1, batch_size=4, repeats=2, rows=range(4))
        sources = batch['source']
        assert sources[0] == sources[1] != sources[2] == sources[3]
        assert len({image.tobytes() for image in batch['image']}) == 4

    def test_a_damaged_image_is_replaced_by_the_next(self, images, damaged):
        stand_in = np.arange(20)
        stand_in[[4, 5, 19]] = 6, 6, 0
        for batch, whole in zip(training(damaged), training(images), strict=True):
            np.testing.assert_array_equal(batch['source'], stand_in[whole['source']])
            np.testing.assert_array_equal(batch['image'][:, 4, 4, 0], 10 * batch['source'])
            np.testing.assert_array_equal(batch['label'], LABELS[batch['source']])
        with pytest.raises(InputError, match=r'\.png: cannot be decoded'):
            training(damaged, strict=True)

    def test_without_a_readable_image_it_is_an_error(self, tmp_path):
        for name in NAMES[:2]:
            (tmp_path / name).write_bytes(b'nothing')
        with pytest.raises(InputError, match='nor can the following 1'):
            training(FileImages(str(tmp_path), NAMES[:2], LABELS[:2]), batch_size=2, rows=range(2))


class TestEvaluation:
    def made(self, images, examples, tries=1):
        blank = np.zeros((4, 4, 3), np.uint8), np.int32(0)
        function = EvalImages(images, np.array(examples), lambda pixels: pixels[:4, :4], blank, tries)
        return list(batches(function, 0, len(examples) // 3, 3, 0))

    def test_each_image_once_and_padding_masked(self, images):
        first, second = self.made(images, [7, 2, 9, 11, -1, -1])
        np.testing.assert_array_equal(first['image'][:, 0, 0, 0], [70, 20, 90])
        np.testing.assert_array_equal(first['label'], [0, 2, 2])
        assert first['mask'].all()
        np.testing.assert_array_equal(second['image'][:, 0, 0, 0], [110, 0, 0])
        assert second['mask'].tolist() == [True, False, False]

    def test_damaged_images_are_masked_or_replaced(self, damaged):
        (batch,) = self.made(damaged, [3, 4, 19])
        assert batch['mask'].tolist() == [True, False, False]
        (batch,) = self.made(damaged, [3, 4, 19], tries=3)
        np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], [30, 60, 0])
        assert batch['mask'].all()


class TestCrops:
    def test_boxes_have_the_requested_areas_and_ratios(self):
        crop, random = RandomCrop(8, (0.1, 0.45), (0.5, 1.5)), np.random.default_rng(0)
        boxes = [crop.draw(random, 400, 400) for _ in range(400)]
        assert all(0 <= box.top <= 400 - box.height and 0 <= box.left <= 400 - box.width for box in boxes)
        areas = np.array([box.height * box.width for box in boxes]) / 160_000
        ratios = np.array([box.width / box.height for box in boxes])
        assert areas.min() == pytest.approx(0.1, abs=0.01)
        assert areas.max() == pytest.approx(0.45, abs=0.01)
        assert areas.mean() == pytest.approx(0.275, abs=0.015)
        assert np.log([ratios.min(), ratios.max()]) == pytest.approx(np.log([0.5, 1.5]), abs=0.05)

    def test_elongated_images_use_the_central_box(self):
        crop, random = RandomCrop(8, (0.9, 1.0)), np.random.default_rng(0)
        assert crop.draw(random, 10, 1000) == Box(0, 493, 10, 13)
        assert crop.draw(random, 1000, 9) == Box(494, 0, 12, 9)
        assert RandomCrop(8, None).draw(random, 40, 61) == Box(0, 10, 40, 40)
