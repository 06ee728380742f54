"""The files of a training run: ``config.json``, ``metrics.jsonl`` and ``result.json`` in its working folder."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

from resnet_jax.errors import InputError, StorageError
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.storage import reason, write_file

CHECKPOINTS = 'checkpoints'
# How often a run reports does not change what it computes, so it may differ when a run is resumed.
REPORTING = (
    *('eval_every_epochs', 'checkpoint_every_epochs', 'checkpoint_every_steps', 'log_every_steps', 'log_norms'),
    'max_skipped_steps',
)


def describe_run(
    arch: str, spec: dict[str, Any], config: TrainConfig, dataset: dict[str, Any], devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Everything needed to know what a run computed, and on what: the content of ``config.json``."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
    record = {
        'arch': arch,
        'spec': spec,
        'config': dataclasses.asdict(config),
        'dataset': dataset,
        'versions': {name: importlib.metadata.version(name) for name in packages}
        | {'python': platform.python_version()},
        'device': describe_devices(devices),
        'git_commit': _git_commit(),
        'command': sys.argv,
    }
    return json.loads(json.dumps(record))  # tuples become lists, as they will be when the file is read again


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """For instance ``1 x cpu`` or ``8 x TPU v5 lite``."""
    return f'{len(devices)} x {devices[0].device_kind}'


def _git_commit() -> str | None:
    """The commit of the source tree, with ``+`` for uncommitted changes; None outside a repository."""
    here = pathlib.Path(__file__).parent
    try:
        # An installed package may lie inside another project's repository: then this raises, too.
        subprocess.run(['git', 'ls-files', '--error-unmatch', __file__], cwd=here, capture_output=True, check=True)
        commit, changes = (
            subprocess.run(['git', *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (['rev-parse', 'HEAD'], ['status', '--porcelain', '--untracked-files=no', '.'])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+' if changes else '')


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file whole or not at all, on the disk when this returns.

    Raises:
      StorageError: the disk is full or broken; what was there is as it was.
    """
    write_file(path, (json.dumps(value, indent=1, allow_nan=False) + '\n').encode())


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a file that this project wrote.

    Raises:
      InputError: no such file, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'cannot read {path}: {error}') from error
    if not isinstance(value, dict):
        raise InputError(f'cannot read {path}: not a JSON object')
    return value


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder that can be written to, with its parents.

    Raises:
      InputError: that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, suffix='.partial'):
            pass
    except OSError as error:
        raise InputError(f'cannot write to the folder {path}: {error.strerror}') from error


def claim_workdir(workdir: pathlib.Path, record: dict[str, Any]) -> None:
    """Makes a folder this run's own.

    Args:
      workdir: new, empty, or of an earlier start of the same run.
      record: from ``describe_run``.

    Raises:
      InputError: the folder holds another run, or something else.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f'workdir={workdir} is a file, not a folder')
    path = workdir / 'config.json'
    if not path.exists():
        # A process killed at this point leaves a partial file of ours, which is nobody's run.
        if workdir.exists() and any(not file.name.endswith('.partial') for file in workdir.iterdir()):
            raise InputError(f'workdir={workdir} is not empty and holds no run; choose another folder')
        make_folder(workdir)
        write_json(path, record)
        return
    differences = _differences(read_json(path), record)
    if differences:
        raise InputError(
            f'workdir={workdir} holds a run of another configuration: {"; ".join(differences)};'
            ' choose another --workdir, or give the same flags to resume'
        )


def finished_result(workdir: pathlib.Path, spec: dict[str, Any], config: TrainConfig) -> dict[str, Any] | None:
    """The result of a run that is finished, known without its data; None if it is another run or not finished.

    Args:
      workdir: of the run.
      spec: the specification, whose ``num_classes`` gives way to the data's.
      config: the configuration.
    """
    if not (workdir / 'result.json').exists() or not (workdir / 'config.json').exists():
        return None
    old = read_json(workdir / 'config.json')
    spec = spec | {'num_classes': old.get('spec', {}).get('num_classes')}
    now = json.loads(json.dumps({'spec': spec, 'config': dataclasses.asdict(config)}))
    return None if _differences(old, now) else read_json(workdir / 'result.json')


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``field=there (now: here)`` for everything that changes the result."""
    found = []
    # What a run of an earlier version did not know had the value that is the default now.
    defaults: dict[str, dict[str, Any]] = {
        'config': {field.name: field.default for field in dataclasses.fields(TrainConfig)},
        'dataset': {'target_mean': [], 'target_std': [], 'photographs': False},
    }
    for part in new.keys() & {'spec', 'config', 'dataset'}:
        there, here = defaults.get(part, {}) | old.get(part, {}), new[part]
        for name in sorted(there.keys() | here.keys()):
            if name not in REPORTING and there.get(name) != here.get(name):
                found.append(f'{name}={there.get(name)!r} there, {here.get(name)!r} now')
    return sorted(found)


