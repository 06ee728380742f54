"""Atomic and durable writing of files; a full disk raises a one-line ``StorageError``."""

import errno
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any

from resnet_jax.errors import InputError, StorageError

PARTIAL = '.partial'
_IS_WINDOWS = sys.platform == 'win32'


def reason(error: BaseException) -> str:
    """The message of an error, on one line of at most 200 characters."""
    text = (error.strerror if isinstance(error, OSError) else None) or ' '.join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):  # the format of TensorStore, after long paths
        text = os.strerror(int(code[1]))
    return text[:200] or type(error).__name__


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or the entries of a folder, to disk.

    Raises:
      OSError: the disk is full or broken.
    """
    if _IS_WINDOWS and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)  # its fsync needs write access
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync folders, and do not need to.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: pathlib.Path) -> None:
    """Flushes everything in a folder and the folder itself to disk, bottom up."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(pathlib.Path(parent, name))
        sync(pathlib.Path(parent))


def discard(path: pathlib.Path) -> None:
    """Removes a file, link or folder; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically; it is on disk when this returns.

    Raises:
      StorageError: the file cannot be written; a previous version is unchanged.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        discard(partial)
        raise StorageError(f'cannot write {path}: {reason(error)}') from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically; it is on disk when this returns.

    Raises:
      StorageError: the file cannot be written; a previous version is unchanged.
    """
    write_file(path, (json.dumps(value, indent=1, allow_nan=False) + '\n').encode())


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      InputError: the file cannot be read, or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'cannot read {path}: {error}') from error
    if not isinstance(value, dict):
        raise InputError(f'cannot read {path}: expected a JSON object')
    return value


def make_folder(path: pathlib.Path) -> None:
    """Creates a folder with its parents, and checks that it is writable.

    Raises:
      InputError: the folder cannot be created or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, suffix=PARTIAL):
            pass
    except OSError as error:
        raise InputError(f'cannot write to the folder {path}: {error.strerror}') from error
