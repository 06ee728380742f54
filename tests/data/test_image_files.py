"""Image files: recognized by suffix or content; everything else is counted."""

import io
import os
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import image_files
from resnet_jax.data.image_files import Counted, find_images, image_suffixes, in_words, is_ignored, is_image


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(file, kind)
    return file.getvalue()


def test_suffixes_are_those_that_pillow_reads():
    known = [
        '.jpg',
        '.jpeg',
        '.jpe',
        '.jfif',
        '.png',
        '.gif',
        '.bmp',
        '.dib',
        '.tif',
        '.tiff',
        '.webp',
        '.jp2',
        '.ppm',
        '.pgm',
        '.pbm',
        '.pnm',
        '.tga',
        '.mpo',
    ]
    assert image_suffixes() >= set(known)
    assert not image_suffixes() & {'', '.txt', '.json', '.mp4', '.mpg', '.h5', '.eps', '.pdf', '.npy'}
    assert ('.avif' in image_suffixes()) is ('AVIF' in Image.OPEN)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'JPEG2000', 'ICO', 'PCX', 'DDS'])
def test_images_are_recognized_by_their_content(kind: str, tmp_path: pathlib.Path):
    (tmp_path / 'some').write_bytes(encoded(kind))
    assert is_image(str(tmp_path / 'some'))


@pytest.mark.parametrize(
    'content',
    [b'', b'P', b'Python is a language', b'P6 is text', b'BMW', b'GIF', b'II*\0', b'\xff\xd8', b'RIFF', bytes(9)],
)  # fmt: skip
def test_other_files_are_not_images(content: bytes, tmp_path: pathlib.Path):
    (tmp_path / 'some').write_bytes(content)
    assert not is_image(str(tmp_path / 'some'))


def test_every_file_is_found_or_counted(tmp_path: pathlib.Path, monkeypatch):
    jpeg = encoded('JPEG')
    found = ['a.JPG', 'b.jfif', 'c.jpe', 'd', 'e.jpg_large', 'f.jpg ', 'g.txt', 'deep/h.x', 'i.jpg']
    for name in (*found, '.hidden.jpg', 'desktop.ini', '@eaDir/a.jpg', '._a.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg)
    (tmp_path / 'i.jpg').write_bytes(b'damaged')  # reading it reports it
    (tmp_path / 'notes.md').write_text('text')
    (tmp_path / 'broken').symlink_to('nothing')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path / 'pipe.jpg')  # opening it would wait forever
    opened = []
    monkeypatch.setattr(image_files, 'is_image', lambda path: opened.append(os.path.basename(path)) or is_image(path))
    with pytest.warns(UserWarning, match='left out') as said:
        assert find_images(tmp_path) == sorted(found)
    assert sorted(opened) == ['d', 'e.jpg_large', 'f.jpg ', 'g.txt', 'h.x', 'notes.md']  # others are not opened
    assert [str(one.message) for one in said] == [
        f'{tmp_path}: left out 3 files that are not images (broken, notes.md, pipe.jpg), 4 hidden or system files and'
        ' folders (._a.jpg, .hidden.jpg, @eaDir and 1 more)'
    ]


def test_nothing_is_said_if_nothing_is_left_out(tmp_path: pathlib.Path):
    (tmp_path / 'a.png').write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert find_images(tmp_path) == ['a.png']


@pytest.mark.parametrize(
    ('name', 'ignored'),
    [
        *((name, True) for name in ('.DS_Store', '._x.jpg', '.ipynb_checkpoints', '@eaDir', '__MACOSX', 'Thumbs.db')),
        *((name, True) for name in ('lost+found', '$RECYCLE.BIN', 'System Volume Information', '#recycle')),
        *((name, False) for name in ('cat', '@cat', '$0_$9', 'a.jpg', '#1', 'recycled')),
    ],
)
def test_names_of_the_system(name: str, ignored: bool):
    assert is_ignored(name) is ignored


def test_lists_of_names_are_short_and_on_one_line():
    assert in_words(['a', 'b', 'c']) == 'a, b, c'
    assert in_words(['a', 'b', 'c', 'd']) == 'a, b, c and 1 more'
    assert in_words(['a\nb', os.fsdecode(b'\xe9')]) == r'a\x0ab, \xe9'
    counted = Counted()
    for name in 'dbaec':
        counted.add(name)
    assert (str(counted), counted.count) == ('a, b, c and 2 more', 5)
