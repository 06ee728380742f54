"""Preprocesses docstrings: documents settings from their metadata, links names, and shortens signatures."""

import dataclasses
import inspect
import pathlib
import re
from typing import Any

from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.typing import stringify_annotation

from resnet_jax.settings import Choice, Setting, Settings

API = pathlib.Path(__file__).parent.parent / 'api'
# Qualified names of the documented objects, by their last part.
NAMES = {
    name.rpartition('.')[2]: name
    for page in API.glob('*.md')
    for name in re.findall(r'^\.\. (?:auto|py:)\w+:: (\S+)$', page.read_text(), re.MULTILINE)
}
LITERAL = re.compile(r'``(\w+)``')
SPECIAL = re.compile(r'([\\*`|])')
# A default that is a dataclass, up to its opening parenthesis.
DEFAULT = re.compile(r'= [A-Z]\w*\((?=\w+=)')
FUNCTION = re.compile(r"<(?:function|class) '?(?:\w+\.)*(\w+)[^>]*>")
# What a type, default or object that was not shortened leaves in the text.
GARBLED = re.compile(r'~\w|<\w| at 0x|\b_src\b')


def prepare(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Documents the settings that a class defines; stops napoleon from reading prose before a colon as a type."""
    lines[:] = [':returns:' if line == 'Returns:' else LITERAL.sub(linked, line) for line in lines]
    if what in ('attribute', 'property'):
        lines[:0] = ['..', '']  # napoleon reads text before a colon in the first line as a type
    if what == 'class':
        lines[:0] = bases_of(obj)
    if what == 'class' and issubclass(obj, Settings) and dataclasses.is_dataclass(obj):
        own = [field for field in dataclasses.fields(obj) if field.name in vars(obj).get('__annotations__', {})]
        rows = [f'  {field.name}: {described(field)}' for field in own]
        lines += ['', 'Settings:', *rows, ''] if rows else []


def described(field: Any) -> str:
    """One line on a setting: help, unit, allowed values and default."""
    about, default = field.metadata.get('setting'), field.default
    if isinstance(about, Choice):
        names = (f'{key} (:class:`~{one.__module__}.{one.__qualname__}`)' for key, one in about.alternatives.items())
        return f'{escaped(about.help)} {", ".join(names)}.'
    if not isinstance(about, Setting):
        inner = getattr(about, 'kind', None)
        return f':class:`~{inner.__module__}.{inner.__qualname__}`.' if inner else 'For the record.'
    parts = [escaped(about.help.rstrip('.')) + (f', in {about.unit}' if about.unit else '')]
    bounds = {'at least': about.at_least, 'above': about.above, 'at most': about.at_most, 'below': about.below}
    words = [f'{word} {bound:,}' for word, bound in bounds.items() if bound is not None]
    if about.choices:
        parts.append('One of ' + ', '.join(f'``{choice!r}``' for choice in about.choices))
    elif words:
        parts.append(' and '.join(words).capitalize())
    if default is not dataclasses.MISSING:
        parts.append(f'Default: ``{default!r}``' + (f' ({escaped(about.none)})' if default is None else ''))
    return '. '.join(parts) + '.'


def escaped(text: str) -> str:
    """Escapes plain text for reStructuredText."""
    return SPECIAL.sub(r'\\\1', text)


def signature_of(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None):
    """Removes Flax's ``parent`` and ``name`` from a signature and shortens default values."""
    if signature is None:
        return None
    if what == 'class' and issubclass(obj, Settings) and dataclasses.is_dataclass(obj):
        return '(' + ', '.join(map(parameter, dataclasses.fields(obj))) + ')', None
    signature = shortened(signature)
    signature = re.sub(r', parent: .*?, name: str \| None = None', '', signature)
    return FUNCTION.sub(r'\1', signature).replace('<factory>', '...'), returns


def shortened(signature: str) -> str:
    """Replaces the arguments of defaults that are dataclasses by an ellipsis."""
    position = 0
    while found := DEFAULT.search(signature, position):
        depth, end = 1, found.end()
        while depth:
            depth += {'(': 1, ')': -1}.get(signature[end], 0)
            end += 1
        position = found.end() + len('...)')
        signature = signature[: found.end()] + '...)' + signature[end:]
    return signature


def is_garbled(signature: str) -> bool:
    """Whether a signature contains an address or an internal name, or parentheses that do not match."""
    return bool(GARBLED.search(signature)) or any(signature.count(a) != signature.count(b) for a, b in ('()', '[]'))


def check_signatures(app: Any, doctree: Any) -> None:
    """Warns about signatures that do not read as Python, so that the build fails with ``-W``."""
    for node in doctree.findall(addnodes.desc_signature):
        if is_garbled(node.astext()):
            logging.getLogger(__name__).warning('garbled signature: %s', node.astext(), location=node)


def linked(literal: re.Match[str]) -> str:
    """Turns a literal into a link if the API reference documents that name."""
    name = NAMES.get(literal[1])
    return f':py:obj:`~{name}`' if name else literal[0]


def own_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skips methods that other packages add to a class."""
    return None if getattr(obj, '__module__', 'resnet_jax').startswith('resnet_jax') else True


def bases_of(kind: type) -> list[str]:
    """A line that lists the public base classes, empty if there are none."""
    public = [one for base in kind.__bases__ for one in (base.__bases__ if base.__name__[0] == '_' else (base,))]
    shown = [f':class:`~{base.__module__}.{base.__qualname__}`' for base in public if base is not object]
    return [f'Bases: {", ".join(shown)}', ''] if shown else []


def parameter(field: Any) -> str:
    """A field of a settings dataclass as a parameter; the default of a group is shortened."""
    text, default = f'{field.name}: {stringify_annotation(field.type, "smart")}', field.default
    if default is dataclasses.MISSING:
        return text
    if isinstance(default, Settings):
        return f'{text} = {type(default).__name__}()'
    if inspect.isfunction(default):
        return f'{text} = {default.__module__.partition(".")[0]}.{default.__name__}'
    return f'{text} = {default!r}'


def setup(app: Any) -> dict[str, bool]:
    """Registers the extension."""
    app.connect('autodoc-process-docstring', prepare, priority=400)  # before napoleon
    app.connect('autodoc-process-signature', signature_of)
    app.connect('autodoc-skip-member', own_member)
    app.connect('doctree-read', check_signatures)
    return {'parallel_read_safe': True}
