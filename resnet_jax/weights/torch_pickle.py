"""Unpickling what PyTorch saves without PyTorch, and without running anything that a file asks for.

A pickle is a program for a small stack machine, and Python's own machine calls whatever functions the program names.
The one here knows the opcodes but no functions: a name is looked up in a table of what may stand in a file of weights,
and a call makes a container, a record that describes a tensor, or the placeholder ``INERT``. What is not in the table
is refused by name. Nothing is imported, and no container is hashed, compared or printed.
"""

import dataclasses
import math
import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from resnet_jax.errors import InputError

MOST_DIMENSIONS = 32
MOST_ELEMENTS = 2**47  # far beyond any memory, far below what NumPy's own arithmetic can hold


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat array in the file: its type, the key it is stored under, and how many elements it is said to have."""

    dtype: str
    key: str
    numel: int


@dataclasses.dataclass(frozen=True)
class TensorRecord:
    """A tensor as a view of a storage; it lies within it, and no two of its elements share a place.

    ``offset`` and ``strides`` count elements of ``dtype``, which is the storage's unless that one holds bytes only.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Inert:
    """What stands for an object that is neither a tensor nor a container of tensors; it has no content."""


INERT = Inert()


@dataclasses.dataclass(frozen=True)
class _Type:
    """The class of a storage, or a ``torch.dtype``."""

    dtype: str


@dataclasses.dataclass(frozen=True)
class _Function:
    """The only thing that can be called."""

    run: Callable[[tuple[Any, ...]], Any]


# Name of a storage's class without ``Storage``, type of its elements.
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
    """The error of a file that is not what it should be; whoever knows the file's name puts it in front."""
    return InputError(f'is damaged: {what}')


def shown(name: str) -> str:
    """A text from a file, short and in one line."""
    name = name.encode('ascii', 'backslashreplace').decode()
    return ''.join(c if c.isprintable() else '?' for c in name[:80]) + ('…' if len(name) > 80 else '')


def is_shape(value: Any) -> bool:
    """Whether this is a tuple of sizes that an array can have."""
    if not isinstance(value, tuple) or len(value) > MOST_DIMENSIONS:
        return False
    return all(map(_is_count, value)) and math.prod(max(size, 1) for size in value) <= MOST_ELEMENTS


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_ELEMENTS


def _tensor(args: tuple[Any, ...]) -> TensorRecord:
    """``(storage, offset, shape, strides)``."""
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise damaged('a tensor without a storage, an offset or a shape')
    return _view(args, args[0].dtype)


def _tensor_v2(args: tuple[Any, ...]) -> TensorRecord:
    """``(storage, offset, shape, strides, requires_grad, hooks[, metadata])``."""
    if len(args) > 6 and args[6] is not None and args[6] != {}:
        raise InputError('holds a conjugated or negated view, which is not read')
    return _tensor(args)


def _tensor_v3(args: tuple[Any, ...]) -> TensorRecord:
    """As the second version, with a type before the metadata: for types that have no class of storages."""
    if len(args) < 7 or not isinstance(args[6], _Type):
        raise damaged('a tensor without a type')
    _tensor_v2(args[:6] + args[7:])
    return _view(args, args[6].dtype)


def _view(args: tuple[Any, ...], dtype: str) -> TensorRecord:
    """A tensor whose every element has its own place within the storage."""
    storage, offset, shape, strides = args[:4]
    if not _is_count(offset) or not is_shape(shape):
        raise damaged('a tensor without an offset or a shape that can be')
    if not isinstance(strides, tuple) or len(strides) != len(shape) or not all(map(_is_count, strides)):
        raise damaged(f'a tensor of shape {shape} with strides that cannot be')
    numel = storage.numel * ITEM_SIZES[storage.dtype] // ITEM_SIZES[dtype]
    end = offset  # of the elements reached by the smaller strides
    if 0 not in shape:
        for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1):
            if stride <= end - offset:  # also where a dimension was expanded, with a stride of 0
                raise damaged(f'a tensor of shape {shape} whose elements overlap, by strides {strides}')
            end += stride * (size - 1)
        end += 1
    if end > numel:
        raise damaged(f'a tensor of shape {shape} reaches beyond its storage of {numel} elements')
    return TensorRecord(storage, dtype, offset, shape, strides)


def _first(args: tuple[Any, ...]) -> Any:
    """A parameter is its tensor, a size is its tuple."""
    return args[0] if args and isinstance(args[0], TensorRecord | tuple) else INERT


_ORDERED_DICT = _Function(dict)


