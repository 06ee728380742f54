"""Preprocesses docstrings: documents settings from their metadata, links names, and shortens signatures."""

import dataclasses
import pathlib
import re
from typing import Any

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
    signature = re.sub(r'(= [A-Z]\w*)\(\w+=.*?\)(?=[,)])', r'\1(...)', signature)
    signature = re.sub(r', parent: .*?, name: str \| None = None', '', signature)
    return re.sub(r"<(?:function|class) '?(?:\w+\.)*(\w+)[^>]*>", r'\1', signature).replace('<factory>', '...'), returns


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
    kind = getattr(field.type, '__name__', None) if isinstance(field.type, type) else None
    text = f'{field.name}: {kind or str(field.type).replace("typing.", "")}'
    if field.default is dataclasses.MISSING:
        return text
    shown = f'{type(field.default).__name__}()' if isinstance(field.default, Settings) else repr(field.default)
    return f'{text} = {shown}'


def setup(app: Any) -> dict[str, bool]:
    """Registers the extension."""
    app.connect('autodoc-process-docstring', prepare, priority=400)  # before napoleon
    app.connect('autodoc-process-signature', signature_of)
    app.connect('autodoc-skip-member', own_member)
    return {'parallel_read_safe': True}
