"""Checks of single settings: each raises an InputError of one line that names the setting and what it may be."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from resnet_jax.errors import InputError


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """The value must be one of the known ones."""
    if value not in list(known):
        raise InputError(f'unknown {name} {value!r}; known: {", ".join(known)}')


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or NumPy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def whole_number(name: str, value: Any) -> int:
    """The value, which must be an integer of at least 1."""
    if not is_whole(value):
        raise InputError(f'{name}={value!r} must be a whole number')
    if value < 1:
        raise InputError(f'{name}={value} must be at least 1')
    return int(value)


def check_number(name: str, value: Any) -> None:
    """The value must be a number of any kind."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InputError(f'{name}={value!r} must be a number')


def check_rate(name: str, value: Any) -> None:
    """The value must be a probability, less than 1."""
    check_number(name, value)
    if not 0 <= value < 1:
        raise InputError(f'{name}={value} must be at least 0 and less than 1')


def check_like(name: str, value: Any, default: Any) -> None:
    """The value must be of its default's type."""
    if isinstance(default, bool) and not isinstance(value, bool):
        raise InputError(f'{name}={value!r} must be True or False')
    if is_whole(default) and not is_whole(value):
        raise InputError(f'{name}={value!r} must be a whole number')
    if isinstance(default, float):
        check_number(name, value)


def as_sequence(name: str, value: Any) -> tuple[Any, ...]:
    """A setting that holds several values, as a tuple; InputError where it holds one."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f'{name}={value!r} must be a sequence')
    return tuple(value)
