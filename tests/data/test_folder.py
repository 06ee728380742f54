"""Folders of photographs: the files found, their order, and their splits."""

import os
import pickle

import numpy as np
import pytest

from resnet_jax.data.folder import FileImages, list_folder
from resnet_jax.errors import InputError


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def names_of(images):
    return [os.path.relpath(images.name(index), images.root) for index in range(len(images))]


@pytest.mark.parametrize('test', ['test', 'val', 'validation', 'Test'])
def test_folders_for_training_and_testing(tmp_path, test):
    make(tmp_path, 'train/b/1.JPG', 'train/b/deep/0.png', 'train/a/x.webp', f'{test}/b/9.jpeg', 'notes.txt')
    make(tmp_path, 'train/a/notes.txt', 'train/a/.hidden.jpg', 'train/.git/x.jpg')
    parts, classes = list_folder(f'folder:{tmp_path}')
    assert classes == ('a', 'b')
    images, labels = parts['train'].images, parts['train'].labels
    assert names_of(images) == ['train/a/x.webp', 'train/b/1.JPG', 'train/b/deep/0.png']
    assert labels.tolist() == [0, 1, 1]
    assert images.read(2) == (b'train/b/deep/0.png', 1)
    images, labels = parts['test'].images, parts['test'].labels
    assert (names_of(images), labels.tolist()) == ([f'{test}/b/9.jpeg'], [1])


def test_a_test_folder_without_classes_is_ignored(tmp_path):
    """As in ImageNet's layout."""
    make(tmp_path, *(f'train/{label}/{index}.jpg' for label in 'ab' for index in range(5)), 'test/1.jpg')
    parts, _ = list_folder(f'folder:{tmp_path}')
    assert (len(parts['train']), len(parts['test'])) == (8, 2)
    make(tmp_path, 'val/b/1.jpg')
    parts, _ = list_folder(f'folder:{tmp_path}')
    assert names_of(parts['test'].images) == ['val/b/1.jpg']


def test_a_fraction_of_each_class_is_held_out(tmp_path):
    make(tmp_path, *(f'{label}/{index}.jpg' for label in 'ab' for index in range(20)), 'c/alone.png')
    parts, classes = list_folder(f'folder:{tmp_path}')
    assert classes == ('a', 'b', 'c')
    assert np.bincount(parts['train'].labels).tolist() == [16, 16, 1]
    assert np.bincount(parts['test'].labels).tolist() == [4, 4]
    tested = set(names_of(parts['test'].images))
    assert len(tested | set(names_of(parts['train'].images))) == 41
    assert {name[2:] for name in tested if name[0] == 'a'} != {name[2:] for name in tested if name[0] == 'b'}
    # Adding an image moves few others.
    make(tmp_path, 'a/more.jpg')
    again = set(names_of(list_folder(f'folder:{tmp_path}')[0]['test'].images))
    assert len(again ^ tested) <= 2


def test_unicode_names_and_pickling(tmp_path):
    names = ['ağaç/1.jpg', '木/2.jpg', 'c/' + 'x' * 200 + '.jpg', os.fsdecode(b'\xff.jpg')]
    images = FileImages(str(tmp_path), names, np.arange(4, dtype=np.int32))
    assert names_of(images) == names
    copy = pickle.loads(pickle.dumps(images))
    assert (names_of(copy), copy.labels.tolist()) == (names, [0, 1, 2, 3])


def test_invalid_folders_are_refused(tmp_path):
    def error_of(name=None):
        with pytest.raises(InputError) as error:
            list_folder(name or f'folder:{tmp_path}')
        return str(error.value)

    assert 'folder not found' in error_of('folder:')
    assert 'folder not found' in error_of(f'folder:{tmp_path}/no')
    assert 'expected 2 to 10,000 class folders, found 0' in error_of()
    make(tmp_path, 'a/1.txt', 'b/1.jpg')
    assert "class 'a' has no training images (.jpg" in error_of()
    (tmp_path / 'a').rename(tmp_path / '.a')
    make(tmp_path, 'c/1.jpg')
    assert 'no test images found; at least one class needs two' in error_of()
    (tmp_path / 'c').rename(tmp_path / '.c')
    make(tmp_path, 'train/a/1.jpg', 'train/c/1.jpg', 'test/b/1.jpg')
    assert "class 'b' has test images but no training images" in error_of()
    (tmp_path / 'test').rename(tmp_path / 'testing')
    assert 'next to train, expected one of the folders test, val, validation, found b, testing' in error_of()


def test_a_train_folder_alone_is_split(tmp_path):
    make(tmp_path, *(f'Train/{label}/{index}.jpg' for label in 'ab' for index in range(5)))
    parts, classes = list_folder(f'folder:{tmp_path}')
    assert (classes, len(parts['train']), len(parts['test'])) == (('a', 'b'), 8, 2)


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, *(f'{label}/{index}.jpg' for label in ('train', 'tram') for index in range(5)))
    assert list_folder(f'folder:{tmp_path}')[1] == ('train', 'tram')
