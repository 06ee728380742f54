"""A restricted unpickler for PyTorch files, which needs no PyTorch and executes no code of the file.

A pickle is a program for a small stack machine, and Python's unpickler calls whatever functions the program names. This
one implements the opcodes but calls no functions: names are looked up in a table of what a weights file may contain,
and a call creates a container, a record that describes a tensor, or the placeholder ``INERT``. Any other name is
refused with an error that names it. Nothing is imported, and no container is hashed, compared or printed.
"""

import dataclasses
import math
import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from resnet_jax.errors import InputError

MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**47  # far beyond any memory, far below overflow in NumPy


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat array in the file.

    Attributes:
      dtype: one of ``ITEM_SIZES``.
      key: name of its data in the file.
      numel: declared number of elements.
    """

    dtype: str
    key: str
    numel: int


@dataclasses.dataclass(frozen=True)
class TensorRecord:
    """A tensor as a view within the bounds of a storage, without overlapping elements.

    Attributes:
      storage: the storage.
      dtype: the storage's, unless that is untyped.
      offset: in elements of ``dtype``.
      shape: the shape.
      strides: in elements of ``dtype``.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Inert:
    """Placeholder of an object that is neither a tensor nor a container; it has no content."""


INERT = Inert()


@dataclasses.dataclass(frozen=True)
class _Type:
    """A class of storages, or a ``torch.dtype``."""

    dtype: str


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function that a pickle may call."""

    run: Callable[[tuple[Any, ...]], Any]


# Names of storage classes without ``Storage``, and their dtypes.
_STORAGES = {
    **{'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16'},
    **{'Long': 'int64', 'Int': 'int32', 'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8', 'Bool': 'bool'},
    **{'ComplexDouble': 'complex128', 'ComplexFloat': 'complex64', 'Untyped': 'uint8'},
}
_WITHOUT_STORAGES = ('uint16', 'uint32', 'uint64')
ITEM_SIZES = {'bfloat16': 2} | {
    name: np.dtype(name).itemsize for name in (*_STORAGES.values(), *_WITHOUT_STORAGES) if name != 'bfloat16'
}


def damaged(what: str) -> InputError:
    """Makes the error of a damaged file; callers prepend the file's name."""
    return InputError(f'is damaged: {what}')


def printable(name: str) -> str:
    """Makes a string from a file printable: one line of at most 80 characters."""
    name = name.encode('ascii', 'backslashreplace').decode()
    return ''.join(c if c.isprintable() else '?' for c in name[:80]) + ('…' if len(name) > 80 else '')


def is_shape(value: Any) -> bool:
    """Whether a value is a valid shape: a tuple of sizes within the limits of this module."""
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        return False
    return all(map(_is_count, value)) and math.prod(max(size, 1) for size in value) <= MAX_ELEMENTS


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def _tensor(args: tuple[Any, ...]) -> TensorRecord:
    """Rebuilds a tensor from ``(storage, offset, shape, strides)``."""
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise damaged('a tensor has no storage, offset or shape')
    return _view(args, args[0].dtype)


def _tensor_v2(args: tuple[Any, ...]) -> TensorRecord:
    """Rebuilds a tensor from ``(storage, offset, shape, strides, requires_grad, hooks[, metadata])``."""
    if len(args) > 6 and args[6] is not None and args[6] != {}:
        raise InputError('has a conjugated or negated view, which is not supported')
    return _tensor(args)


def _tensor_v3(args: tuple[Any, ...]) -> TensorRecord:
    """As ``_tensor_v2``, with a dtype before the metadata, for dtypes without a storage class."""
    if len(args) < 7 or not isinstance(args[6], _Type):
        raise damaged('a tensor has no dtype')
    _tensor_v2(args[:6] + args[7:])
    return _view(args, args[6].dtype)


def _view(args: tuple[Any, ...], dtype: str) -> TensorRecord:
    """Makes a record after checking that all elements are within the storage and do not overlap."""
    storage, offset, shape, strides = args[:4]
    if not _is_count(offset) or not is_shape(shape):
        raise damaged('a tensor has an invalid offset or shape')
    if not isinstance(strides, tuple) or len(strides) != len(shape) or not all(map(_is_count, strides)):
        raise damaged(f'a tensor of shape {shape} has invalid strides')
    numel = storage.numel * ITEM_SIZES[storage.dtype] // ITEM_SIZES[dtype]
    end = offset  # last element reached by the smaller strides
    if 0 not in shape:
        for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
            if stride <= end - offset:  # includes expanded axes, with stride 0
                raise damaged(f'a tensor of shape {shape} has overlapping elements, strides {strides}')
            end += stride * (size - 1)
        end += 1
    if end > numel:
        raise damaged(f'a tensor of shape {shape} extends beyond its storage of {numel} elements')
    return TensorRecord(storage, dtype, offset, shape, strides)