def _allowed() -> dict[str, Any]:
    """What each admitted name, ``module name``, stands for."""
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
    # What training leaves next to the weights: it is passed over, so it need not be made.
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
    """Reads the pickles of one file, one after the other.

    Args:
      file: where they are; a read of more bytes than are left gives those that are left.
      most_steps: opcodes and copied entries, in all; this bounds memory (some 100 bytes each) and time.

    ``storages`` has every storage that was mentioned, by its key.
    """

    def __init__(self, file: IO[bytes], most_steps: int):
        self.storages: dict[str, Storage] = {}
        self._file = file
        self._steps_left = most_steps
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}  # a dictionary: a large index costs no more than a small one

    def load(self) -> Any:
        """The next object: containers and scalars of Python, ``TensorRecord``, ``INERT``; dictionaries are of texts.

        Raises:
          InputError: damage, or anything but tensors and containers; the message lacks the file's name.
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
                raise damaged(f'opcode {opcode.name} of its pickle has nothing to work on') from error

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise InputError('is refused: its pickle has far more entries than a file of its size needs')

    def _step(self, opcode: pickletools.OpcodeInfo) -> None:
        """Runs one opcode."""
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
            self._stack.append([])  # a set would hash what is in it
        elif name == 'EMPTY_DICT':
            self._stack.append({})
        elif name in ('TUPLE', 'FROZENSET'):
            made = tuple(self._since_mark())  # first, for it brings back the stack below
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
            self._step_of_objects(name)

    def _step_of_objects(self, name: str) -> None:
        """Runs one of the opcodes by which a pickle would import and call."""
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
            self._pop()  # the attributes of an object: nothing here has any
        elif name == 'BINPERSID':
            self._stack.append(self._storage(self._pop()))
        else:
            raise InputError(f'is refused: its pickle uses {name}; only tensors and containers are read')

    def _pop(self) -> Any:
        if not self._stack:
            raise damaged('its pickle takes more than it made')
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        """What was made since the last mark; it is taken away, with the mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _line(self) -> str:
        line = self._file.readline(1000)
        if not line.endswith(b'\n'):
            raise damaged('a name in its pickle does not end')
        return line[:-1].decode(errors='replace')

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, _Function) or not isinstance(args, tuple):
            raise damaged('its pickle calls something that is not a function')
        return self._ordered_dict(args) if function is _ORDERED_DICT else function.run(args)

    def _ordered_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """An empty one, or, as Python 2 wrote it, one of a list of lists of two."""
        made: dict[Any, Any] = {}
        pairs = args[0] if args else []
        if not isinstance(pairs, list):
            raise damaged('a dictionary of something else than pairs')
        self._spend(len(pairs))  # a list may be used many times
        for pair in pairs:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise damaged('a dictionary of something else than pairs')
            _update(made, list(pair))
        return made

    def _storage(self, identity: Any) -> Storage:
        """``('storage', class, key, device, elements[, view])``: how PyTorch mentions the data of a tensor."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != 'storage':
            raise damaged('its pickle mentions something outside that is not the storage of a tensor')
        kind, key, _, numel = identity[1:5]
        if not isinstance(kind, _Type) or type(key) is not str or not _is_count(numel):
            raise damaged('a storage without a type, a key or a size')
        if len(identity) == 6 and identity[5] is not None:
            raise InputError('holds a view of a storage, as early PyTorch wrote them, which is not read')
        storage = Storage(kind.dtype, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise damaged(f'storage {shown(key)} is described twice, and differently')
        return storage


def _argument(opcode: pickletools.OpcodeInfo, file: IO[bytes]) -> Any:
    assert opcode.arg is not None
    try:
        return opcode.arg.reader(file)
    except (ValueError, IndexError, struct.error) as error:
        raise damaged('its pickle ends within an entry, or has a text that is none') from error


def _look_up(module: Any, name: Any) -> Any:
    """What a name stands for here."""
    if type(module) is not str or type(name) is not str:
        raise damaged('its pickle names something by what is not a text')
    try:
        return _ALLOWED[f'{module} {name}']
    except KeyError:
        raise InputError(
            f'wants to run {shown(f"{module}.{name}")}: refused; only tensors and containers are read'
        ) from None


def _extend(container: Any, items: list[Any]) -> None:
    if isinstance(container, list):
        container.extend(items)
    elif not isinstance(container, Inert):
        raise damaged('its pickle appends to what is not a list')


def _update(container: Any, items: list[Any]) -> None:
    """Enters keys and values, which take turns; only what has a text for its key, as weights have."""
    if len(items) % 2 or not isinstance(container, dict | Inert):
        raise damaged('its pickle enters what are not keys and values, or not into a dictionary')
    if isinstance(container, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is str:  # to hash a tuple of tuples can take for ever, and numbers can be made to collide
                container[key] = value
