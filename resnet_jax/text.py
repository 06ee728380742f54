r"""Names from outside as text.

Names of classes, files, folders and datasets may hold any characters, also control characters, and any bytes: Python
represents bytes that are not UTF-8 as surrogates (``os.fsdecode``), which no encoding can write. JSON files hold such
names unchanged, since ``json.dumps`` escapes them. Everything else that shows or stores a name uses these functions.
They write a byte that is not UTF-8 as ``\xe9`` and a character as ``\x1b``, ``\u202e`` or ``\U000e0001``.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable

_ESCAPE = re.compile(r'\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})')
# Joiners, which several scripts and emoji need, and the space of CJK text, which str.isprintable rejects.
_ALSO_PRINTABLE = '\u200c\u200d\u3000'


def printable(line: str) -> str:
    """Escapes what a terminal could not show or would obey: surrogates, control characters, marks that reorder text."""
    return line if line.isprintable() else _replaced(line, _is_unprintable)


def print_lines(text: str) -> None:
    """Prints lines to stdout at once, with escapes for unprintable characters and for those that its encoding lacks."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    lines = '\n'.join(map(printable, text.split('\n')))
    print(lines.encode(encoding, 'backslashreplace').decode(encoding), flush=True)


def shown(name: str) -> str:
    r"""A name as one printable line; different names remain different.

    Spaces at the ends are escaped as well, and ``\`` is if the name contains what looks like an escape.
    """
    inner = name.strip(' ')
    start = len(name) - len(name.lstrip(' ')) if inner else len(name)
    ends = (r'\x20' * start, r'\x20' * (len(name) - start - len(inner)))
    return printable(_without_escapes(inner)).join(ends)


def storable(name: str) -> str:
    r"""A name that can be encoded: only surrogates, and ``\`` where it would be taken for an escape, are escaped.

    ``unescaped`` returns the name.
    """
    return _replaced(_without_escapes(name), _is_surrogate)


def unescaped(text: str) -> str:
    """The name that ``shown`` or ``storable`` returned as a text."""
    return _ESCAPE.sub(lambda found: _character(found[1][0], int(found[1][1:], 16)), text)


def distinct(texts: Iterable[str]) -> list[str]:
    """Adds a number to texts that equal an earlier one: ``cat``, ``cat (2)``."""
    texts = list(texts)
    found: dict[str, None] = {}
    for text in texts:
        candidate, number = text, 1
        while candidate in found or (number > 1 and candidate in texts):
            number += 1
            candidate = f'{text} ({number})'
        found[candidate] = None
    return list(found)


def shortened(text: str, length: int) -> str:
    """Cuts the middle of a text out if it is longer than ``length`` characters."""
    return text if len(text) <= length else f'{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}'


def without_folders(source: str) -> str:
    """The name of a dataset, run or file without the folders that it is in: ``folder:cats`` of ``folder:/a/cats``."""
    kind, colon, path = source.partition(':') if re.match(r'\w{2,}:', source) else ('', '', source)
    if kind == 'hf' or not re.search(r'[/\\]|^(~|\.+)$', path):
        return source
    return kind + colon + os.path.basename(os.path.abspath(os.path.expanduser(path)))


def _without_escapes(name: str) -> str:
    return _ESCAPE.sub(r'\\x5c\1', name)


def _replaced(text: str, is_replaced: Callable[[str], bool]) -> str:
    return ''.join(escape(character) if is_replaced(character) else character for character in text)


def _is_unprintable(character: str) -> bool:
    return not (character.isprintable() or character in _ALSO_PRINTABLE)


def _is_surrogate(character: str) -> bool:
    return '\ud800' <= character <= '\udfff'


def escape(character: str) -> str:
    r"""A character as an escape; ``\xe9`` is a byte, so characters from 128 have four or eight digits."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as os.fsdecode represents it
        return f'\\x{code - 0xDC00:02x}'
    return f'\\x{code:02x}' if code < 0x80 else f'\\u{code:04x}' if code < 0x10000 else f'\\U{code:08x}'


def _character(kind: str, code: int) -> str:
    return chr(0xDC00 + code if kind == 'x' and code >= 0x80 else code)
