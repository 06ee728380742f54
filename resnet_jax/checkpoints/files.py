"""The folder of one checkpoint: its arrays as Orbax writes them, and the manifest that they are checked against.

``state/`` is Orbax's. ``manifest.json`` holds ``step``, ``score``, ``arrays`` (``path: dtype[shape]``), ``checksums``
(``path: CRC-32`` of the array's bytes in C order), ``files`` (``name: [bytes, CRC-32]``) and ``crc32``, that of the
manifest itself without this field.

Nothing here waits for other processes: in a job of several, the one that calls writes, and each that calls reads.
Orbax can instead have every process write the shards it holds. That is not used, for three reasons. It ends with
barriers, so that a job hangs where one of its processes was killed, while here a writer needs nobody. It commits by
markers of its own beside our renaming, which is what keeps several runs at a common step. And nothing is gained where
parameters are whole on every device: the process that writes has one copy of everything in its memory. Orbax
compares no contents either, therefore the checksums; what it gives us is a format of arrays, bfloat16 among them, that
other programs read.
"""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import stat
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet_jax.checkpoints.storage import reason, sync_tree
from resnet_jax.errors import InputError, StorageError

MANIFEST = 'manifest.json'
_STATE = 'state'
# Of the machine, not of the file: another attempt may go well.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DamageError(InputError):
    """A checkpoint that is not as it was written.

    Args:
      path: of the folder.
      why: what is wrong with it, in one line.
      advice: what to do.
    """

    def __init__(self, path: pathlib.Path, why: str, advice: str = 'move it away'):
        super().__init__(f'checkpoint {path} is damaged ({why}); {advice}')
        self.path, self.why = path, why


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
      score: the primary metric of the test set, or None.
      arrays: ``path: dtype[shape]``.
      checksums: ``path: CRC-32`` of the array's bytes.
      files: ``name: [bytes, CRC-32]``, the names relative to the folder.
    """

    score: float | None
    arrays: dict[str, str]
    checksums: dict[str, int]
    files: dict[str, list[int]]


def describe_arrays(tree: Any) -> dict[str, str]:
    """``path: dtype[shape]`` of every array of a tree."""
    return {name: _describe(leaf) for name, leaf in _named(tree)}


def _describe(array: Any) -> str:
    return f'{array.dtype}{list(array.shape)}'


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf) for path, leaf in leaves]


def _checksums(tree: Any) -> dict[str, int]:
    # As bytes, since bfloat16 has no buffer that zlib takes.
    return {name: zlib.crc32(np.ravel(array).view(np.uint8).data) for name, array in _named(tree)}


def write_step(folder: pathlib.Path, step: int, state: Any, score: float | None) -> None:
    """Writes the arrays and the manifest into a new folder; all of it is on the disk when this returns.

    Args:
      folder: to be made, absolute.
      step: steps taken.
      state: tree of NumPy arrays, none of them empty.
      score: or None.

    Raises:
      OSError: the folder cannot be made or written.
      Exception: what Orbax raises where it cannot write; a part of the folder may be there.
    """
    folder.mkdir(parents=True)
    with _orbax() as orbax:
        orbax.save(folder / _STATE, args=ocp.args.PyTreeSave(state))
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


def _is_ours(record: logging.LogRecord) -> bool:
    return '_SignalingThread' not in record.getMessage()


def _orbax() -> ocp.Checkpointer:
    # The threads of Orbax log their errors with pages of traceback; each of them is raised here as well.
    logging.getLogger('absl').addFilter(_is_ours)
    here = jax.process_index()
    # With itself alone as its peers and its first, no process waits for another one.
    options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
      DamageError: there is none, or it is not as it was written.
      StorageError: the machine has no means left to read it.
    """
    try:
        _check_kind(path, folder=True)
        _check_kind(path / MANIFEST)
        content = json.loads((path / MANIFEST).read_bytes())
        crc32 = content['crc32']
        del content['crc32']
        if crc32 != _manifest_crc32(content):
            raise ValueError('it is not as it was written')
        score = content['score']
        manifest = Manifest(score, content['arrays'], content['checksums'], content['files'])
        score_fits = score is None or (isinstance(score, int | float) and not isinstance(score, bool))
        parts = (manifest.arrays, manifest.checksums, manifest.files)
        if not score_fits or not all(isinstance(part, dict) for part in parts) or not manifest.files:
            raise TypeError('a field has the wrong type')
    except OSError as error:
        raise _unreadable(path, error) from error
    except KeyError as error:
        raise DamageError(path, f'{MANIFEST}: it has no field {reason(error)}') from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(path, f'{MANIFEST}: {reason(error)}') from error
    return manifest


def check_files(path: pathlib.Path, manifest: Manifest) -> None:
    """Compares every file with the manifest; files that it does not name do not matter.

    Raises:
      DamageError: one is missing, unreadable or another one.
      StorageError: the machine has no means left to read it.
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
            raise DamageError(path, f'{name} is not as it was written')


def read_arrays(path: pathlib.Path, manifest: Manifest, like: Any) -> Any:
    """Arrays of a checkpoint whose files are as they should be; only those in ``like`` are read.

    Args:
      path: of the folder, absolute.
      manifest: its manifest.
      like: a tree of the structure, shapes and dtypes of the manifest, or a part of it.

    Returns:
      The tree, of NumPy arrays; of ``jax.Array`` where a leaf of ``like`` has a sharding.

    Raises:
      DamageError: an array is not the one that was written.
      InputError: the Orbax that is installed cannot read it.
      StorageError: the machine has no means left to read it.
    """
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    try:
        with _orbax() as orbax:
            args = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
            tree = orbax.restore(path / _STATE, args=args)
    except OSError as error:
        raise _unreadable(path, error, _STATE) from error
    except Exception as error:  # of any class; the files are right, so it is not damage, which would be set aside
        raise InputError(f'{path} cannot be read by Orbax {ocp.__version__}: {reason(error)}') from error
    found, checksums = describe_arrays(tree), _checksums(tree)
    for name in describe_arrays(like):
        if found.get(name) != manifest.arrays[name] or checksums[name] != manifest.checksums.get(name):
            raise DamageError(path, f'the array {name} is not as it was written')
    return jax.tree.map(_place, tree, like)


def _place(array: np.ndarray, like: Any) -> Any:
    sharding = getattr(like, 'sharding', None)
    if sharding is None:
        return array
    # Unlike device_put, this does not ask other processes whether they have the same.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _check_kind(path: pathlib.Path, folder: bool = False) -> None:
    """Raises what is wrong with a name; opening a pipe in the place of a file would wait forever."""
    mode = os.stat(path).st_mode
    if folder != stat.S_ISDIR(mode) or not (folder or stat.S_ISREG(mode)):
        raise OSError(errno.EINVAL, f'not a {"folder" if folder else "file"}', str(path))


def _unreadable(path: pathlib.Path, error: OSError, name: str = '') -> Exception:
    named = pathlib.Path(error.filename) if isinstance(error.filename, str | os.PathLike) else path / name
    # The folder itself needs no name beside its path.
    what = named.relative_to(path).as_posix() + ' ' if named != path and named.is_relative_to(path) else ''
    if error.errno in _EXHAUSTED:
        return StorageError(f'cannot read {named}: {reason(error)}')
    if error.errno == errno.ENOENT:
        return DamageError(path, f'{what}is missing' if what else 'it is a broken link')
    return DamageError(path, f'{what}cannot be read: {reason(error)}')


def _crc32(path: pathlib.Path) -> int:
    checksum = 0
    with path.open('rb') as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _manifest_crc32(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
