"""``metrics.jsonl`` and TensorBoard events, also after a killed process."""

import json

import pytest

from resnet_jax import StorageError
from resnet_jax.checkpoints.metrics_files import EventFile, MetricsFile


def record(step):
    return {'split': 'train', 'step': step, 'loss': step / 3}


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize('end', [b'{"split": "train", "st', b'\x00' * 40, b'\xff\xfe\n', b'7\n', b'{"loss": 1}\n'])
def test_invalid_lines_are_dropped(tmp_path, end):
    """A truncated line, and garbage after a power failure."""
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(json.dumps(record(1)).encode() + b'\n' + json.dumps(record(5)).encode() + b'\n' + end)
    file = MetricsFile(path, 4)
    file.write(record(2))
    file.close()
    assert lines_of(path) == file.records == [record(1), record(2)]


def test_without_writing_records_are_kept_in_memory(tmp_path):
    """As in the processes other than the main one, which read what it had written."""
    path = tmp_path / 'metrics.jsonl'
    path.write_text(json.dumps(record(1)) + '\n')
    before = path.read_bytes()
    file = MetricsFile(path, 4, writes=False)
    file.write(record(2))
    file.sync()
    file.close()
    assert file.records == [record(1), record(2)]
    assert path.read_bytes() == before


def test_events_are_on_the_disk_when_they_are_written(tmp_path):
    file = EventFile(tmp_path, 3)
    file.write({'train/loss': 0.25, 'train/accuracy': 0.5}, 4)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert path.name.startswith('events.out.tfevents.')
    for part in (b'brain.Event:2', b'train/loss', b'train/accuracy'):
        assert part in content
    file.close()
    assert path.read_bytes() == content


def test_a_deleted_file_is_reported(tmp_path):
    file = MetricsFile(tmp_path / 'metrics.jsonl', 0)
    file.write({'step': 1})
    (tmp_path / 'metrics.jsonl').unlink()
    with pytest.raises(StorageError, match=r'metrics.jsonl: the file was deleted while it was being written$'):
        file.write({'step': 2})
    assert file.records == [{'step': 1}]
    file.close()