def _first(args: tuple[Any, ...]) -> Any:
    """Rebuilds a parameter as its tensor, and a ``torch.Size`` as its tuple."""
    return args[0] if args and isinstance(args[0], TensorRecord | tuple) else INERT


_ORDERED_DICT = _Function(dict)


def _allowed() -> dict[str, Any]:
    """Meanings of the allowed names, by ``module name``."""
    names: dict[str, Any] = {
        'torch._utils _rebuild_tensor': _Function(_tensor),
        'torch._utils _rebuild_tensor_v2': _Function(_tensor_v2),
        'torch._utils _rebuild_tensor_v3': _Function(_tensor_v3),
        'torch._utils _rebuild_parameter': _Function(_first),
        'torch._utils _rebuild_parameter_with_state': _Function(_first),
        'torch Size': _Function(_first),
        'collections OrderedDict': _ORDERED_DICT,
    }
    for module in ('torch', 'torch.cuda', 'torch.storage'):
        names |= {f'{module} {name}Storage': _Type(dtype) for name, dtype in _STORAGES.items()}
    names |= {f'torch {dtype}': _Type(dtype) for dtype in ITEM_SIZES}
    # Other objects in training checkpoints, which are ignored.
    inert = _Function(lambda args: INERT)
    scalars = ('int', 'float', 'complex', 'bool', 'str', 'bytes', 'bytearray')
    for module in ('builtins', '__builtin__'):
        names |= {f'{module} {name}': inert for name in ('list', 'dict', 'tuple', 'set', 'frozenset', *scalars)}
    for module in ('numpy.core', 'numpy._core'):
        names |= {f'{module}.multiarray {name}': inert for name in ('scalar', '_reconstruct')}
    others = ('collections defaultdict', 'collections Counter', 'collections deque', 'argparse Namespace')
    return names | dict.fromkeys((*others, 'numpy dtype', 'numpy ndarray', '_codecs encode', 'torch device'), inert)


_ALLOWED = _allowed()
_OPCODES = {opcode.code.encode('latin-1'): opcode for opcode in pickletools.opcodes}
_CONSTANTS: dict[str, Any] = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
_LITERALS = {
    *('BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT', 'BINSTRING', 'SHORT_BINSTRING'),
    *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
}


