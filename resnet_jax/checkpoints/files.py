"""The folder of one checkpoint: its arrays, written by Orbax, and a manifest with their checksums.

``state/`` is written by Orbax. ``manifest.json`` holds ``step``, ``score``, ``arrays`` (``path: dtype[shape]``),
``checksums`` (``path: CRC-32`` of the array's bytes in C order), ``files`` (``name: [bytes, CRC-32]``) and ``crc32``,
the checksum of the manifest without this field.

Nothing here waits for other processes: with several, the one that calls writes, and each that calls reads. Orbax can
instead let every process write its own shards. This is not used, for three reasons. It ends with barriers, so a job
hangs if one of its processes is killed. It commits checkpoints by markers of its own, while here a rename commits them,
which keeps several runs at a common step. And it has no benefit if parameters are replicated on every device: the
process that writes has all of them in memory anyway. Orbax does not verify contents, hence the checksums. What it
provides is a format for arrays, including bfloat16, that other programs can read.
"""

import asyncio
import contextlib
import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.checkpoints.storage import reason, sync_tree
from resnet_jax.errors import InputError, StorageError

MANIFEST = 'manifest.json'
_STATE = 'state'
_NOT_PLAIN = re.compile(r'[\[\]*?\\\ud800-\udfff]')
# Errors of the system, not of the file: another attempt may succeed.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DamageError(InputError):
    """A checkpoint that was changed or damaged after it was written.

    Args:
      path: the checkpoint's folder.
      why: the damage, in one line.
      advice: what the user can do.
    """

    def __init__(self, path: pathlib.Path, why: str, advice: str = 'move it away'):
        super().__init__(f'checkpoint {path} is damaged ({why}); {advice}')
        self.path, self.why = path, why


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint's ``manifest.json``.

    Attributes:
      score: the primary metric on the test set, or None.
      arrays: ``path: dtype[shape]`` of each array.
      checksums: ``path: CRC-32`` of each array's bytes.
      files: ``name: [bytes, CRC-32]`` of each file, with names relative to the folder.
    """

    score: float | None
    arrays: dict[str, str]
    checksums: dict[str, int]
    files: dict[str, list[int]]


def describe_arrays(tree: Any) -> dict[str, str]:
    """Describes every array of a pytree as ``path: dtype[shape]``."""
    return {name: _describe(leaf) for name, leaf in _arrays_by_path(tree)}


def _describe(array: Any) -> str:
    return f'{array.dtype}{list(array.shape)}'


def _arrays_by_path(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf) for path, leaf in leaves]


def _checksums(tree: Any) -> dict[str, int]:
    # As bytes, since zlib does not accept buffers of bfloat16.
    return {name: zlib.crc32(np.ravel(array).view(np.uint8).data) for name, array in _arrays_by_path(tree)}


def write_step(folder: pathlib.Path, step: int, state: Any, score: float | None) -> None:
    """Writes the arrays and the manifest to a new folder; all of it is on disk when this returns.

    Args:
      folder: absolute path of the new folder; the folder of the run, two levels above, must exist.
      step: number of steps taken.
      state: pytree of non-empty NumPy arrays.
      score: the primary metric on the test set, or None.

    Raises:
      OSError: the folder cannot be created or written.
      Exception: Orbax cannot write; a part of the folder may exist.
    """
    # Not its parents: a run that was deleted must not appear again without its other files.
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir()
    with _plain(folder) as plain, _orbax() as orbax:
        orbax.save(plain / _STATE, args=ocp.args.PyTreeSave(state))
    names = [file.relative_to(folder).as_posix() for file in sorted((folder / _STATE).rglob('*')) if file.is_file()]
    files = {name: [(folder / name).stat().st_size, _crc32(folder / name)] for name in names}
    content: dict[str, Any] = {
        'step': step,
        'score': score,
        'arrays': describe_arrays(state),
        'checksums': _checksums(state),
    }
    content['files'] = files
    (folder / MANIFEST).write_bytes(json.dumps(content | {'crc32': _manifest_crc32(content)}, indent=1).encode())
    sync_tree(folder)


def _is_wanted_record(record: logging.LogRecord) -> bool:
    return '_SignalingThread' not in record.getMessage()


class _PatientHandler(ocp.type_handlers.NumpyHandler):
    """Writes arrays like Orbax, but returns only when no write is running any more, even if one of them failed.

    Orbax raises the first error at once. On a full disk, the remaining writes would then print a traceback each,
    because their event loop is closed, and might create files in a folder that has been removed.
    """

    async def _background_serialize(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super()._background_serialize(*args, **kwargs)
        finally:
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


def _orbax() -> ocp.Checkpointer:
    # Threads of Orbax log long tracebacks of errors that are also raised here.
    logging.getLogger('absl').addFilter(_is_wanted_record)
    here = jax.process_index()
    # As the only active process, which is also the primary one, no process waits for others.
    options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    # Without a handler of jax.Array, Orbax warns.
    handlers = (np.ndarray, _PatientHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    registry = ocp.type_handlers.create_type_handler_registry(*handlers)
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options, type_handler_registry=registry)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@contextlib.contextmanager
def _plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    r"""A path of a folder that Orbax can use; a temporary link if the name has characters that Orbax cannot handle.

    Orbax takes ``[`` and ``\`` for parts of a pattern, and then writes a checkpoint without arrays. TensorStore's paths
    are UTF-8.
    """
    if _NOT_PLAIN.search(folder.as_posix()) is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = pathlib.Path(place, 'checkpoint')
        link.symlink_to(folder, target_is_directory=True)
        yield link


def read_manifest(path: pathlib.Path) -> Manifest:
    """Reads the manifest of a checkpoint.

    Args:
      path: the checkpoint's folder.

    Raises:
      DamageError: the manifest is missing or damaged.
      StorageError: the system has too few resources to read it.
    """
    try:
        _check_kind(path, folder=True)
        _check_kind(path / MANIFEST)
        content = json.loads((path / MANIFEST).read_bytes())
        crc32 = content['crc32']
        del content['crc32']
        if crc32 != _manifest_crc32(content):
            raise ValueError('checksum mismatch')
        score = content['score']
        manifest = Manifest(score, content['arrays'], content['checksums'], content['files'])
        score_fits = score is None or (isinstance(score, int | float) and not isinstance(score, bool))
        parts = (manifest.arrays, manifest.checksums, manifest.files)
        if not score_fits or not all(isinstance(part, dict) for part in parts) or not manifest.files:
            raise TypeError('wrong type of a field')
    except OSError as error:
        raise _unreadable(path, error) from error
    except KeyError as error:
        raise DamageError(path, f'{MANIFEST}: missing field {reason(error)}') from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(path, f'{MANIFEST}: {reason(error)}') from error
    return manifest


def check_files(path: pathlib.Path, manifest: Manifest) -> None:
    """Compares every file with the manifest; files that are not in the manifest are ignored.

    Args:
      path: the checkpoint's folder.
      manifest: its manifest.

    Raises:
      DamageError: a file is missing, unreadable or changed.
      StorageError: the system has too few resources to read it.
    """
    for name, expected in manifest.files.items():
        try:
            _check_kind(path / name)
            same = [(path / name).stat().st_size, _crc32(path / name)] == expected
        except OSError as error:
            raise _unreadable(path, error, name) from error
        except ValueError as error:  # a zero byte in the name
            raise DamageError(path, f'{MANIFEST}: {reason(error)}') from error
        if not same:
            raise DamageError(path, f'{name}: size or checksum mismatch')


def read_arrays(path: pathlib.Path, manifest: Manifest, like: Any) -> Any:
    """Reads arrays of a checkpoint whose files have been checked; only those in ``like`` are read.

    Args:
      path: absolute path of the checkpoint's folder.
      manifest: its manifest.
      like: pytree with the structure, shapes and dtypes of the manifest, or a part of it.

    Returns:
      The pytree, with NumPy arrays, or with ``jax.Array`` where a leaf of ``like`` has a sharding.

    Raises:
      DamageError: the checksum of an array does not match.
      InputError: the installed version of Orbax cannot read the checkpoint.
      StorageError: the system has too few resources to read it.
    """
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    try:
        with _plain(path) as plain, _orbax() as orbax:
            args = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
            tree = orbax.restore(plain / _STATE, args=args)
    except OSError as error:
        raise _unreadable(path, error, _STATE) from error
    except Exception as error:  # of any type; the files are intact, so this is no damage
        raise InputError(f'{path} cannot be read by Orbax {ocp.__version__}: {reason(error)}') from error
    found, checksums = describe_arrays(tree), _checksums(tree)
    for name in describe_arrays(like):
        if found.get(name) != manifest.arrays[name] or checksums[name] != manifest.checksums.get(name):
            raise DamageError(path, f'array {name}: checksum mismatch')
    return jax.tree.map(_with_sharding_of, tree, like)


def _with_sharding_of(array: np.ndarray, like: Any) -> Any:
    sharding = getattr(like, 'sharding', None)
    if sharding is None:
        return array
    # Unlike device_put, this does not compare the values with other processes.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _check_kind(path: pathlib.Path, folder: bool = False) -> None:
    """Raises OSError unless a path is a file, or a folder: opening a named pipe would block forever."""
    mode = os.stat(path).st_mode
    if folder != stat.S_ISDIR(mode) or not (folder or stat.S_ISREG(mode)):
        raise OSError(errno.EINVAL, f'not a {"folder" if folder else "file"}', str(path))


def _unreadable(path: pathlib.Path, error: OSError, name: str = '') -> Exception:
    named = pathlib.Path(error.filename) if isinstance(error.filename, str | os.PathLike) else path / name
    # The message has the path of the folder already.
    what = named.relative_to(path).as_posix() + ' ' if named != path and named.is_relative_to(path) else ''
    if error.errno in _EXHAUSTED:
        return StorageError(f'cannot read {named}: {reason(error)}')
    if error.errno == errno.ENOENT:
        return DamageError(path, f'{what}is missing' if what else 'broken link')
    return DamageError(path, f'{what}cannot be read: {reason(error)}')


def _crc32(path: pathlib.Path) -> int:
    checksum = 0
    with path.open('rb') as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _manifest_crc32(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
