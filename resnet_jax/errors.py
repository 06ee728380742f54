"""Errors that end a script with one line instead of a traceback, and helpers for their messages."""

import difflib
import textwrap
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Invalid user input: a name, a path or a value.

    The message is one line that names the value and what is allowed; the experiment scripts print it and exit with
    status 2.
    """


class DivergenceError(RuntimeError):
    """Training stopped because the loss is not finite; the message says at which step and what was saved."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped a run, which shut down cleanly; the message says what was saved.

    Attributes:
      signal: the signal's number.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class StorageError(RuntimeError):
    """A file could not be written, or could not be read for lack of system resources; earlier files are intact.

    The message is one line that names the path, the system's reason and what is still usable.
    """


def nearest(name: Any, known: Iterable[str]) -> str:
    """Suggests known names similar to an unknown one, as part of an error message.

    Args:
      name: the name that the user gave, a string or anything else; upper and lower case are the same.
      known: all known names.

    Returns:
      ``nearest known: a, b`` with at most five names, or ``known: a, b, c …`` if none is similar.
    """
    by_lower = {one.lower(): one for one in known}
    near = [by_lower[one] for one in difflib.get_close_matches(str(name).lower(), by_lower, n=5, cutoff=0.5)]
    if near:
        return f'nearest known: {", ".join(near)}'
    return f'known: {textwrap.shorten(", ".join(by_lower.values()), 200, placeholder=" …")}'


def some(names: Iterable[str], most: int = 3) -> str:
    """Lists the first few of many names, as part of a message.

    Args:
      names: the names, in the order of their importance.
      most: number of names to list.

    Returns:
      ``a, b, c and 12 more``, or all of them if there is at most one more.
    """
    listed = list(names)
    if len(listed) > most + 1:
        listed[most - 1 :] = [f'{listed[most - 1]} and {len(listed) - most:,} more']
    return ', '.join(listed)