def read_record(workdir: str | pathlib.Path) -> dict[str, Any]:
    """What an earlier run recorded of itself, as ``describe_run`` made it.

    Raises:
      InputError: the folder is not a training run of this project.
    """
    path = pathlib.Path(workdir) / 'config.json'
    if not path.exists():
        below = sorted(config.parent.name for config in path.parent.glob('*/config.json'))
        instead = f', but folders of runs: {", ".join(below)}' if below else ''
        raise InputError(f'{workdir} is not the folder of a training run: it has no config.json{instead}')
    return read_json(path)


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line.

    Args:
      path: of the file.
      last_step: lines of later steps, which a killed process left behind, are dropped.
      writes: False only reads it, and keeps what follows in memory alone.

    Raises:
      StorageError: it cannot be read or written; it is as it was.
    """

    records: list[dict[str, Any]]
    _file: Any

    def __init__(self, path: pathlib.Path, last_step: int, writes: bool = True):
        self._path, self._file, self.records = path, None, []
        try:
            # Of bytes, since a machine that lost its power may leave some that are no text.
            lines = path.read_bytes().split(b'\n') if path.exists() else []
            parsed = [record for record in map(_parse, lines) if record is not None]
            self.records = [record for record in parsed if record['step'] <= last_step]
            if not writes:
                return
            write_file(path, b''.join(map(_line, self.records)))
            # Without a buffer, which would try again, and fail again, when the file is closed.
            self._file = path.open('ab', buffering=0)  # until close()
        except OSError as error:
            raise StorageError(f'cannot open {path}: {reason(error)}') from error

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; a process that is killed after this returns has written it.

        Raises:
          StorageError: the disk is full or broken; the lines before this one are whole, and nothing follows them.
        """
        if self._file is None:
            self.records.append(record)
            return
        line = memoryview(_line(record))
        size = os.fstat(self._file.fileno()).st_size
        try:
            while line:  # a disk that is almost full takes a part
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next start drops what is there of the line
                self._file.truncate(size)
            message = f'cannot write {self._path}: {reason(error)}; it ends with step {self._last_step()}'
            raise StorageError(message) from error
        self.records.append(record)

    def _last_step(self) -> Any:
        return self.records[-1]['step'] if self.records else 0

    def sync(self) -> None:
        """Has the lines on the disk, so that a machine that loses its power keeps them.

        Raises:
          StorageError: the disk is full or broken.
        """
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f'cannot write {self._path}: {reason(error)}') from error

    def close(self) -> None:
        """Closes the file; ``records`` stays."""
        if self._file is not None:
            self._file.close()


class EventFile:
    """Scalars for TensorBoard, written as they come: a writer with a thread of its own would wait for a full disk.

    Args:
      folder: gets a new file.
      last_step: TensorBoard forgets what earlier files say of later steps.

    Raises:
      StorageError: the file cannot be written.
    """

    def __init__(self, folder: pathlib.Path, last_step: int):
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
        """Writes scalars of a step under their names."""
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # what it held back could not be written before, either
            self._file.close()


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + '\n').encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    """A record, or None for a line that a killed process left unfinished."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get('step'), int) else None
