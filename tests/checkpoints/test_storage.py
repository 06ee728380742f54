"""Atomic writing of small files, and errors of a full disk."""

import itertools
import json

import pytest

from resnet_jax import StorageError
from resnet_jax.checkpoints.metrics_files import MetricsFile
from resnet_jax.checkpoints.storage import discard, read_json, reason, write_file, write_json


def record(step):
    return {'split': 'train', 'step': step, 'loss': step / 3}


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# RLIMIT_FSIZE limits the size of files.
LIMITED = """
import pathlib, resource, sys
from resnet_jax import StorageError
from resnet_jax.checkpoints.metrics_files import MetricsFile
from resnet_jax.checkpoints.storage import write_json

folder = pathlib.Path(sys.argv[1])
write_json(folder / 'config.json', {'old': 1})
file = MetricsFile(folder / 'metrics.jsonl', 0)
for step in range(1, 4):
    file.write({'split': 'train', 'step': step})
resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / 'metrics.jsonl').stat().st_size + 9, resource.RLIM_INFINITY))
for action in (
    lambda: write_json(folder / 'config.json', {'new': list(range(100))}),
    lambda: file.write({'split': 'train', 'step': 4}),
    lambda: file.write({'split': 'train', 'step': 4}),
):
    try:
        action()
    except StorageError as error:
        print(error)
    print((folder / 'metrics.jsonl').read_text().count('}'), (folder / 'metrics.jsonl').read_text()[-2:] == '}\\n')
file.close()
"""


def test_a_file_size_limit_leaves_intact_files(run, tmp_path):
    out = run(LIMITED, tmp_path).splitlines()
    lines = '3 True'
    metrics = f'cannot write {tmp_path}/metrics.jsonl: File too large; last step in the file: 3'
    assert out == [f'cannot write {tmp_path}/config.json: File too large', lines, metrics, lines, metrics, lines]
    assert read_json(tmp_path / 'config.json') == {'old': 1}
    assert [line['step'] for line in lines_of(tmp_path / 'metrics.jsonl')] == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {'config.json', 'metrics.jsonl'}


def fill(path):
    with path.open('wb', buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def write_until_it_fails(file):
    for step in itertools.count(1):
        file.write(record(step))


def test_a_full_disk_leaves_intact_files(small_disk):
    write_json(small_disk / 'result.json', {'old': 1})
    file = MetricsFile(small_disk / 'metrics.jsonl', 0)
    with pytest.raises(OSError, match='No space'):
        fill(small_disk / 'filling')
    with pytest.raises(StorageError, match=r'metrics.jsonl: No space left on device; last step in the file: \d+$'):
        write_until_it_fails(file)
    written = len(file.records)
    file.close()
    with pytest.raises(StorageError, match=r'cannot write .*/result.json: No space left on device$'):
        write_json(small_disk / 'result.json', {'new': 2})
    with pytest.raises(StorageError, match=r'cannot write .*/config.json: No space left on device$'):
        write_json(small_disk / 'config.json', {'new': 2})
    assert read_json(small_disk / 'result.json') == {'old': 1}
    assert [line['step'] for line in lines_of(small_disk / 'metrics.jsonl')] == list(range(1, written + 1))
    assert {path.name for path in small_disk.iterdir()} == {'filling', 'result.json', 'metrics.jsonl'}
    (small_disk / 'filling').unlink()
    again = MetricsFile(small_disk / 'metrics.jsonl', written)
    again.write(record(written + 1))
    again.sync()
    again.close()
    assert len(lines_of(small_disk / 'metrics.jsonl')) == written + 1


def test_a_value_that_is_not_json_leaves_the_file_unchanged(tmp_path):
    write_json(tmp_path / 'result.json', {'old': 1})
    file = MetricsFile(tmp_path / 'metrics.jsonl', 0)
    for write in (lambda value: write_json(tmp_path / 'result.json', value), file.write):
        with pytest.raises(ValueError, match='not JSON compliant'):
            write({'step': 1, 'loss': float('nan')})
    file.close()
    assert read_json(tmp_path / 'result.json') == {'old': 1}
    assert file.records == lines_of(tmp_path / 'metrics.jsonl') == []


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(StorageError, match=r'cannot write .*/none/a: No such file or directory$'):
        write_file(tmp_path / 'none' / 'a', b'')
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(StorageError, match=r'cannot open .*/metrics.jsonl: Is a directory$'):
        MetricsFile(tmp_path / 'metrics.jsonl', 0)


def test_reasons_are_one_line():
    long = ValueError('RESOURCE_EXHAUSTED: writing\n"' + 'a' * 500 + "\": No space [os_error_code='28']")
    assert reason(long) == reason(OSError(28, 'No space left on device')) == 'No space left on device'
    assert reason(ValueError('a\nb')) == 'a b'
    assert reason(ValueError()) == 'ValueError'
    assert len(reason(ValueError('a' * 500))) == 200


def test_discard_removes_a_link_but_not_its_target(tmp_path):
    (tmp_path / 'kept').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'kept')
    (tmp_path / 'folder' / 'inner').mkdir(parents=True)
    for name in ('link', 'folder', 'none'):
        discard(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ['kept']
