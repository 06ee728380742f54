"""Which teachers are accepted for which dataset, and what is said about those that are."""

import dataclasses
import warnings

import numpy as np
import pytest

from resnet_jax import InputError, train_and_evaluate
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.tasks.kinds import get_task
from resnet_jax.training.teacher import check_classes, check_outputs, class_difference
from resnet_jax.weights.sources import Source
from tests.training.runs import CONFIG, SPEC


def source_of(class_names=('a', 'b', 'c'), shape=(6, 6, 1), dataset='shades', **fields):
    record = {'config': {'data': {'dataset': dataset}}, 'dataset': {'image_shape': list(shape)}}
    return Source({}, mean=(0.3,), std=(0.3,), class_names=tuple(class_names), record=record, **fields)


def in_colors(shades):
    def split(part):
        return dataclasses.replace(part, images=np.repeat(part.images, 3, axis=3))

    return dataclasses.replace(shades, train=split(shades.train), test=split(shades.test))


@pytest.mark.parametrize(
    ('names', 'trained_on', 'dataset', 'expected'),
    [
        ('abc', 'shades', 'shades', None),
        ('abc', 'others', 'shades', None),
        ((), None, 'shades', None),
        ('abd', 'shades', 'shades', 'its classes are a, b, d, those of shades a, b, c'),
        ('ABC', 'shades', 'shades', 'its classes are A, B, C, those of shades a, b, c'),
        ('acb', 'shades', 'shades', "its classes are in another order: class 1 is 'c', here 'b'"),
        ('012', 'others', 'shades', 'its classes are 0, 1, 2, those of shades a, b, c'),
    ],
)
def test_class_names_are_compared(names, trained_on, dataset, expected, shades):
    assert class_difference(source_of(names, dataset=trained_on), shades, dataset) == expected


def test_names_that_are_only_numbers_are_equal_only_for_the_same_dataset(shades):
    numbers = dataclasses.replace(shades, class_names=('0', '1', '2'))
    assert class_difference(source_of('012', dataset='arrays:a'), numbers, 'arrays:a') is None
    assert class_difference(source_of('012', dataset='arrays:b'), numbers, 'arrays:a') == (
        'it was trained on arrays:b, and class names that are only numbers do not show what they mean'
    )
    other_numbers = dataclasses.replace(shades, class_names=('1', '2', '3'))
    assert class_difference(source_of('123', dataset='arrays:b'), other_numbers, 'arrays:a') is None


def test_other_classes_or_channels_are_refused_unless_the_user_says_that_they_match(shades):
    clothes = source_of(('shirt', 'shoe', 'hat'), dataset='clothes')
    for source, dataset, message in (
        (clothes, shades, 'its classes are shirt, shoe, hat, those of shades a, b, c'),
        (source_of(), in_colors(shades), 'its images have 1 channels, those of shades 3'),
        (source_of(shape=(6, 6, 3)), shades, 'its images have 3 channels, those of shades 1'),
    ):
        with pytest.raises(InputError) as error:
            check_classes('RUN', source, dataset, 'shades', False)
        assert str(error.value) == (
            f'distill_from=RUN does not fit shades: {message};'
            ' if its outputs are the classes of this dataset in this order, set distill_classes_match'
        )
        with pytest.warns(UserWarning, match=f'^distill_from=RUN is used although {message}$'):
            check_classes('RUN', source, dataset, 'shades', True)
    with warnings.catch_warnings(action='error'):
        check_classes('RUN', source_of(), shades, 'shades', False)


def test_what_is_assumed_of_files_is_said_in_one_line(shades):
    preprocessing = Preprocessing(6, 1.0, 'bilinear', (0.5,) * 3, (0.5,) * 3)
    for source, more in (
        (Source({}), ', and that its images are normalized like those of the student'),
        (Source({}, preprocessing=preprocessing, mean=(0.5,), std=(0.5,)), ''),
    ):
        expected = f'that its outputs are the 3 classes of shades in this order{more}$'
        with pytest.warns(UserWarning, match=expected) as found:
            check_classes('FILE', source, shades, 'shades', False)
        assert len(found) == 1
        with warnings.catch_warnings(action='error'):
            check_classes('FILE', source, shades, 'shades', True)


def test_another_image_size_is_said(shades):
    with pytest.warns(UserWarning, match='RUN was trained on images of 8 x 9 pixels, and receives 6 x 6'):
        check_classes('RUN', source_of(shape=(8, 9, 1)), shades, 'shades', False)


def test_another_task_or_number_of_outputs_is_refused():
    task = get_task('multiclass')
    check_outputs('FILE', Source({}), 3, 3, task)
    with pytest.raises(InputError, match='distill_from=FILE has 3 outputs, expected 2'):
        check_outputs('FILE', Source({}), 3, 2, task)
    record = {'config': {'objective': {'task': 'multilabel'}}}
    with pytest.raises(InputError, match='distill_from=RUN was trained for multilabel, expected multiclass'):
        check_outputs('RUN', Source({}, record=record), 3, 3, task)


def test_nothing_is_written_for_a_teacher_that_is_refused_and_the_record_has_what_the_user_said(
    alone, shades, tmp_path
):
    clothes = dataclasses.replace(shades, class_names=('shirt', 'shoe', 'hat'))
    config = CONFIG.replace(epochs=1, distill_from=str(alone[0]), mixup=0.0)
    with pytest.raises(InputError, match='does not fit shades: its classes are a, b, c, those of shades shirt, shoe,'):
        train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=clothes)
    assert not (tmp_path / 'run').exists()
