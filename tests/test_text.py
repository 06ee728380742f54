"""Names from outside as text."""

import io
import os
import sys

import pytest

from resnet_jax import text

NAMES = (
    ('cat', 'cat'),
    ('$0_$9 {0} %s, "q" \\n C:\\users', '$0_$9 {0} %s, "q" \\n C:\\users'),
    (os.fsdecode(b'caf\xe9'), '\\xe9'.join(('caf', ''))),
    ('caf\\xe9', 'caf\\x5cxe9'),
    ('\\x5cxe9', '\\x5cx5cxe9'),
    ('a\nb\tc\r\x00\x7f', 'a\\x0ab\\x09c\\x0d\\x00\\x7f'),
    ('\x1b[31m\x9b', '\\x1b[31m\\u009b'),
    (os.fsdecode(b'\x9b'), '\\x9b'),
    ('\u202eabc\u200f', '\\u202eabc\\u200f'),
    ('\ud800', '\\ud800'),
    ('\U000e0001', '\\U000e0001'),
    (' a ', '\\x20a\\x20'),
    ('  ', '\\x20\\x20'),
    ('\\x20a', '\\x5cx20a'),
    ('', ''),
    ('çığ 猫　犬 مرحبا', 'çığ 猫　犬 مرحبا'),
    ('👩\u200d🔬', '👩\u200d🔬'),
    ('\\\x1b', '\\\\x1b'),
    ('\\x\x1b', '\\x\\x1b'),
)


@pytest.mark.parametrize(('name', 'expected'), NAMES)
def test_a_name_is_shown_on_one_line_and_can_be_recovered(name, expected):
    assert text.shown(name) == expected
    assert text.unescaped(text.shown(name)) == name
    assert text.printable(text.shown(name)) == text.shown(name)
    assert text.unescaped(text.storable(name).encode().decode()) == name


def test_only_surrogates_are_not_storable():
    assert text.storable(' a\n\x1b\u202e') == ' a\n\x1b\u202e'
    assert text.storable(os.fsdecode(b'\xff\n')) == '\\xff\n'


def test_different_names_are_shown_differently():
    names = [name for name, _ in NAMES]
    assert len({*map(text.shown, names)}) == len({*map(text.storable, names)}) == len(names)


def test_lines_are_printed_in_any_encoding(monkeypatch):
    for encoding, expected in (('ascii', '\\u015f \\x1b \\xe9\n\xb1'), ('utf-8', 'ş \\x1b \\xe9\n±')):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, 'stdout', stream)
        text.print_lines('ş \x1b ' + os.fsdecode(b'\xe9') + '\n±')
        assert (
            stream.buffer.getvalue().decode(encoding)
            == expected.replace('\xb1', '\\xb1' if encoding == 'ascii' else '±') + '\n'
        )


def test_equal_texts_become_distinct():
    assert text.distinct(['a', 'a', 'b', 'a (2)', 'a']) == ['a', 'a (3)', 'b', 'a (2)', 'a (4)']
    assert text.distinct([]) == []


def test_long_texts_lose_their_middle():
    assert text.shortened('abcdefgh', 8) == 'abcdefgh'
    assert text.shortened('abcdefghi', 8) == 'abcd…ghi'
    assert len(text.shortened(255 * 'x', 8)) == 8


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        ('cifar10', 'cifar10'),
        ('imagenet2012:5.*.*', 'imagenet2012:5.*.*'),
        ('folder:/home/someone/cats', 'folder:cats'),
        ('folder:/home/someone/cats/', 'folder:cats'),
        ('arrays:~/cats', 'arrays:cats'),
        ('folder:cats', 'folder:cats'),
        ('folder:/home/someone/a:b', 'folder:a:b'),
        ('runs/resnet20-digits-seed0', 'resnet20-digits-seed0'),
        ('/home/someone/a:b', 'a:b'),
        ('hf:timm/resnet50.a1_in1k', 'hf:timm/resnet50.a1_in1k'),
    ],
)
def test_names_without_folders(source, expected):
    assert text.without_folders(source) == expected
    assert text.without_folders('.') == os.path.basename(os.getcwd())
