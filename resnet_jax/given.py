"""Names of user-supplied objects: a block class, an optimizer, a schedule, a loss, a task, an augmentation.

A record of a run cannot hold such a value; it holds ``MODULE:QUALNAME``. Whoever goes on with the run, or loads its
weights, gives the value again, and the name tells whether it is the same one.
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
      value: a class or a function, which go by their own names; a ``functools.partial``, by its function's with the
        arguments that it binds; an ``optax.GradientTransformation``, by that of its ``init`` and a checksum of what it
        was made of; anything else by its class, whatever its attributes are.

    Returns:
      ``MODULE:QUALNAME``, such as ``my_blocks:MyBlock`` or ``my_losses:margin(scale=2.0)``. What a program that runs as
      ``__main__`` defines is named as if it was imported, so that another program may give it again.
    """
    if isinstance(value, functools.partial):
        bound = [_argument(one) for one in value.args]
        bound += [f'{name}={_argument(one)}' for name, one in sorted(value.keywords.items())]
        return f'{qualified_name(value.func)}({", ".join(bound)})'
    if isinstance(value, tuple) and callable(init := getattr(value, 'init', None)) and hasattr(value, 'update'):
        return f'{qualified_name(init)}({_made_of(value):08x})'
    named = value if isinstance(value, type) or hasattr(value, '__qualname__') else type(value)
    return f'{_module_of(named)}:{named.__qualname__}'


def _made_of(value: Any, depth: int = 16) -> int:
    """A checksum of functions and what they close over, of which optax makes its transformations.

    All of optax's chains have one name; this tells them apart, the same in every process.
    """
    if isinstance(value, types.FunctionType) and depth:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inner = (_made_of(part, depth - 1) for part in (*cells, *(value.__defaults__ or ())))
        text = f'{value.__module__}.{value.__qualname__}{list(inner)}'
    elif isinstance(value, tuple | list) and depth:
        text = str([_made_of(part, depth - 1) for part in value])
    elif isinstance(value, functools.partial) and depth:
        text = str(_made_of((value.func, value.args, tuple(sorted(value.keywords.items()))), depth - 1))
    elif value is None or isinstance(value, str | bytes | int | float | complex):
        text = repr(value)
    else:
        text = type(value).__qualname__
    return zlib.crc32(text.encode())


def _argument(value: Any) -> str:
    """A bound argument; no address in memory, which is another one in each process."""
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
    """Whether an entry of a record stands for a value; of datasets ``folder:DIR`` looks the same."""
    return isinstance(recorded, str) and _QUALIFIED.fullmatch(recorded) is not None


def check_given(field: str, recorded: Any, value: Any, of: str = 'the run') -> None:
    """Raises InputError if a value is not the one that was recorded.

    Args:
      field: what it is, such as ``block``, by the name that it is given under.
      recorded: a qualified name, or what is chosen without a value.
      value: what is given now; None is nothing, and a string is a name.
      of: what the record is of, for the message.
    """
    needed = is_qualified(recorded)
    if value is None:
        if needed:
            path = recorded.partition('(')[0]
            # What a function made, such as optax's, has no name that could be typed.
            name = '…' if '<' in path else re.split(r'[.:]', path)[-1]
            raise InputError(f'{of} was trained with {field} {recorded}: give {field}={name}')
        return
    given = value if isinstance(value, str) else qualified_name(value)
    if given != recorded:
        raise InputError(f'{of} was trained with {field} {recorded}, not with {given}')
