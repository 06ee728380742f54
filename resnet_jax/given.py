"""Names of user-supplied objects: a block class, an optimizer, a schedule, a loss, a task, an augmentation.

The record of a run cannot store such an object, so it stores ``MODULE:QUALNAME``. To resume the run or to load its
weights, the user passes the object again, and the name is compared with the recorded one.
"""

import functools
import pathlib
import re
import sys
import types
import zlib
from typing import Any

from resnet_jax.errors import InputError

_QUALIFIED = re.compile(r'[\w.]+:[\w.<>]+(\(.*\))?', re.DOTALL)


def qualified_name(value: Any) -> str:
    """The qualified name of a user-supplied object.

    Args:
      value: a class or function, named by itself; a ``functools.partial``, named by its function and bound arguments;
        an ``optax.GradientTransformation``, named by its ``init`` function and a checksum of its closure; any other
        object, named by its class, regardless of its attributes.

    Returns:
      ``MODULE:QUALNAME``, such as ``my_blocks:MyBlock`` or ``my_losses:margin(scale=2.0)``. Objects defined in
      ``__main__`` are named as if their file had been imported, so that another program can pass them again.
    """
    if isinstance(value, functools.partial):
        bound = [_argument(one) for one in value.args]
        bound += [f'{name}={_argument(one)}' for name, one in sorted(value.keywords.items())]
        return f'{qualified_name(value.func)}({", ".join(bound)})'
    if isinstance(value, tuple) and callable(init := getattr(value, 'init', None)) and hasattr(value, 'update'):
        return f'{qualified_name(init)}({_closure_checksum(value):08x})'
    named = value if isinstance(value, type) or hasattr(value, '__qualname__') else type(value)
    return f'{_module_of(named)}:{named.__qualname__}'


def _closure_checksum(value: Any, depth: int = 16) -> int:
    """A checksum of a function and everything it closes over, the same in every process.

    All chains of optax have the same name; the checksum distinguishes them.
    """
    if isinstance(value, types.FunctionType) and depth:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inner = (_closure_checksum(part, depth - 1) for part in (*cells, *(value.__defaults__ or ())))
        text = f'{value.__module__}.{value.__qualname__}{list(inner)}'
    elif isinstance(value, tuple | list) and depth:
        text = str([_closure_checksum(part, depth - 1) for part in value])
    elif isinstance(value, functools.partial) and depth:
        text = str(_closure_checksum((value.func, value.args, tuple(sorted(value.keywords.items()))), depth - 1))
    elif value is None or isinstance(value, str | bytes | int | float | complex):
        text = repr(value)
    else:
        text = type(value).__qualname__
    return zlib.crc32(text.encode())


def _argument(value: Any) -> str:
    """A bound argument as text, without memory addresses, which differ between processes."""
    plain = value is None or isinstance(value, str | bytes | int | float | complex)
    if isinstance(value, list | tuple) and not hasattr(value, 'init'):
        return f'[{", ".join(map(_argument, value))}]'
    return repr(value) if plain else qualified_name(value)


def _module_of(named: Any) -> str:
    module = getattr(named, '__module__', None) or 'builtins'
    main = sys.modules.get('__main__')
    if module != '__main__' or main is None:
        return module
    spec = getattr(main, '__spec__', None)  # python -m my.experiment
    if spec is not None:
        return spec.name
    file = getattr(main, '__file__', None)  # python my_experiment.py; a notebook has neither
    return pathlib.Path(file).stem if file else module


def is_qualified(recorded: Any) -> bool:
    """Whether a recorded string is a qualified name. Dataset names such as ``folder:DIR`` match, too."""
    return isinstance(recorded, str) and _QUALIFIED.fullmatch(recorded) is not None


def check_given(field: str, recorded: Any, value: Any, of: str = 'the run') -> None:
    """Checks that a user-supplied object is the recorded one.

    Args:
      field: name of the argument that takes it, such as ``block``.
      recorded: its qualified name, or the name of a built-in alternative.
      value: the object given now, or a name; None if nothing is given.
      of: what the record belongs to, for the message.

    Raises:
      InputError: the object is missing or another one.
    """
    needed = is_qualified(recorded)
    if value is None:
        if needed:
            path = recorded.partition('(')[0]
            # An object made within a function, such as optax's, has no name that the user could type.
            name = '…' if '<' in path else re.split(r'[.:]', path)[-1]
            raise InputError(f'{of} was trained with {field} {recorded}: pass {field}={name}')
        return
    given = value if isinstance(value, str) else qualified_name(value)
    if given != recorded:
        raise InputError(f'{of} was trained with {field} {recorded}, not with {given}')
