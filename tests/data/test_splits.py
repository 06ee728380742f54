"""Folders of splits: which of them are recognized, and what is refused instead of taken for classes."""

import pytest

from resnet_jax.data.splits import role_of
from tests.data.test_folder import loaded, make, refused


def classes(folder, count=2):
    return [f'{folder}/{label}/{index}.jpg' for label in 'ab' for index in range(count)]


@pytest.mark.parametrize(
    ('name', 'role'),
    [
        ('train', ('train', ())),
        ('TRAIN', ('train', ())),
        ('Training Images', ('train', ())),
        ('trainset', ('train', ())),
        ('train_val', ('train', ())),
        ('seg_train', ('train', ('seg',))),
        ('TestSet', ('test', ())),
        ('test1', ('test', ())),
        ('tests', ('test', ())),
        ('validData', ('validation', ())),
        ('val2017', ('validation', ())),
        ('dev', ('validation', ())),
        ('Eval-images', ('validation', ())),
        ('tram', None),
        ('trainer', None),
        ('contest', None),
        ('valley', None),
        ('train_test_split', None),
        ('2017', None),
        ('', None),
    ],
)
def test_roles(name, role):
    assert role_of(name) == role


@pytest.mark.parametrize(
    ('train', 'test'),
    [
        ('Training', 'Testing'),
        ('train', 'valid'),
        ('train1', 'test1'),
        ('train2017', 'val2017'),
        ('seg_train', 'seg_test'),
        ('trainset', 'testset'),
        ('TrainImages', 'ValImages'),
        ('training_set', 'dev_set'),
        ('flowers-train', 'flowers-holdout'),
    ],
)
def test_splits_are_never_classes(tmp_path, train, test):
    make(tmp_path / 'set', *classes(train), *classes(test, 1))
    found = ('a', 'b'), {'train': [2, 2], 'test': [1, 1]}, [f'trains on {train} and tests on {test}']
    assert loaded(tmp_path / 'set') == found
    both = ', '.join(sorted([train, test]))
    splits = f'the splits {train}, {test} are in'
    assert refused(tmp_path) == f"{splits} set; use 'folder:DIR/set'"
    (tmp_path / 'more').mkdir()
    (tmp_path / 'set').rename(tmp_path / 'more/set')
    make(tmp_path, 'docs/1.jpg')
    assert refused(tmp_path) == f"{splits} more/set; use 'folder:DIR/more/set'"
    make(tmp_path / 'flat', f'{train}/1.jpg', f'{test}/2.jpg')
    assert refused(tmp_path / 'flat') == (
        f'{both} are named like splits, but contain no class folders; expected DIR/train/CLASS and DIR/test/CLASS, or'
        ' DIR/CLASS; if they are classes, move all class folders into DIR/train'
    )


EXPECTED = '; expected DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS'


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (
            [*classes('train'), *classes('Train'), *classes('val')],
            'Train, train are all named like the training split; keep one of them',
        ),
        (
            [*classes('train'), *classes('val'), *classes('valid')],
            'val, valid are all named like the validation split; keep one of them',
        ),
        ([*classes('val'), *classes('test')], f'found test, val, but no folder named train{EXPECTED}'),
        (classes('test'), f'found test, but no folder named train{EXPECTED}'),
        (['train/1.jpg', *classes('test')], f'train contains no class folders, but test{EXPECTED}'),
        (
            [*classes('train'), 'tram/1.jpg'],
            'next to train, expected a folder test, val or validation with class folders, found tram',
        ),
        (
            [*classes('teil1'), *classes('teil2', 1), 'teil1/c/1.jpg'],
            'teil1, teil2 are probably splits and not classes, since all of them contain the same folders (a, b)'
            f'{EXPECTED}; if they are classes, move all class folders into DIR/train',
        ),
        (
            [f'{label}/{split}/good/1.jpg' for label in ('bottle', 'cable') for split in ('train', 'test')],
            f'every class contains the splits train, test{EXPECTED}',
        ),
        (
            ['train/images/1.jpg', 'train/masks/1.png', 'val/images/2.jpg', 'val/masks/2.png'],
            f'images, masks are not names of classes{EXPECTED}',
        ),
        (
            [*classes('images/train'), *classes('images/val'), 'labels/train/1.txt', 'labels/val/2.txt'],
            "the splits train, val are in images; use 'folder:DIR/images'",
        ),
        (
            [*classes('.'), *classes('cells'), 'c/1.jpg'],
            'cells contains folders named like the classes beside it (a, b); remove it, or, if they are classes, move'
            ' all class folders into DIR/train',
        ),
        (
            [*classes('train'), *classes('train/train')],
            'train contains folders named like the classes beside it (a, b); remove it, or, if they are classes, move'
            ' all class folders into DIR/train',
        ),
        (
            [*classes('old/train'), *classes('new/train')],
            'new, old are probably splits and not classes, since all of them contain the same folders (train); expected'
            ' DIR/train/CLASS and DIR/test/CLASS, or DIR/CLASS; if they are classes, move all class folders into'
            ' DIR/train',
        ),
        (classes('some/dataset'), "found only the folder some/dataset, with a, b; use 'folder:DIR/some/dataset'"),
    ],
)
def test_what_is_not_clear_is_refused_by_name(tmp_path, names, message):
    make(tmp_path, *names)
    assert refused(tmp_path) == message


@pytest.mark.parametrize(
    ('names', 'train', 'said'),
    [
        ([*classes('train'), *classes('test', 1), *classes('val')], [2, 2], ['left out the folder val']),
        ([*classes('train'), *classes('val', 1), 'test/1.jpg', 'x/1'], [2, 2], ['left out the folders test, x']),
        (
            [*classes('seg_train/seg_train'), *classes('seg_test/seg_test', 1), 'seg_pred/seg_pred/1.jpg'],
            [2, 2],
            ['trains on seg_train/seg_train and tests on seg_test/seg_test; left out the folder seg_pred'],
        ),
        (classes('Training'), [1, 1], ['trains on Training and holds out a part of it']),
        ([f'train/{label}/images/{index}.jpg' for label in 'ab' for index in range(2)], [1, 1], []),
        ([f'train/{name}/{index}/1.jpg' for name in ('train', 'test') for index in range(2)], [1, 1], []),
    ],
)  # fmt: skip
def test_what_is_chosen_or_left_out_is_said(tmp_path, names, train, said):
    make(tmp_path, *names)
    _, counts, found = loaded(tmp_path)
    assert (counts, found) == ({'train': train, 'test': [1, 1]}, said)


@pytest.mark.parametrize(
    'labels',
    [
        ('train', 'tram'),
        ('invalid', 'valid'),
        ('airport', 'test_tube', 'train_station'),
        ('bill', 'test_report', 'training_report'),
        ('resting', 'training'),
    ],
)
def test_classes_may_be_named_like_splits(tmp_path, labels):
    make(tmp_path, *(f'{label}/{index}.jpg' for label in labels for index in range(2)))
    assert loaded(tmp_path)[0] == labels
