"""Datasets of photographs from any source."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Split, numbered_as
from resnet_jax.data.folder import list_folder
from resnet_jax.data.photographs import DEFAULT_SIZE, dataset_from_source, squares
from resnet_jax.errors import InputError


@pytest.fixture
def parts(tmp_path):
    """A red, a damaged and a blue training image of different sizes, and a green test image."""
    for name, color, size in (
        ('train/a/0.png', (200, 0, 0), (8, 4)),
        ('train/a/1.png', None, None),
        ('train/b/2.png', (0, 0, 100), (300, 200)),
        ('test/b/3.png', (0, 50, 0), (6, 9)),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if color is None:
            (tmp_path / name).write_bytes(b'nothing')
        else:
            Image.new('RGB', size, color).save(tmp_path / name)
    return list_folder(f'folder:{tmp_path}')[0]


def test_channel_statistics_of_sampled_pixels(parts):
    dataset = dataset_from_source('some', parts['train'], parts['test'], ('a', 'b'))
    assert (dataset.image_size, dataset.image_shape) == (DEFAULT_SIZE, (224, 224, 3))
    reds, blues = 8 * 4, 150 * 100  # every second row and column of the large image
    pixels = np.repeat([[200, 0, 0], [0, 0, 100]], [reds, blues], axis=0) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, np.maximum(pixels.std(0), 1 / 255), rtol=1e-6)


def test_classes_are_matched_by_name(parts):
    dataset = dataset_from_source('some', parts['train'], parts['test'], ('a', 'b'))
    again = numbered_as(dataset, ['b', 'x', 'a'])
    assert again.class_names == ('b', 'x', 'a')
    assert (again.train.labels.tolist(), again.test.labels.tolist()) == ([2, 2, 0], [0])
    photographs = again.train.photographs
    assert [photographs.read(index)[1] for index in range(len(photographs))] == [2, 2, 0]
    assert photographs.name(2).endswith('train/b/2.png')
    assert numbered_as(dataset, ['a', 'b']) is dataset
    assert numbered_as(dataset, ['0', '1', '2']) is dataset  # whose names are only numbers
    numbers = dataclasses.replace(dataset, class_names=('07', '3'))
    assert numbered_as(numbers, [str(index) for index in range(10)]).train.photographs.read(0)[1] == 7
    with pytest.raises(InputError, match="has no class '7'"):
        numbered_as(numbers, ['0', '1', '2', '3'])
    with pytest.raises(InputError, match="has no class '07'"):
        numbered_as(numbers, ['a', 'b'])
    with pytest.raises(InputError, match="some: the network has no class 'b'; its classes are a, c"):
        numbered_as(dataset, ['a', 'c'])
    with pytest.raises(InputError, match="some: the network has several classes 'b'"):
        numbered_as(dataset, ['a', 'b', 'b'])
    with pytest.raises(InputError, match='some: several classes are the same class of the network: 07, 7'):
        numbered_as(dataclasses.replace(dataset, class_names=('07', '7')), [str(index) for index in range(10)])
    composed = dataclasses.replace(dataset, class_names=('a', 'caf\u00e9'))  # another system's Unicode form
    assert numbered_as(composed, ['cafe\u0301', 'a']).train.labels.tolist() == [1, 1, 0]


def test_squares_skip_damaged_photographs(parts):
    found = squares(parts['train'].photographs, 2, 5)
    assert (found.dtype, found.shape) == (np.uint8, (2, 5, 5, 3))
    np.testing.assert_array_equal(found[:, 2, 2], [[200, 0, 0], [0, 0, 100]])


def test_without_a_decodable_photograph_it_is_refused(tmp_path):
    for name in ('train/a/0.png', 'train/b/2.png', 'test/a/1.png'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b'nothing')
    parts, classes = list_folder(f'folder:{tmp_path}')
    with pytest.raises(InputError, match="'some': none of 2 images could be decoded"):
        dataset_from_source('some', parts['train'], parts['test'], classes)


class Shades:
    """A user-supplied source: each photograph has one gray level, which is its target."""

    levels = (10, 30, 80)

    def __len__(self):
        return len(self.levels)

    def name(self, index):
        return f'shade {index}'

    def read(self, index):
        file = io.BytesIO()
        Image.new('RGB', (5, 4), (self.levels[index],) * 3).save(file, 'png')
        return file.getvalue(), np.array([self.levels[index]], np.float32)


def test_a_user_supplied_source():
    dataset = dataset_from_source('shades', Shades(), Shades(), ('level',), 'regression', image_size=6)
    assert (dataset.image_shape, dataset.class_names, len(dataset.train)) == ((6, 6, 3), ('level',), 3)
    np.testing.assert_array_equal(dataset.train.labels, [[10], [30], [80]])  # read for the statistics of the task
    assert dataset.target_statistics()['mean'] == pytest.approx((40,))
    unread = dataset_from_source('shades', Shades(), Shades(), ('a', 'b'))
    assert unread.train.labels is None
    with pytest.raises(InputError, match="'shades': class_names must name the classes, labels or values"):
        dataset_from_source('shades', Shades(), Shades())
    labelled = Split(Shades(), np.array([0, 1, 3]))
    with pytest.raises(InputError, match="'shades', test: labels must be from 0 to 1, found 3"):
        dataset_from_source('shades', Split(Shades(), np.array([0, 1, 1])), labelled, ('a', 'b'))


def test_a_dataset_object_can_be_resized(parts):
    dataset = dataset_from_source('some', parts['train'], parts['test'], ('a', 'b'))
    assert load_dataset(dataset) is dataset
    assert load_dataset(dataset, image_size=64).image_shape == (64, 64, 3)
    with pytest.raises(InputError, match='dataset some was made for task=multiclass, not binary'):
        load_dataset(dataset, task='binary')
