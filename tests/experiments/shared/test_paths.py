"""Flags that are lists of paths."""

import pytest

from experiments.shared.paths import PathsParser


def test_a_comma_is_part_of_a_name_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a,b', ' c', 'd', '"q"', 'x', 'y', 'n\nl,'):
        (tmp_path / name).mkdir()
    parse = PathsParser().parse
    assert parse('a,b') == ['a,b']
    assert parse('a,b, c,d') == ['a,b', ' c', 'd']
    assert parse('d, x,y') == ['d', 'x', 'y']
    assert parse('x,y,none,z') == ['x', 'y', 'none', 'z']
    assert parse('"q"') == ['"q"']
    assert parse('"a,b",d') == ['a,b', 'd']
    assert parse('n\nl,,d') == ['n\nl,', 'd']
    assert parse('') == []
    assert parse(['a,b']) == ['a,b']
    with pytest.raises(ValueError, match='unexpected end of data'):
        parse('"a')
