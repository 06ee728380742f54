"""Checks of single settings: each raises a one-line InputError that names the setting and the allowed values."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
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


def check_key(name: str, value: Any) -> None:
    """Raises InputError unless the value is one random key, new (``jax.random.key``) or old (uint32)."""
    dtype, shape = getattr(value, 'dtype', None), getattr(value, 'shape', None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        fits = shape == ()
    else:
        fits = dtype == np.uint32 and shape == jax.eval_shape(jax.random.PRNGKey, 0).shape
    if not fits:
        found = repr(value) if shape is None else f'{dtype}{list(shape)}'
        raise InputError(f'{name} must be one random key, such as jax.random.key(0), found {found}')


def check_image_shape(value: Any) -> tuple[int, int, int]:
    """Returns ``(H, W, C)`` as a tuple of ints; raises InputError unless it consists of three positive integers."""
    shape = as_sequence('image_shape', value)
    if len(shape) != 3 or not all(is_integer(size) and size >= 1 for size in shape):
        advice = ', without the batch axis' if len(shape) == 4 else ''
        raise InputError(f'image_shape={shape} must be (H, W, C), three positive integers{advice}')
    height, width, channels = map(int, shape)
    return height, width, channels


def check_dtype(name: str, value: Any) -> None:
    """Raises InputError unless the value is a floating-point dtype."""
    try:
        fits = value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f'{name}={value!r} must be a floating-point dtype, such as jnp.float32 or jnp.bfloat16')
