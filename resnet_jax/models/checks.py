"""Checks of single settings: each raises a one-line InputError that names the setting and the allowed values."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from resnet_jax.errors import InputError


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raises InputError unless the value is one of the known ones."""
    if value not in list(known):
        raise InputError(f'unknown {name} {value!r}; known: {", ".join(known)}')


def is_integer(value: Any) -> bool:
    """Whether a value is a Python or NumPy integer; a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def positive_integer(name: str, value: Any) -> int:
    """Returns the value as an int; raises InputError unless it is an integer of at least 1."""
    if not is_integer(value):
        raise InputError(f'{name}={value!r} must be an integer')
    if value < 1:
        raise InputError(f'{name}={value} must be at least 1')
    return int(value)


def check_number(name: str, value: Any) -> None:
    """Raises InputError unless the value is a number, integer or floating-point."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InputError(f'{name}={value!r} must be a number')


def check_rate(name: str, value: Any) -> None:
    """Raises InputError unless the value is a number in [0, 1)."""
    check_number(name, value)
    if not 0 <= value < 1:
        raise InputError(f'{name}={value} must be at least 0 and less than 1')


def check_like(name: str, value: Any, default: Any) -> None:
    """Raises InputError unless the value has the type of the default; an int is accepted for a float."""
    if isinstance(default, bool) and not isinstance(value, bool):
        raise InputError(f'{name}={value!r} must be True or False')
    if is_integer(default) and not is_integer(value):
        raise InputError(f'{name}={value!r} must be an integer')
    if isinstance(default, float):
        check_number(name, value)


def as_sequence(name: str, value: Any) -> tuple[Any, ...]:
    """Returns the values of a setting as a tuple; raises InputError if the setting is a single value."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f'{name}={value!r} must be a sequence')
    return tuple(value)
