"""Reading weights from PyTorch, safetensors and NumPy files, and writing safetensors.

Files are considered untrusted: none of their content is executed, declared sizes are checked against the actual size of
the file before memory is allocated, and every error is an ``InputError``.
"""

import contextlib
import dataclasses
import errno
import io
import math
import os
import pathlib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np
import safetensors
import safetensors.numpy

from resnet_jax.errors import InputError, some
from resnet_jax.weights.torch_files import Contents, read_legacy, read_zipped
from resnet_jax.weights.torch_tensors import ITEM_SIZES, TensorRecord, damaged, is_shape, printable

_SAFETENSORS = {
    'F64': 'float64',
    'F32': 'float32',
    'F16': 'float16',
    'BF16': 'bfloat16',
    'C64': 'complex64',
    'I64': 'int64',
    'I32': 'int32',
    'I16': 'int16',
    'I8': 'int8',
    'U64': 'uint64',
    'U32': 'uint32',
    'U16': 'uint16',
    'U8': 'uint8',
    'BOOL': 'bool',
}


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """Shape and dtype of an array that ``read_tensors`` would return."""

    shape: tuple[int, ...]
    dtype: np.dtype


@overload
def read_tensors(path: str | os.PathLike, headers_only: Literal[False] = False) -> dict[str, np.ndarray]: ...


@overload
def read_tensors(path: str | os.PathLike, headers_only: bool) -> dict[str, Any]: ...


def read_tensors(path: str | os.PathLike, headers_only: bool = False) -> dict[str, Any]:
    """Reads the tensors of a weights file. No code in the file is executed.

    Args:
      path: a safetensors file, a file of ``torch.save`` (zip or legacy format), a TorchScript archive, or an ``.npz``
        file; the format is detected from the first bytes. Of PyTorch's files, all tensors in nested dicts and modules
        are read, under names such as ``state_dict.module.conv1.weight``. Other objects are ignored; a warning names
        their classes unless training checkpoints usually have them.
      headers_only: whether to return ``TensorHeader`` objects, without reading values.

    Returns:
      Arrays by name, with the shapes in the file. Floating-point numbers are converted to float32, other numbers keep
      their dtype. The arrays are read-only; tensors that share memory in the file share it here, too.

    Raises:
      InputError: the file does not exist, has another format, is damaged, or has no tensors. The message is one line
        that names the file.
    """
    try:
        if not os.path.isfile(path):
            raise InputError('is a folder, not a file' if os.path.isdir(path) else 'does not exist')
        with _File(path) as file:
            tensors, ignored = _read(file, headers_only)
        if not tensors:
            raise InputError('has no named tensors' + (f'; it refers to {some(ignored)}' if ignored else ''))
    except InputError as error:
        raise InputError(f'{path} {error}') from error.__cause__
    except OSError as error:
        if error.errno == errno.EINVAL:  # raised by seek
            raise InputError(f'{path} is damaged: an offset is negative') from error
        raise InputError(f'{path} cannot be read: {printable(error.strerror or str(error))}') from error
    except MemoryError as error:
        raise InputError(f'{path} does not fit in memory') from error
    except _DAMAGE as error:
        raise InputError(f'{path} is damaged: {printable(str(error))}') from error
    if ignored:
        warnings.warn(f'{path} refers to {some(ignored)}: only its tensors are read', stacklevel=2)
    return tensors


# Exceptions that the readers of other libraries raise for damaged files.
_DAMAGE = (
    *(ValueError, TypeError, KeyError, EOFError, OverflowError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, safetensors.SafetensorError),
)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically.

    Args:
      path: path of the file, in an existing folder.
      tensors: numeric arrays of any shape, by name.
      metadata: strings by name.

    Raises:
      InputError: the file cannot be written, or the format does not support a dtype.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')  # same folder: renames across disks are not atomic
    try:
        arrays = {name: np.asarray(tensor, order='C') for name, tensor in tensors.items()}
        # Not by ``save_file``, whose files only their owner can read.
        partial.write_bytes(safetensors.numpy.save(arrays, metadata))
        partial.replace(path)
    except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f'cannot write {path}: {printable(str(error))}') from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


class _File(io.BufferedReader):
    """A file that never allocates more memory for a read than it has bytes, whatever length is requested."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(open(path, 'rb', buffering=0))  # noqa: SIM115, closed with this object
        self.name_on_disk = path
        self.length = os.fstat(self.fileno()).st_size
        self.longest_read = self.length

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.length - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > self.longest_read:
            raise InputError('is refused: its directory is far too large for its content')
        return super().read(size)


def _read(file: _File, headers_only: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors of a file, and the names in its pickle that are ignored."""
    start = file.read(9)
    file.seek(0)
    if start[8:] == b'{':
        return _read_safetensors(file, headers_only), ()
    if start[:1] == b'\x80':
        return _read_torch(read_legacy(file, file.length), headers_only)
    if start[:4] not in (b'PK\3\4', b'PK\5\6'):
        raise InputError('is not a safetensors, PyTorch (zip or legacy) or .npz file')
    with _open_zip(file) as archive:
        if any(name.endswith('data.pkl') for name in archive.namelist()):
            return _read_torch(read_zipped(archive, file.length), headers_only)
        return _read_npz(archive, file.length, headers_only), ()


