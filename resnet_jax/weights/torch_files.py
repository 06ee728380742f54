"""PyTorch files: the zip format, TorchScript archives, which are zip files with code, and the legacy format."""

import dataclasses
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal

from resnet_jax.errors import InputError
from resnet_jax.weights.torch_pickle import Unpickler
from resnet_jax.weights.torch_tensors import ITEM_SIZES, Inert, TensorRecord, damaged, printable

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Attributes of a pickled ``torch.nn.Module`` that are not part of the names in its state dict.
_PARTS = ('_parameters', '_buffers', '_modules')
_LONGEST_NAME = 200
_DEEPEST = 32


@dataclasses.dataclass(frozen=True)
class Contents:
    """The content of a PyTorch file.

    Attributes:
      tensors: the named tensors, in the order of the file.
      ignored: names of classes and functions that the pickle refers to and that are not known here.
      sizes: sizes of the storages in bytes, by key.
      data: returns the bytes of a storage.
      byteorder: ``<`` or ``>``.
    """

    tensors: dict[str, TensorRecord]
    ignored: tuple[str, ...]
    sizes: dict[str, int]
    data: Callable[[str], bytes]
    byteorder: Literal['<', '>'] = '<'


def _max_steps(file_bytes: int) -> int:
    """The limit of opcodes: far more than a file of this size needs, but few enough to bound memory by its size."""
    return min(100_000 + file_bytes // 32, 2_000_000)


def read_zipped(archive: zipfile.ZipFile, file_bytes: int) -> Contents:
    """Reads a zip file of ``torch.save`` or ``torch.jit.save``; of the latter only the tensors, not its code.

    Args:
      archive: the opened file.
      file_bytes: its size.

    Raises:
      InputError: the file is damaged, or its tensors are compressed.
    """
    entries = {entry.filename: entry for entry in archive.infolist()}
    # The network's pickle lies in the topmost folder; files that the user adds to a TorchScript archive lie below it.
    pickles = [name for name in entries if name.rpartition('/')[2] == 'data.pkl' and name.count('/') < 2]
    if len(pickles) != 1:
        raise damaged(f'it has {len(pickles)} data.pkl entries instead of one')
    folder = pickles[0].removesuffix('data.pkl')
    start = f'{folder}data/'
    read = [*pickles, f'{folder}byteorder', *(name for name in entries if name.startswith(start))]
    for entry in (entries[name] for name in read if name in entries):
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            what = printable(entry.filename)
            raise InputError(f'is refused: its entry {what} is compressed; PyTorch compresses only code')
    unpickler = Unpickler(io.BytesIO(archive.read(pickles[0])), _max_steps(file_bytes))
    tensors = named_tensors(unpickler.load())
    byteorder = archive.read(f'{folder}byteorder') if f'{folder}byteorder' in entries else b'little'
    if byteorder not in (b'little', b'big'):
        raise damaged('its byte order must be little or big')
    sizes = {name.removeprefix(start): entry.file_size for name, entry in entries.items() if name.startswith(start)}
    order: Literal['<', '>'] = '<' if byteorder == b'little' else '>'
    return Contents(tensors, tuple(unpickler.ignored), sizes, lambda key: archive.read(start + key), order)


def read_legacy(file: IO[bytes], file_bytes: int) -> Contents:
    """Reads the legacy format: five pickles, then the storages in the order of the fifth, each after its size.

    Args:
      file: the opened file.
      file_bytes: its size.

    Raises:
      InputError: the file is damaged, or a pickle of something else.
    """
    unpickler = Unpickler(file, _max_steps(file_bytes))
    if unpickler.load() != _LEGACY_MAGIC or unpickler.load() != _LEGACY_PROTOCOL:
        raise InputError('is a pickle, but not of torch.save')
    unpickler.load()  # describes the system that wrote it; storages are always little-endian
    saved, keys = unpickler.load(), unpickler.load()
    if not isinstance(keys, list) or not all(type(key) is str and key in unpickler.storages for key in keys):
        raise damaged('its list of storages does not match its tensors')
    starts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for key in keys:
        storage = unpickler.storages[key]
        (numel,) = struct.unpack('<q', file.read(8))
        starts[key], sizes[key] = file.tell(), numel * ITEM_SIZES[storage.dtype]
        if numel != storage.numel or starts[key] + sizes[key] > file_bytes:
            raise damaged(f'storage {printable(key)} does not have {storage.numel} elements')
        file.seek(starts[key] + sizes[key])

    def data(key: str) -> bytes:
        file.seek(starts[key])
        return file.read(sizes[key])

    return Contents(named_tensors(saved), tuple(unpickler.ignored), sizes, data)


def named_tensors(saved: Any) -> dict[str, TensorRecord]:
    """Names the tensors in a saved object like a state dict: the keys of nested dicts and objects, joined by dots.

    Every dict and object is named once, by the first path to it: an object may refer to itself, and names of the same
    content under many paths could fill any memory. Lists are not searched.

    Args:
      saved: from ``Unpickler.load``.

    Returns:
      Tensors by name, in the order of the file; empty if nothing has a name.
    """
    seen: set[int] = set()

    def search(value: Any, start: str, depth: int) -> Iterator[tuple[str, TensorRecord]]:
        content = value.content if isinstance(value, Inert) else value
        if not isinstance(content, dict) or id(content) in seen or depth > _DEEPEST:
            return
        seen.add(id(content))
        for key, below in content.items():
            name = start + key
            if len(name) > _LONGEST_NAME:
                continue
            if isinstance(below, TensorRecord):
                yield name, below
            else:
                is_part = isinstance(value, Inert) and key in _PARTS
                yield from search(below, start if is_part else f'{name}.', depth + 1)

    return dict(search(saved, '', 0))
