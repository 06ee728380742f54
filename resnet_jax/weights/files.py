"""Files of weights: PyTorch's, safetensors and NumPy's are read, safetensors are written.

A file may come from anywhere, so it is taken as hostile: nothing in it is run, what it says of its sizes is checked
against the bytes that are there before memory is taken, and whatever is wrong with it is an ``InputError``.
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
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import numpy as np
import safetensors
import safetensors.numpy

from resnet_jax.errors import InputError
from resnet_jax.weights.torch_pickle import ITEM_SIZES, TensorRecord, Unpickler, damaged, is_shape, shown

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Where a checkpoint of a training keeps the weights; an average of them counts only where there is nothing else.
_NESTED = ('state_dict', 'model', 'model_state_dict', 'model_state', 'net', 'state_dict_ema', 'model_ema')
_PREFIXES = ('module.', '_orig_mod.', 'model.')  # of wrappers: data parallel, compiled, a trainer's
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
    """What ``read_tensors`` would give, without the values."""

    shape: tuple[int, ...]
    dtype: np.dtype


@overload
def read_tensors(path: str | os.PathLike, headers_only: Literal[False] = False) -> dict[str, np.ndarray]: ...


@overload
def read_tensors(path: str | os.PathLike, headers_only: bool) -> dict[str, Any]: ...


def read_tensors(path: str | os.PathLike, headers_only: bool = False) -> dict[str, Any]:
    """The tensors of a file of weights, by name. Nothing in the file is run.

    Args:
      path: a safetensors file, a file of ``torch.save`` (zip or older), or an ``.npz``; the first bytes tell which.
        A checkpoint that holds the state dict under ``state_dict``, ``model``, ``model_state_dict``, ``model_state``,
        ``net``, ``state_dict_ema`` or ``model_ema`` (the first that has tensors) is unwrapped; what is not a tensor is
        passed over; ``module.``, ``_orig_mod.`` and ``model.`` in front of all names are taken off.
      headers_only: give ``TensorHeader`` objects, and leave the values in the file.

    Returns:
      Arrays of the shapes in the file. Floating-point numbers of every width are float32, other numbers as they are.
      The arrays are read-only: tensors that share their data in the file share it here, too.

    Raises:
      InputError: no such file, none of these kinds, damaged, without tensors, or with anything but tensors and
        containers in its pickle. The message is one line that names the file.
    """
    try:
        if not os.path.isfile(path):
            raise InputError('is a folder, not a file' if os.path.isdir(path) else 'does not exist')
        with _File(path) as file:
            tensors = _read(file, headers_only)
        if not tensors:
            raise InputError('holds no named tensors')
    except InputError as error:
        raise InputError(f'{path} {error}') from error.__cause__
    except OSError as error:
        if error.errno == errno.EINVAL:  # of seeking
            raise InputError(f'{path} is damaged: it refers to what is before its start') from error
        raise InputError(f'{path} cannot be read: {shown(error.strerror or str(error))}') from error
    except MemoryError as error:
        raise InputError(f'{path} does not fit into memory') from error
    except _DAMAGE as error:
        raise InputError(f'{path} is damaged: {shown(str(error))}') from error
    return _without_prefixes(tensors)


# What the readers of other libraries raise on bytes that are not what they should be.
_DAMAGE = (
    *(ValueError, TypeError, KeyError, EOFError, OverflowError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, safetensors.SafetensorError),
)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all.

    Args:
      path: of the file; its folder exists.
      tensors: arrays of numbers, of any shape, by name.
      metadata: texts to go with them.

    Raises:
      InputError: the folder cannot be written to, or the format has no such type.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')  # here, since only a rename within a disk is atomic
    try:
        arrays = {name: np.asarray(tensor, order='C') for name, tensor in tensors.items()}
        # Not by ``save_file``, whose files are for their owner's eyes only.
        partial.write_bytes(safetensors.numpy.save(arrays, metadata))
        partial.replace(path)
    except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f'cannot write {path}: {shown(str(error))}') from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


class _File(io.BufferedReader):
    """A file whose reads take no more memory than it has bytes, whatever length is asked for."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(open(path, 'rb', buffering=0))  # noqa: SIM115, for it is closed with this
        self.name_on_disk = path
        self.length = os.fstat(self.fileno()).st_size
        self.longest_read = self.length

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.length - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > self.longest_read:
            raise InputError('is refused: its directory is far larger than its content needs')
        return super().read(size)


