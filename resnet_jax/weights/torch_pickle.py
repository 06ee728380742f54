"""A restricted unpickler for PyTorch files, which needs no PyTorch and executes no code of the file.

A pickle is a program for a small stack machine, and Python's unpickler calls whatever functions the program names. This
one implements the opcodes but calls no functions: names are looked up in a table of what a weights file may contain,
and a call creates a container or a record that describes a tensor. Any other name, and what a call of it returns, is a
stand-in (``Inert``) that can do nothing but hold attributes and items. Nothing is imported, and no container is hashed,
compared or printed.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any

from resnet_jax.errors import InputError
from resnet_jax.weights.torch_tensors import (
    INERT,
    ITEM_SIZES,
    STORAGES,
    ElementType,
    Inert,
    Storage,
    damaged,
    first_argument,
    is_count,
    printable,
    rebuild_tensor,
    rebuild_tensor_v2,
    rebuild_tensor_v3,
)

_LONGEST_NAME = 500  # characters of a module and a name in it
_MOST_NAMES = 1000  # that are kept for a message


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function that a pickle may call."""

    run: Callable[[tuple[Any, ...]], Any]


_ORDERED_DICT = _Function(dict)
_REBUILD = {
    '_rebuild_tensor': _Function(rebuild_tensor),
    '_rebuild_tensor_v2': _Function(rebuild_tensor_v2),
    '_rebuild_tensor_v3': _Function(rebuild_tensor_v3),
    '_rebuild_parameter': _Function(first_argument),
    '_rebuild_parameter_with_state': _Function(first_argument),
}


def _with_attributes(args: tuple[Any, ...]) -> Any:
    """Rebuilds a tensor with attributes, or of a subclass, from ``(function, class, its arguments, attributes)``."""
    known = len(args) > 2 and isinstance(args[0], _Function) and args[0] in _REBUILD.values()
    return args[0].run(args[2]) if known and isinstance(args[2], tuple) else INERT


def _known() -> dict[str, Any]:
    """Meanings of the known names, by ``module name``."""
    names: dict[str, Any] = {f'torch._utils {name}': function for name, function in _REBUILD.items()}
    first = _Function(first_argument)
    names |= {f'torch._tensor {name}': _Function(_with_attributes) for name in _FROM_TYPE}
    names |= {'torch Size': first, 'collections OrderedDict': _ORDERED_DICT}
    names |= {f'torch.jit._pickle {name}': first for name in ('restore_type_tag', *map('build_{}list'.format, _LISTS))}
    for module in ('torch', 'torch.cuda', 'torch.storage'):
        names |= {f'{module} {name}Storage': ElementType(dtype) for name, dtype in STORAGES.items()}
    names |= {f'torch {dtype}': ElementType(dtype) for dtype in ITEM_SIZES}
    # Other objects in training checkpoints, which are ignored without a message.
    scalars = ('int', 'float', 'complex', 'bool', 'str', 'bytes', 'bytearray')
    for module in ('builtins', '__builtin__'):
        names |= {f'{module} {name}': INERT for name in ('list', 'dict', 'tuple', 'set', 'frozenset', *scalars)}
    for module in ('numpy.core', 'numpy._core'):
        names |= {f'{module}.multiarray {name}': INERT for name in ('scalar', '_reconstruct')}
    others = (
        *('collections defaultdict', 'collections Counter', 'collections deque', 'argparse Namespace'),
        *('numpy dtype', 'numpy ndarray', '_codecs encode', 'torch device', 'torch Tensor'),
    )
    return names | dict.fromkeys(others, INERT)


_FROM_TYPE = ('_rebuild_from_type', '_rebuild_from_type_v2')
_LISTS = ('int', 'double', 'bool', 'tensor')
_KNOWN = _known()
# Modules of a network: their tensors are read, so there is nothing to report.
_MODULES = ('torch.nn.', '__torch__')
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
      ignored: names that the pickle refers to and that are not known here, with their modules; at most 1,000.
    """

    def __init__(self, file: IO[bytes], max_steps: int):
        self.storages: dict[str, Storage] = {}
        self.ignored: dict[str, None] = {}
        self._file = file
        self._steps_left = max_steps
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stack below each mark
        self._memo: dict[int, Any] = {}  # a dict, since indices may be large

    def load(self) -> Any:
        """Reads the next object.

        Returns:
          Python containers and scalars, ``TensorRecord`` and ``Inert``; dicts have only their string keys.

        Raises:
          InputError: the pickle is damaged; the message does not name the file.
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
            self._stack.append(self._look_up(self._line(), self._line()))
        elif name == 'STACK_GLOBAL':
            attribute, module = self._pop(), self._pop()
            self._stack.append(self._look_up(module, attribute))
        elif name in ('REDUCE', 'NEWOBJ'):
            args, function = self._pop(), self._pop()
            self._stack.append(self._call(function, args))
        elif name == 'NEWOBJ_EX':
            _, args, function = self._pop(), self._pop(), self._pop()
            self._stack.append(self._call(function, args))
        elif name == 'INST':
            function = self._look_up(self._line(), self._line())
            args = tuple(self._since_mark())
            self._stack.append(self._call(function, args))
        elif name == 'OBJ':
            function, *items = self._since_mark() or [None]
            self._stack.append(self._call(function, tuple(items)))
        elif name == 'BUILD':
            state, made = self._pop(), self._stack[-1]
            if isinstance(made, Inert) and made is not INERT and isinstance(state, dict):
                made.content = state
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

    def _look_up(self, module: Any, name: Any) -> Any:
        """The meaning of a name; a stand-in if it is not known."""
        if type(module) is not str or type(name) is not str:
            raise damaged('a name in its pickle is not a string')
        module, name = module[:_LONGEST_NAME], name[:_LONGEST_NAME]
        known = _KNOWN.get(f'{module} {name}')
        if known is None and not module.startswith(_MODULES) and len(self.ignored) < _MOST_NAMES:
            self.ignored[printable(f'{module}.{name}')] = None
        return INERT if known is None else known

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(function, _Function | Inert) or not isinstance(args, tuple):
            raise damaged('its pickle calls something that is not a function')
        if isinstance(function, Inert):
            return Inert()
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

    def _storage(self, identity: Any) -> Storage | Inert:
        """Resolves ``('storage', class, key, device, elements[, view])`` or ``('module', class, file, source)``."""
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == 'module':
            return INERT
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != 'storage':
            raise damaged('a persistent id of its pickle is not the storage of a tensor')
        kind, key, _, numel = identity[1:5]
        if isinstance(kind, Inert):  # an unknown class of storages
            return INERT
        if not isinstance(kind, ElementType) or type(key) is not str or not is_count(numel):
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


def _extend(container: Any, items: list[Any]) -> None:
    if isinstance(container, list):
        container.extend(items)
    elif not isinstance(container, Inert):
        raise damaged('its pickle appends to something that is not a list')


def _update(container: Any, items: list[Any]) -> None:
    """Adds alternating keys and values to a dict or stand-in; keys other than strings are skipped."""
    if len(items) % 2 or not isinstance(container, dict | Inert):
        raise damaged('its pickle sets items of something that is not a dictionary, or without values')
    if container is INERT:
        return
    if isinstance(container, Inert):
        container.content = container = {} if container.content is None else container.content
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is str:  # hashing nested tuples can take forever, and numbers can be made to collide
            container[key] = value
