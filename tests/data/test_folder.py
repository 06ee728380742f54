"""Folders of photographs: the files found, their order, and their splits."""

import os
import pickle
import unicodedata
import warnings

import numpy as np
import pytest

from resnet_jax.data.folder import FileImages, list_folder
from resnet_jax.errors import InputError


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


def loaded(root):
    """Images per split and class, and what is said, without the folder's name."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        parts, classes = list_folder(f'folder:{root}')
    counts = {split: np.bincount(part.labels, minlength=len(classes)).tolist() for split, part in parts.items()}
    return classes, counts, [str(one.message).removeprefix(f"'folder:{root}': ") for one in said]


def refused(root):
    with pytest.raises(InputError) as error:
        list_folder(f'folder:{root}')
    assert len(str(error.value).splitlines()) == 1
    return str(error.value).removeprefix(f"'folder:{root}': ").replace(str(root), 'DIR')


def names_of(images):
    return [os.path.relpath(images.name(index), images.root) for index in range(len(images))]


@pytest.mark.parametrize('test', ['test', 'val', 'validation', 'Test'])
def test_folders_for_training_and_testing(tmp_path, test):
    make(tmp_path, 'train/b/1.JPG', 'train/b/deep/0.png', 'train/a/x.webp', f'{test}/b/9.jpeg', 'notes.txt')
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
    assert loaded(tmp_path) == (('a', 'b'), {'train': [4, 4], 'test': [1, 1]}, ['left out the folder test'])
    make(tmp_path, 'val/b/1.jpg')
    assert loaded(tmp_path) == (('a', 'b'), {'train': [5, 5], 'test': [0, 1]}, ['left out the folder test'])


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
    assert error_of().endswith('expected 2 to 10,000 class folders, found 0')
    make(tmp_path, 'a/1.txt', 'b/1.jpg')
    assert error_of().endswith('no images in a; found 1 file that is not an image (a/1.txt)')
    (tmp_path / 'a').rename(tmp_path / '.a')
    make(tmp_path, 'c/1.jpg')
    assert 'no test images found; at least one class needs two' in error_of()
    (tmp_path / 'c').rename(tmp_path / '.c')
    make(tmp_path, 'train/a/1.jpg', 'train/c/1.jpg', 'test/b/1.jpg')
    assert error_of().endswith('expected the same class folders for testing as for training (a, c), found b')
    make(tmp_path, 'test/a/2.jpg')
    assert "class 'b' has test images but no training images" in error_of()
    (tmp_path / 'test').rename(tmp_path / 'more')
    assert refused(tmp_path) == (
        'next to train, expected a folder test, val or validation with class folders, found b, more'
    )


def test_a_train_folder_alone_is_split(tmp_path):
    make(tmp_path, *(f'Train/{label}/{index}.jpg' for label in 'ab' for index in range(5)))
    parts, classes = list_folder(f'folder:{tmp_path}')
    assert (classes, len(parts['train']), len(parts['test'])) == (('a', 'b'), 8, 2)


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, *(f'{label}/{index}.jpg' for label in ('train', 'tram') for index in range(5)))
    assert list_folder(f'folder:{tmp_path}')[1] == ('train', 'tram')


def test_what_is_left_out_is_counted_and_named_once(tmp_path):
    make(tmp_path, 'a/1.jpg', 'a/2.jfif', 'a/3.JPE', 'b/4.tga', 'b/5.jp2', 'b/labels.txt', 'b/x.json', 'b/y', 'b/z')
    make(tmp_path, 'b/.hidden.jpg', 'b/Thumbs.db', 'b/@eaDir/4.tga/thumb.jpg', '__MACOSX/b/._4.tga', 'sample.png')
    (tmp_path / 'c').mkdir()
    said = (
        'left out 4 files that are not images (b/labels.txt, b/x.json, b/y and 1 more), 1 image outside of the class'
        ' folders (sample.png), 4 hidden or system files and folders (__MACOSX, b/.hidden.jpg, b/@eaDir and 1 more),'
        ' 1 empty class folder (c)'
    )
    assert loaded(tmp_path) == (('a', 'b'), {'train': [2, 1], 'test': [1, 1]}, [said])


def test_system_folders_beside_splits_and_classes(tmp_path):
    make(tmp_path, 'train/a/1.jpg', 'train/b/2.jpg', 'test/a/3.jpg', '$RECYCLE.BIN/x.jpg', '__MACOSX/train/a/1.jpg')
    make(tmp_path, 'train/@eaDir/x.jpg', 'train/lost+found/x.jpg', 'test/.ipynb_checkpoints/3.jpg', '.git/x.jpg')
    said = 'left out 5 hidden or system files and folders ($RECYCLE.BIN, __MACOSX, test/.ipynb_checkpoints and 2 more)'
    assert loaded(tmp_path) == (('a', 'b'), {'train': [1, 1], 'test': [1, 0]}, [said])


def test_an_empty_class_is_left_out_unless_it_is_tested(tmp_path):
    make(tmp_path, 'train/a/1.jpg', 'train/b/2.jpg', 'test/a/3.jpg')
    for name in ('train/c', 'test/c', 'test/b'):
        (tmp_path / name).mkdir()
    said = 'left out 3 empty class folders (test/b, test/c, train/c)'
    assert loaded(tmp_path) == (('a', 'b'), {'train': [1, 1], 'test': [1, 0]}, [said])
    make(tmp_path, 'test/c/4.jpg')
    assert refused(tmp_path) == "class 'c' has test images but no training images"


NFC, NFD = (unicodedata.normalize(form, 'Café') for form in ('NFC', 'NFD'))


@pytest.mark.parametrize(('train', 'test'), [(NFC, NFD), (NFD, NFC)])
def test_both_unicode_forms_are_one_class(tmp_path, train, test):
    make(tmp_path, f'train/{train}/1.jpg', 'train/b/2.jpg', f'test/{test}/3.jpg', 'test/b/4.jpg')
    classes, counts, said = loaded(tmp_path)
    assert (set(classes), counts, said) == ({train, 'b'}, {'train': [1, 1], 'test': [1, 1]}, [])
    make(tmp_path, f'train/{test}/1.jpg')
    if len(list((tmp_path / 'train').iterdir())) == 3:  # else the file system knows only one form
        assert refused(tmp_path) == ("the folders 'Cafe\\u0301' and 'Caf\\xe9' have the same name in two Unicode forms")


@pytest.mark.parametrize('other', ['Cat', 'cat ', 'CAT'])
def test_classes_with_similar_names_are_different(tmp_path, other):
    make(tmp_path, 'train/cat/1.jpg', 'train/b/2.jpg', f'test/{other}/3.jpg')
    assert refused(tmp_path) == f"class {other!r} has test images but no training images; 'cat' is another class"


def test_any_name_that_a_file_system_allows(tmp_path):
    labels = ['$0_$9', '%d{}', '"q" \'s\'', ' lead', 'tab\t', 'new\nline', '\u202ertl', '\x1b[31m', 'x' * 200]
    labels += [os.fsdecode(b'caf\xe9')]
    try:
        make(tmp_path, *(f'{label}/{index}{label[:5]}.jpg' for label in labels for index in range(2)))
        make(tmp_path, f'{labels[5]}/a\nb.txt')
    except OSError:
        pytest.skip('this file system allows fewer names')
    classes, counts, said = loaded(tmp_path)
    assert (classes, counts['train']) == (tuple(sorted(labels)), [1] * len(labels))
    assert said == [r'left out 1 file that is not an image (new\x0aline/a\x0ab.txt)']
    parts, _ = list_folder_quietly(tmp_path)
    images = pickle.loads(pickle.dumps(parts['test'].images))
    for index, label in enumerate(parts['test'].labels.tolist()):
        assert images.name(index).split('/')[-2] == classes[label]
        assert images.read(index)[0].startswith(os.fsencode(classes[label]))


def list_folder_quietly(root):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return list_folder(f'folder:{root}')
