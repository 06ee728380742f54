"""Fingerprints change with the examples, and with nothing else."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from resnet_jax import load_dataset
from resnet_jax.data.examples import dataset_from_arrays
from resnet_jax.data.fingerprint import fingerprint


def arrays():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (9, 5, 4, 3), np.uint8), np.arange(9) % 3) for _ in range(2)]


def test_every_pixel_and_target_of_images_in_memory_counts():
    train, test = arrays()
    before = fingerprint(dataset_from_arrays('a', train, test))
    assert fingerprint(dataset_from_arrays('another', train, test, ('x', 'y', 'z'))) == before
    assert before['train'] != before['test']
    for number in range(4):
        images, labels = train[0].copy(), train[1].copy()
        if number == 0:
            images[8, 4, 3, 2] ^= 1
        elif number == 1:
            labels[[0, 1]] = labels[[1, 0]]
        elif number == 2:
            images, labels = images[::-1], labels[::-1]
        else:
            images = images.transpose(0, 2, 1, 3)[:, :, :4]
        changed = fingerprint(
            dataset_from_arrays('a', (images, labels), (test[0][:, :4], test[1]) if number == 3 else test)
        )
        assert changed['train'] != before['train'], number
        assert (changed['test'] == before['test']) == (number != 3)


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes with four images each in ``train`` and ``test``."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            folder = tmp_path / 'pets' / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f'{number}.png')
    return tmp_path / 'pets'


def fingerprint_of(folder):
    return fingerprint(load_dataset(f'folder:{folder}', image_size=8))


def test_photographs_may_be_moved_but_not_renamed_or_changed(photographs, tmp_path):
    before = fingerprint_of(photographs)
    moved = photographs.rename(tmp_path / 'elsewhere')
    assert fingerprint_of(moved) == before
    (moved / 'train/cat/3.png').rename(moved / 'train/cat/4.png')
    renamed = fingerprint_of(moved)
    assert renamed['train'] != before['train']
    assert renamed['test'] == before['test']
    (moved / 'train/cat/4.png').rename(moved / 'train/cat/3.png')
    Image.new('RGB', (9, 9)).save(moved / 'test/dog/1.png')
    changed = fingerprint_of(moved)
    assert changed['train'] == before['train']
    assert changed['test'] != before['test']


def test_names_that_are_not_utf_8_and_unreadable_files(photographs):
    dataset = load_dataset(f'folder:{photographs}', image_size=8)

    class Odd:
        def __len__(self):
            return 3

        def name(self, index):
            return f'{index}\udce9.png'

        def read(self, index):
            raise OSError

    train = dataclasses.replace(dataset.train, images=Odd(), labels=np.zeros(3, np.int32))
    assert len(fingerprint(dataclasses.replace(dataset, train=train))['train']) == 16
