"""Files that a run appends to: ``metrics.jsonl`` and TensorBoard event files.

``tensorboardX`` is imported when the first event file is opened, because it imports PyTorch where that is installed,
which takes two seconds.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from resnet_jax.checkpoints.storage import reason, write_file
from resnet_jax.errors import StorageError


class MetricsFile:
    """``metrics.jsonl``: one JSON object per line.

    Args:
      path: path of the file.
      last_step: lines of later steps, which a killed process may have left, are dropped.
      writes: whether to write the file; if False, it is read, and new records are kept in memory only.

    Attributes:
      records: all records, in order.

    Raises:
      StorageError: the file cannot be read or written; it is unchanged.
    """

    records: list[dict[str, Any]]
    _file: Any

    def __init__(self, path: pathlib.Path, last_step: int, writes: bool = True):
        self._path, self._file, self.records = path, None, []
        try:
            # As bytes, since a power failure may leave invalid UTF-8.
            lines = path.read_bytes().split(b'\n') if path.exists() else []
            parsed = [record for record in map(_parse, lines) if record is not None]
            self.records = [record for record in parsed if record['step'] <= last_step]
            if not writes:
                return
            write_file(path, b''.join(map(_line, self.records)))
            # Unbuffered: a buffer would fail again when the file is closed.
            self._file = path.open('ab', buffering=0)  # closed by close()
        except OSError as error:
            raise StorageError(f'cannot open {path}: {reason(error)}') from error

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record, which is kept even if the process is killed after this returns.

        Raises:
          StorageError: the record cannot be written, and nothing follows the earlier lines, which are intact unless the
            file was deleted.
        """
        if self._file is None:
            self.records.append(record)
            return
        line = memoryview(_line(record))
        status = os.fstat(self._file.fileno())
        if not status.st_nlink and sys.platform != 'win32':
            raise StorageError(f'cannot write {self._path}: the file was deleted while it was being written')
        size = status.st_size
        try:
            while line:  # an almost full disk accepts only a part
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # otherwise the next start drops the partial line
                self._file.truncate(size)
            message = f'cannot write {self._path}: {reason(error)}; last step in the file: {self._last_step()}'
            raise StorageError(message) from error
        self.records.append(record)

    def _last_step(self) -> Any:
        return self.records[-1]['step'] if self.records else 0

    def sync(self) -> None:
        """Flushes the file to disk, so that it survives a power failure.

        Raises:
          StorageError: the disk is full or broken.
        """
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f'cannot write {self._path}: {reason(error)}') from error

    def close(self) -> None:
        """Closes the file; ``records`` remains available."""
        if self._file is not None:
            self._file.close()


class EventFile:
    """A TensorBoard event file of scalars. It is written synchronously: a background thread would hang on a full disk.

    Args:
      folder: folder of the new file.
      last_step: TensorBoard discards later steps of earlier files.

    Raises:
      StorageError: the file cannot be written.
    """

    def __init__(self, folder: pathlib.Path, last_step: int):
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}'
        self._path = folder / name
        with self._errors():
            self._file = RecordWriter(str(self._path))
        self._write(event_pb2.Event(file_version='brain.Event:2'))
        self._write(event_pb2.Event(step=last_step + 1, session_log=event_pb2.SessionLog(status='START')))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f'cannot write {self._path}: {reason(error)}') from error

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with self._errors():
            self._file.write(event.SerializeToString())
            self._file.flush()

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Writes the scalars of a step by name.

        Raises:
          StorageError: the file cannot be written.
        """
        from tensorboardX.proto import event_pb2, summary_pb2

        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # buffered events could not be written before, either
            self._file.close()


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + '\n').encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if the line is incomplete."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get('step'), int) else None