class Unpickler:
    """Reads consecutive pickles of one file.

    Args:
      file: the file; a read beyond its end must return the remaining bytes.
      max_steps: limit of opcodes and copied entries in total, which bounds memory (about 100 bytes each) and time.

    Attributes:
      storages: every storage referred to so far, by key.
    """

    def __init__(self, file: IO[bytes], max_steps: int):
        self.storages: dict[str, Storage] = {}
        self._file = file
        self._steps_left = max_steps
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stack below each mark
        self._memo: dict[int, Any] = {}  # a dict, since indices may be large

    def load(self) -> Any:
        """Reads the next object.

        Returns:
          Python containers and scalars, ``TensorRecord`` and ``INERT``; dicts have only their string keys.

        Raises:
          InputError: the pickle is damaged, or refers to a forbidden name; the message does not name the file.
        """
        self._stack, self._below, self._memo = [], [], {}
        while True:
            self._spend(1)
            code = self._file.read(1)
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise damaged('its pickle ends too early' if not code else f'its pickle has no opcode {code.hex()}')
            if opcode.name == 'STOP':
                return self._pop()
            try:
                self._step(opcode)
            except (IndexError, KeyError) as error:
                raise damaged(f'opcode {opcode.name} of its pickle has no operand') from error

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise InputError('is refused: its pickle has far too many entries for the size of the file')

    def _step(self, opcode: pickletools.OpcodeInfo) -> None:
        """Executes one opcode."""
        name = opcode.name
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(_argument(opcode, self._file))
        elif name in ('BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
            at = len(self._memo) if name == 'MEMOIZE' else _argument(opcode, self._file)
            self._memo[at] = self._stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            self._stack.append(self._memo[_argument(opcode, self._file)])
        elif name in ('PROTO', 'FRAME'):
            _argument(opcode, self._file)
        elif name == 'MARK':
            self._below.append(self._stack)
            self._stack = []
        elif name in ('EMPTY_LIST', 'EMPTY_SET'):
            self._stack.append([])  # a set would hash its elements
        elif name == 'EMPTY_DICT':
            self._stack.append({})
        elif name in ('TUPLE', 'FROZENSET'):
            made = tuple(self._since_mark())  # first, since it restores the stack below
            self._stack.append(made)
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            last_first = [self._pop() for _ in range(int(name[-1]))]
            self._stack.append(tuple(reversed(last_first)))
        elif name == 'POP':
            self._pop()
        elif name == 'POP_MARK':
            self._since_mark()
        elif name == 'DUP':
            self._stack.append(self._stack[-1])
        elif name in ('APPEND', 'APPENDS', 'ADDITEMS'):
            items = [self._pop()] if name == 'APPEND' else self._since_mark()
            _extend(self._stack[-1], items)
        elif name in ('SETITEM', 'SETITEMS'):
            items = [self._pop(), self._pop()][::-1] if name == 'SETITEM' else self._since_mark()
            _update(self._stack[-1], items)
        else:
            self._step_object(name)

    def _step_object(self, name: str) -> None:
        """Executes one of the opcodes that import or call in Python's unpickler."""
        if name == 'GLOBAL':
            self._stack.append(_look_up(self._line(), self._line()))
        elif name == 'STACK_GLOBAL':
            attribute, module = self._pop(), self._pop()
            self._stack.append(_look_up(module, attribute))
        elif name in ('REDUCE', 'NEWOBJ'):
            args, function = self._pop(), self._pop()
            self._stack.append(self._call(function, args))
        elif name == 'NEWOBJ_EX':
            _, args, function = self._pop(), self._pop(), self._pop()
            self._stack.append(self._call(function, args))
        elif name == 'INST':
            function = _look_up(self._line(), self._line())
            args = tuple(self._since_mark())
            self._stack.append(self._call(function, args))
        elif name == 'OBJ':
            function, *items = self._since_mark() or [None]
            self._stack.append(self._call(function, tuple(items)))
        elif name == 'BUILD':
            self._pop()  # the state of an object, which is ignored
        elif name == 'BINPERSID':
            self._stack.append(self._storage(self._pop()))
        else:
            raise InputError(f'is refused: its pickle uses {name}; only tensors and containers are allowed')

    def _pop(self) -> Any:
        if not self._stack:
            raise damaged('its pickle pops from an empty stack')
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        """Pops everything since the last mark, and the mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _line(self) -> str:
        line = self._file.readline(1000)
        if not line.endswith(b'\n'):
            raise damaged('a name in its pickle is not terminated')
        return line[:-1].decode(errors='replace')

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, _Function) or not isinstance(args, tuple):
            raise damaged('its pickle calls something that is not a function')
        return self._ordered_dict(args) if function is _ORDERED_DICT else function.run(args)

    def _ordered_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """An empty dict or, as Python 2 wrote it, one of a list of pairs."""
        made: dict[Any, Any] = {}
        pairs = args[0] if args else []
        if not isinstance(pairs, list):
            raise damaged('a dictionary is not made of pairs')
        self._spend(len(pairs))  # a list may be referenced many times
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise damaged('a dictionary is not made of pairs')
            _update(made, list(pair))
        return made

    def _storage(self, identity: Any) -> Storage:
        """Resolves a persistent id, ``('storage', class, key, device, elements[, view])``."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != 'storage':
            raise damaged('a persistent id of its pickle is not the storage of a tensor')
        kind, key, _, numel = identity[1:5]
        if not isinstance(kind, _Type) or type(key) is not str or not _is_count(numel):
            raise damaged('a storage has no dtype, key or size')
        if len(identity) == 6 and identity[5] is not None:
            raise InputError('has a view of a storage (a legacy format), which is not supported')
        storage = Storage(kind.dtype, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise damaged(f'storage {printable(key)} has two different descriptions')
        return storage


def _argument(opcode: pickletools.OpcodeInfo, file: IO[bytes]) -> Any:
    assert opcode.arg is not None
    try:
        return opcode.arg.reader(file)
    except (ValueError, IndexError, struct.error) as error:
        raise damaged('its pickle ends within an entry, or has an invalid string') from error


def _look_up(module: Any, name: Any) -> Any:
    """Looks up an allowed name."""
    if type(module) is not str or type(name) is not str:
        raise damaged('a name in its pickle is not a string')
    try:
        return _ALLOWED[f'{module} {name}']
    except KeyError:
        raise InputError(
            f'is refused: its pickle refers to {printable(f"{module}.{name}")}; only tensors and containers are allowed'
        ) from None


def _extend(container: Any, items: list[Any]) -> None:
    if isinstance(container, list):
        container.extend(items)
    elif not isinstance(container, Inert):
        raise damaged('its pickle appends to something that is not a list')


def _update(container: Any, items: list[Any]) -> None:
    """Adds alternating keys and values to a dict; keys other than strings are skipped."""
    if len(items) % 2 or not isinstance(container, dict | Inert):
        raise damaged('its pickle sets items of something that is not a dictionary, or without values')
    if isinstance(container, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is str:  # hashing nested tuples can take forever, and numbers can be made to collide
                container[key] = value
