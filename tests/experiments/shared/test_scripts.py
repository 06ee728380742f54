"""Tables and file names made by the scripts."""

import csv
import io
import os

import pytest

from experiments.shared import scripts


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('test_accuracy', 'test_accuracy'),
        ('0.9 ± 0.1', '0.9 ± 0.1'),
        ('[3, 4, 6, 3]', '[3, 4, 6, 3]'),
        ('_DSC1.jpg', '_DSC1.jpg'),
        ('C:\\cats', 'C:\\cats'),
        ('AT&T a < b 2*3 ~/x', 'AT&T a < b 2*3 ~/x'),
        ('a|b', r'a\|b'),
        (r'a\|b', r'a\\\|b'),
        ('__init__.py', r'\_\_init\_\_.py'),
        ('*x* `y` ~~z~~ $0_$9', r'\*x\* \`y\` \~\~z\~\~ \$0_\$9'),
        ('<b>x</b> &lt;', r'\<b>x\</b> \&lt;'),
        ('[a](b)', r'[a\](b)'),
        ('a\nb\x1b[31m', r'a\x0ab\x1b[31m'),
        (scripts.code('a|b'), r'`a\|b`'),
    ],
)
def test_nothing_in_a_cell_is_taken_for_markup(text, expected):
    assert scripts.markdown_table(('name',), [[text]]).splitlines() == ['| name |', '| --- |', f'| {expected} |']


def test_names_survive_csv():
    names = ['cat', 'a,b', '"q"', 'a\nb', 'a\rb', 'a\r\nb', '=1+1', ' a ', '', 'ş|猫', '\x1b[0m', '\u202e']
    table = scripts.csv_table([names, [1, 0.5]])
    assert next(csv.reader(io.StringIO(table, newline=''))) == names
    assert table.endswith('\n1,0.5\n')
    assert scripts.csv_table([[os.fsdecode(b'caf\xe9'), 'caf\\xe9']]).encode() == b'caf\\xe9,caf\\x5cxe9\n'


def test_names_of_datasets_fit_into_file_names():
    assert scripts.as_file_name('folder:/data/cats [1]') == 'folder__data_cats [1]'
    long = [scripts.as_file_name(f'folder:/{4000 * "ş"}/{end}') for end in 'ab']
    assert len(set(long)) == 2
    assert max(len(os.fsencode(name)) for name in long) < 150
    assert scripts.as_file_name(os.fsdecode(b'folder:caf\xe9')) == os.fsdecode(b'folder_caf\xe9')
