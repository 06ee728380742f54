"""Errors that end a script with one line instead of a traceback, and what their messages share."""

import difflib
import textwrap
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what the user gave: a name, a path, a value.

    The message is one line that names the value and what is allowed; the experiment scripts print it and exit with
    status 2.
    """


class DivergenceError(RuntimeError):
    """Training cannot go on because the loss is not finite; the message says where and what is left."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a run, in good order; the message says what was saved.

    Attributes:
      signal: its number.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class StorageError(RuntimeError):
    """A file cannot be written, or read for a reason that lies in the machine; what was written before is whole.

    The message is one line that names the path, the system's reason and what is left.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant by an unknown name, as a part of a message.

    Args:
      name: as the user gave it, in any case.
      known: the names there are.

    Returns:
      ``nearest known: a, b`` with at most five of them, or ``known: a, b, c …`` where none is near.
    """
    by_lower = {one.lower(): one for one in known}
    near = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.5)]
    if near:
        return f'nearest known: {", ".join(near)}'
    return f'known: {textwrap.shorten(", ".join(by_lower.values()), 200, placeholder=" …")}'
