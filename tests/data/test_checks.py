"""Checks of images and targets; ``test_datasets.py`` tests their messages for every source."""

import numpy as np
import pytest

from resnet_jax.data.checks import check_images, check_targets, without_column
from resnet_jax.errors import InputError
from resnet_jax.tasks.kinds import get_task


@pytest.mark.parametrize(
    ('task', 'shape', 'expected'),
    [
        ('multiclass', (4, 1), (4,)),
        ('binary', (4, 1), (4,)),
        ('multiclass', (4,), (4,)),
        ('multiclass', (4, 2), (4, 2)),
        ('multiclass', (4, 1, 1), (4, 1, 1)),
        ('multilabel', (4, 1), (4, 1)),
        ('regression', (4, 1), (4, 1)),
    ],
)
def test_a_column_of_class_labels_becomes_a_vector(task, shape, expected):
    labels = np.arange(np.prod(shape)).reshape(shape)
    found = without_column(labels, get_task(task))
    assert found.shape == expected
    np.testing.assert_array_equal(found.ravel(), labels.ravel())
    assert without_column(None, get_task(task)) is None


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 3, 32, 30), 'found (2, 3, 32, 30); np.moveaxis(images, 1, -1) converts [N, C, H, W] to [N, H, W, C]'),
        ((2, 1, 32, 30), 'found (2, 1, 32, 30); np.moveaxis(images, 1, -1) converts [N, C, H, W] to [N, H, W, C]'),
        ((2, 32, 30, 4), '[N, H, W, C] with 1 or 3 channels, found (2, 32, 30, 4)'),
        ((2, 32), '[N, H, W, C] with 1 or 3 channels, found (2, 32)'),
    ],
)
def test_images_of_another_layout(shape, message):
    with pytest.raises(InputError) as error:
        check_images('some', np.zeros(shape, np.uint8))
    assert str(error.value).endswith(message)


@pytest.mark.parametrize('shape', [(3, 4), (3, 1, 1), (3, 0)])
def test_class_labels_of_other_shapes_are_refused(shape):
    images = np.zeros((3, 4, 4, 1), np.uint8)
    with pytest.raises(InputError, match=r'^some: expected .*found .*shape \(3,'):
        check_targets('d', {'some': (images, np.zeros(shape, int))}, (), get_task('multiclass'))