def _read(file: _File, headers_only: bool) -> dict[str, Any]:
    start = file.read(9)
    file.seek(0)
    if start[8:] == b'{':
        return _read_safetensors(file, headers_only)
    if start[:1] == b'\x80':
        return _read_torch(_legacy(file), headers_only)
    if start[:4] not in (b'PK\3\4', b'PK\5\6'):
        raise InputError('is not a safetensors, PyTorch (zip or older) or .npz file')
    with _open_zip(file) as archive:
        if any(name.endswith('data.pkl') for name in archive.namelist()):
            return _read_torch(_zipped(archive, file.length), headers_only)
        return _read_npz(archive, file.length, headers_only)


def _without_prefixes(tensors: dict[str, Any]) -> dict[str, Any]:
    while True:
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                break
        else:
            return tensors


def _result_dtype(dtype: str | np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == 'bfloat16' or np.dtype(dtype).kind == 'f' else np.dtype(dtype)


def _values(data: bytes, dtype: str, byteorder: Literal['<', '>'] = '<') -> np.ndarray:
    """The elements in ``data``, flat and of the type to return.

    Args:
      data: a whole number of elements.
      dtype: one of ``ITEM_SIZES``.
      byteorder: ``<`` or ``>``.
    """
    if dtype == 'bfloat16':  # the upper half of a float32
        values = np.frombuffer(data, f'{byteorder}u2').astype(np.uint32)
        values <<= 16
        values = values.view(np.float32)
    elif dtype == 'bool':  # a byte other than 0 and 1 is no boolean to NumPy
        values = np.frombuffer(data, np.uint8) != 0
    else:
        with np.errstate(all='ignore'):  # what is beyond float32 is infinite
            array = np.frombuffer(data, np.dtype(dtype).newbyteorder(byteorder))
            values = array.astype(_result_dtype(dtype), copy=False)
    values.flags.writeable = False
    return values


def _read_safetensors(file: _File, headers_only: bool) -> dict[str, Any]:
    (header_bytes,) = struct.unpack('<Q', file.read(8))
    if header_bytes > 500_000 + file.length // 16:  # parsed, it takes some 40 times its bytes
        raise damaged('its header is far longer than its content needs, or than the file')
    headers = {}
    with safetensors.safe_open(file.name_on_disk, framework='numpy') as content:
        for name in content.keys():  # noqa: SIM118, for it is no dictionary
            part = content.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            if dtype not in _SAFETENSORS or not is_shape(shape):
                raise InputError(f'holds {shown(name)} of the type {dtype} or of a shape that is not read')
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
    """Opens a zip file whose entries are there, each in its own place, as far as sizes can tell."""
    file.longest_read = 1_000_000 + file.length // 8  # opened, a directory takes some 15 times its bytes
    archive = zipfile.ZipFile(file)
    file.longest_read = file.length
    if sum(entry.compress_size for entry in archive.infolist()) > file.length:
        raise damaged('its entries are larger than the file')
    return archive


def _read_npz(archive: zipfile.ZipFile, file_bytes: int, headers_only: bool) -> dict[str, Any]:
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > 64_000_000 + 20 * file_bytes:
        raise InputError('is refused: unpacked, it is more than 20 times as large')
    tensors: dict[str, Any] = {}
    for entry in entries:
        name = entry.filename.removesuffix('.npy')
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or name == entry.filename:
            raise InputError(f'holds {shown(name)}, which is not a NumPy array')
        with archive.open(entry) as part:
            shape, by_columns, dtype = _npy_header(part)
            start = part.tell()
            if dtype.kind not in 'biufc' or not is_shape(shape):
                raise InputError(f'holds {shown(name)} of the type {shown(str(dtype))} or of a shape that is not read')
            if math.prod(shape) * dtype.itemsize != entry.file_size - start:
                raise damaged(f'{shown(name)} of shape {shape} has {entry.file_size - start} bytes')
            tensors[name] = TensorHeader(shape, _result_dtype(dtype.newbyteorder('=')))
            if not headers_only:
                values = _values(part.read(), dtype.name, '>' if dtype.str[0] == '>' else '<')
                tensors[name] = values.reshape(shape, order='F' if by_columns else 'C')
    return tensors


def _npy_header(part: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first index changes fastest, and type."""
    reads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # of headers that can only be guessed
            return reads[np.lib.format.read_magic(part)](part)
    except Exception as error:  # a header is Python's syntax, so there are many
        raise damaged(f'the header of an array ({type(error).__name__})') from error


@dataclasses.dataclass(frozen=True)
class _Contents:
    """A file of ``torch.save``: what was saved, and its storages, by key: how many bytes they have, how to get them."""

    saved: Any
    sizes: dict[str, int]
    data: Callable[[str], bytes]
    byteorder: Literal['<', '>'] = '<'


def _most_steps(file_bytes: int) -> int:
    """Far more opcodes than the tensors of such a file need, and few enough to take no more memory than it."""
    return min(100_000 + file_bytes // 32, 2_000_000)


def _zipped(archive: zipfile.ZipFile, file_bytes: int) -> _Contents:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size
        for entry in entries.values()
    ):
        raise InputError('is refused: it has compressed entries, which PyTorch does not write')
    pickles = [name for name in entries if name == 'data.pkl' or name.endswith('/data.pkl')]
    if len(pickles) != 1:
        raise damaged(f'it has {len(pickles)} entries data.pkl instead of one')
    folder = pickles[0].removesuffix('data.pkl')
    saved = Unpickler(io.BytesIO(archive.read(pickles[0])), _most_steps(file_bytes)).load()
    byteorder = archive.read(f'{folder}byteorder') if f'{folder}byteorder' in entries else b'little'
    if byteorder not in (b'little', b'big'):
        raise damaged('its byte order is neither little nor big')
    start = f'{folder}data/'
    sizes = {name.removeprefix(start): entry.file_size for name, entry in entries.items() if name.startswith(start)}
    return _Contents(saved, sizes, lambda key: archive.read(start + key), '<' if byteorder == b'little' else '>')


def _legacy(file: _File) -> _Contents:
    """Five pickles, then the storages in the order of the fifth, each after its number of elements."""
    unpickler = Unpickler(file, _most_steps(file.length))
    if unpickler.load() != _LEGACY_MAGIC or unpickler.load() != _LEGACY_PROTOCOL:
        raise InputError('is a pickle, but not one of torch.save')
    unpickler.load()  # about the machine that wrote it; storages are little-endian on all
    saved, keys = unpickler.load(), unpickler.load()
    if not isinstance(keys, list) or not all(type(key) is str and key in unpickler.storages for key in keys):
        raise damaged('its list of storages names others than its tensors do')
    starts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for key in keys:
        storage = unpickler.storages[key]
        (numel,) = struct.unpack('<q', file.read(8))
        starts[key], sizes[key] = file.tell(), numel * ITEM_SIZES[storage.dtype]
        if numel != storage.numel or starts[key] + sizes[key] > file.length:
            raise damaged(f'storage {shown(key)} should have {storage.numel} elements, which are not there')
        file.seek(starts[key] + sizes[key])

    def data(key: str) -> bytes:
        file.seek(starts[key])
        return file.read(sizes[key])

    return _Contents(saved, sizes, data)


def _read_torch(contents: _Contents, headers_only: bool) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    loaded: dict[str, tuple[str, np.ndarray]] = {}  # each storage once, so that sharing it costs nothing
    for name, record in _state_dict(contents.saved).items():
        key, stored = record.storage.key, record.storage.numel * ITEM_SIZES[record.storage.dtype]
        if contents.sizes.get(key) != stored:
            raise damaged(f'storage {shown(key)} has {contents.sizes.get(key, 0)} bytes instead of {stored}')
        if headers_only:
            tensors[name] = TensorHeader(record.shape, _result_dtype(record.dtype))
            continue
        if key not in loaded:
            loaded[key] = record.dtype, _values(contents.data(key), record.dtype, contents.byteorder)
        dtype, values = loaded[key]
        if dtype != record.dtype:
            raise InputError(f'is refused: {shown(name)} takes for {record.dtype} what is {dtype} to another tensor')
        tensors[name] = _view(values, record)
    return tensors


def _state_dict(saved: Any) -> dict[str, TensorRecord]:
    """The named tensors of a checkpoint; none if there are none."""
    if not isinstance(saved, dict):
        return {}
    for value in (*map(saved.get, _NESTED), saved):
        found = value.items() if isinstance(value, dict) else ()
        tensors = {name: tensor for name, tensor in found if isinstance(tensor, TensorRecord)}
        if tensors:
            return tensors
    return {}


def _view(values: np.ndarray, record: TensorRecord) -> np.ndarray:
    """A tensor as a view of its storage."""
    if 0 in record.shape:
        return np.empty(record.shape, values.dtype)
    width = values.dtype.itemsize
    # The stride of a single element means nothing, and PyTorch leaves anything there.
    strides = [stride * width if size > 1 else 0 for stride, size in zip(record.strides, record.shape, strict=True)]
    return np.ndarray(record.shape, values.dtype, values, record.offset * width, strides)