def _result_dtype(dtype: str | np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == 'bfloat16' or np.dtype(dtype).kind == 'f' else np.dtype(dtype)


def _values(data: bytes, dtype: str, byteorder: Literal['<', '>'] = '<') -> np.ndarray:
    """Converts bytes to a flat, read-only array of the result dtype.

    Args:
      data: bytes of a whole number of elements.
      dtype: one of ``ITEM_SIZES``.
      byteorder: ``<`` or ``>``.
    """
    if dtype == 'bfloat16':  # the upper half of a float32
        values = np.frombuffer(data, f'{byteorder}u2').astype(np.uint32)
        values <<= 16
        values = values.view(np.float32)
    elif dtype == 'bool':  # NumPy's booleans must be 0 or 1
        values = np.frombuffer(data, np.uint8) != 0
    else:
        with np.errstate(all='ignore'):  # values beyond float32 become infinite
            array = np.frombuffer(data, np.dtype(dtype).newbyteorder(byteorder))
            values = array.astype(_result_dtype(dtype), copy=False)
    values.flags.writeable = False
    return values


def _read_safetensors(file: _File, headers_only: bool) -> dict[str, Any]:
    (header_bytes,) = struct.unpack('<Q', file.read(8))
    if header_bytes > 500_000 + file.length // 16:  # parsed, it needs about 40 times its size
        raise damaged('its header is longer than the file, or far too long for its content')
    headers = {}
    with safetensors.safe_open(file.name_on_disk, framework='numpy') as content:
        for name in content.keys():  # noqa: SIM118, not a dict
            part = content.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            if dtype not in _SAFETENSORS or not is_shape(shape):
                raise InputError(f'has the tensor {printable(name)} of an unsupported dtype ({dtype}) or shape')
            headers[name] = TensorHeader(shape, _result_dtype(_SAFETENSORS[dtype]))
    if headers_only:
        return headers
    file.seek(0)
    tensors = {}
    entries = dict(safetensors.deserialize(file.read()))
    for name, header in headers.items():
        entry = entries.pop(name)
        tensors[name] = _values(entry['data'], _SAFETENSORS[entry['dtype']]).reshape(header.shape)
    return tensors


def _open_zip(file: _File) -> zipfile.ZipFile:
    """Opens a zip file, and checks by their sizes that its entries can be in the file without overlap."""
    file.longest_read = 1_000_000 + file.length // 8  # parsed, a directory needs about 15 times its size
    archive = zipfile.ZipFile(file)
    file.longest_read = file.length
    if sum(entry.compress_size for entry in archive.infolist()) > file.length:
        raise damaged('its entries are larger than the file')
    return archive


def _read_npz(archive: zipfile.ZipFile, file_bytes: int, headers_only: bool) -> dict[str, Any]:
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > 64_000_000 + 20 * file_bytes:
        raise InputError('is refused: decompressed, it is more than 20 times as large')
    tensors: dict[str, Any] = {}
    for entry in entries:
        name = entry.filename.removesuffix('.npy')
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or name == entry.filename:
            raise InputError(f'has the entry {printable(name)}, which is not a NumPy array')
        with archive.open(entry) as part:
            shape, by_columns, dtype = _npy_header(part)
            start = part.tell()
            if dtype.kind not in 'biufc' or not is_shape(shape):
                raise InputError(
                    f'has the array {printable(name)} of an unsupported dtype ({printable(str(dtype))}) or shape'
                )
            if math.prod(shape) * dtype.itemsize != entry.file_size - start:
                raise damaged(f'array {printable(name)} of shape {shape} has {entry.file_size - start} bytes')
            tensors[name] = TensorHeader(shape, _result_dtype(dtype.newbyteorder('=')))
            if not headers_only:
                values = _values(part.read(), dtype.name, '>' if dtype.str[0] == '>' else '<')
                tensors[name] = values.reshape(shape, order='F' if by_columns else 'C')
    return tensors


def _npy_header(part: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, whether the order is Fortran's, and dtype."""
    reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # NumPy warns about ambiguous headers
            return reads[np.lib.format.read_magic(part)](part)
    except Exception as error:  # a header is a Python literal, so the types vary
        raise damaged(f'invalid header of an array ({type(error).__name__})') from error


def _read_torch(contents: Contents, headers_only: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    tensors: dict[str, Any] = {}
    loaded: dict[str, tuple[str, np.ndarray]] = {}  # each storage is read once, however many tensors share it
    views: dict[TensorRecord, Any] = {}  # a tensor with two names is one array
    for name, record in contents.tensors.items():
        key, stored = record.storage.key, record.storage.numel * ITEM_SIZES[record.storage.dtype]
        if contents.sizes.get(key) != stored:
            raise damaged(f'storage {printable(key)} has {contents.sizes.get(key, 0)} bytes instead of {stored}')
        if not headers_only and key not in loaded:
            loaded[key] = record.dtype, _values(contents.data(key), record.dtype, contents.byteorder)
        if not headers_only and loaded[key][0] != record.dtype:
            raise InputError(
                f'is refused: {printable(name)} reads as {record.dtype} what another tensor reads as {loaded[key][0]}'
            )
        if record not in views:
            header = TensorHeader(record.shape, _result_dtype(record.dtype))
            views[record] = header if headers_only else _view(loaded[key][1], record)
        tensors[name] = views[record]
    return tensors, contents.ignored


def _view(values: np.ndarray, record: TensorRecord) -> np.ndarray:
    """A tensor as a view of its storage."""
    if 0 in record.shape:
        return np.empty(record.shape, values.dtype)
    width = values.dtype.itemsize
    # The stride of an axis of size 1 is meaningless and arbitrary in PyTorch.
    strides = [stride * width if size > 1 else 0 for stride, size in zip(record.strides, record.shape, strict=True)]
    return np.ndarray(record.shape, values.dtype, values, record.offset * width, strides)
