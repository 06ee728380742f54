"""Tensors in PyTorch files, described by storage, offset, shape and strides, and checked against the storage's size."""

import dataclasses
import math
from typing import Any

import numpy as np

from resnet_jax.errors import InputError

MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**47  # far beyond any memory, far below overflow in NumPy
_MAX_REPEATED = 2**28  # elements of a tensor with more elements than its storage: 1 GiB, far beyond any layer


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
    """A tensor as a view within the bounds of a storage; elements may overlap, as after ``expand``.

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


@dataclasses.dataclass(frozen=True)
class ElementType:
    """A class of storages, or a ``torch.dtype``."""

    dtype: str


# Names of storage classes without ``Storage``, and their dtypes.
STORAGES = {
    **{'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16'},
    **{'Long': 'int64', 'Int': 'int32', 'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8', 'Bool': 'bool'},
    **{'ComplexDouble': 'complex128', 'ComplexFloat': 'complex64', 'Untyped': 'uint8'},
}
_WITHOUT_STORAGES = ('uint16', 'uint32', 'uint64')
ITEM_SIZES = {'bfloat16': 2} | {
    name: np.dtype(name).itemsize for name in (*STORAGES.values(), *_WITHOUT_STORAGES) if name != 'bfloat16'
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
    return all(map(is_count, value)) and math.prod(max(size, 1) for size in value) <= MAX_ELEMENTS


def is_count(value: Any) -> bool:
    """Whether a value is a number of elements within the limits of this module."""
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


class Inert:
    """Stand-in for an object that is not a tensor, a container or a number: a class, a function, or what it returns.

    Nothing is imported for it, and calling it gives another stand-in.

    Attributes:
      content: the attributes and items that the pickle gives the object, by name; None if there are none.
    """

    __slots__ = ('content',)

    def __init__(self) -> None:
        self.content: dict[str, Any] | None = None


INERT = Inert()  # of the names that are known and ignored; without content


def rebuild_tensor(args: tuple[Any, ...]) -> TensorRecord | Inert:
    """Rebuilds a tensor from ``(storage, offset, shape, strides)``."""
    if args and isinstance(args[0], Inert):  # a storage of unknown dtype
        return INERT
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise damaged('a tensor has no storage, offset or shape')
    return _view(args, args[0].dtype)


def rebuild_tensor_v2(args: tuple[Any, ...]) -> TensorRecord | Inert:
    """Rebuilds a tensor from ``(storage, offset, shape, strides, requires_grad, hooks[, metadata])``."""
    if len(args) > 6 and args[6] is not None and args[6] != {}:
        raise InputError('has a conjugated or negated view, which is not supported')
    return rebuild_tensor(args)


def rebuild_tensor_v3(args: tuple[Any, ...]) -> TensorRecord | Inert:
    """As ``rebuild_tensor_v2``, with a dtype before the metadata, for dtypes without a storage class."""
    if len(args) > 6 and isinstance(args[6], Inert):  # an unknown dtype
        return INERT
    if len(args) < 7 or not isinstance(args[6], ElementType):
        raise damaged('a tensor has no dtype')
    found = rebuild_tensor_v2(args[:6] + args[7:])
    return found if isinstance(found, Inert) else _view(args, args[6].dtype)


def first_argument(args: tuple[Any, ...]) -> Any:
    """Rebuilds a parameter as its tensor, a ``torch.Size`` as its tuple, and an annotated container as itself."""
    return args[0] if args and isinstance(args[0], TensorRecord | tuple | list | dict) else INERT


def _view(args: tuple[Any, ...], dtype: str) -> TensorRecord:
    """Makes a record after checking that all elements are within the storage."""
    storage, offset, shape, strides = args[:4]
    if not is_count(offset) or not is_shape(shape):
        raise damaged('a tensor has an invalid offset or shape')
    if not isinstance(strides, tuple) or len(strides) != len(shape) or not all(map(is_count, strides)):
        raise damaged(f'a tensor of shape {shape} has invalid strides')
    numel = storage.numel * ITEM_SIZES[storage.dtype] // ITEM_SIZES[dtype]
    last = sum(stride * (size - 1) for stride, size in zip(strides, shape, strict=True))
    if offset + (0 if 0 in shape else last + 1) > numel:
        raise damaged(f'a tensor of shape {shape} extends beyond its storage of {numel} elements')
    if math.prod(shape) > max(numel, _MAX_REPEATED):
        raise InputError(f'is refused: a tensor of shape {shape} repeats the {numel} elements of its storage')
    return TensorRecord(storage, dtype, offset, shape, strides)
