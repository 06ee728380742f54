"""Settings: fields of frozen dataclasses that carry their help text, unit and allowed values.

A configuration is a tree of such dataclasses. Three kinds of fields make the tree: a group, an optional group (which is
switched on by its only field without a default), and a choice between alternatives, each with its own settings. All
other fields are settings. Their names are unique within a configuration, so ``replace`` finds a setting by its name
alone, and command-line flags are generated from ``all_settings``.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from resnet_jax.errors import InputError, nearest
from resnet_jax.given import is_qualified, qualified_name


@dataclasses.dataclass(frozen=True)
class Setting:
    """Metadata of a setting, in addition to the field's type and default.

    Attributes:
      help: one or two sentences for ``--help``.
      none: what None means, in a few words.
      unit: unit of a number, such as ``epochs``.
      choices: the allowed strings.
      at_least: the smallest allowed value.
      above: an exclusive lower bound.
      at_most: the largest allowed value.
      below: an exclusive upper bound.
      off: the string that means None on the command line.
      parse: converts a flag's string to the value if the type alone is not enough; raises InputError.
      by_value: whether the user may also pass a function, class or instance.
    """

    help: str
    none: str = ''
    unit: str = ''
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    off: str | None = None
    parse: Callable[[str], Any] | None = None
    by_value: bool = False


@dataclasses.dataclass(frozen=True)
class _Group:
    """Metadata of a field that holds a nested dataclass of settings, ``kind``."""

    kind: type


@dataclasses.dataclass(frozen=True)
class Choice:
    """Metadata of a field that holds one of several dataclasses of settings, or a user-supplied object.

    Attributes:
      help: as in ``Setting``.
      alternatives: the dataclasses by name.
      from_value: converts a user-supplied object, or a name that is not one of the alternatives, to the field's value;
        returns None for an unknown name.
    """

    help: str
    alternatives: Mapping[str, type]
    from_value: Callable[[Any], Any]

    def name_of(self, value: Any) -> str:
        """The name of an alternative, or the qualified name of a user-supplied object."""
        known = (name for name, kind in self.alternatives.items() if type(value) is kind)
        return next(known, None) or getattr(value, 'name', None) or qualified_name(value)


def setting(default: Any = dataclasses.MISSING, help: str = '', **options: Any) -> Any:
    """Declares a field that is a setting; ``options`` are the attributes of ``Setting``."""
    return dataclasses.field(default=default, metadata={'setting': Setting(help, **options)})


def group(kind: type, default: Any) -> Any:
    """Declares a field that is a group of settings, or with the default None an optional group."""
    return dataclasses.field(default=default, metadata={'setting': _Group(kind)})


def choice(default: Any, help: str, alternatives: Mapping[str, type], **options: Any) -> Any:
    """Declares a field that holds one of several groups; ``options`` are the attributes of ``Choice``."""
    return dataclasses.field(default=default, metadata={'setting': Choice(help, alternatives, **options)})


class Settings:
    """Base class of dataclasses whose fields are settings, groups and choices."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = as_tuple(getattr(self, field.name))  # JSON has lists, NumPy has its own scalars
            about = field.metadata.get('setting')
            if isinstance(about, Setting):
                kind = type_of(type(self), field.name)
                if value is None and not takes_none(type(self), field.name):
                    raise InputError(f'{field.name}=None must be {expected(about, kind)}')
                check(field.name, value, about, kind)
            elif isinstance(about, _Group) and not isinstance(value, _types_of(about, field.default)):
                raise InputError(f'{field.name}={value!r} must be of the class {about.kind.__name__}')
            elif isinstance(about, Choice):
                value = _resolve_choice(field.name, about, value, None)
            object.__setattr__(self, field.name, value)
        self.check_together()

    def check_together(self) -> None:
        """Raises InputError for values that exclude each other or have no effect."""

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some settings replaced, at any depth of the tree.

        Args:
          **changes: new values by setting name. A choice takes the name of an alternative, or an object. The name of a
            group's field replaces the whole group: ``averaging=Averaging(0.99)``.

        Returns:
          The new configuration.

        Raises:
          InputError: an unknown name, a value that is not allowed, or one that has no effect.
        """
        changed, left = _apply_changes(self, dict(changes))
        known = all_settings(type(self))
        for name, value in left.items():
            if name not in known:
                raise InputError(f'unknown setting {name!r}; {nearest(name, known)}')
            raise InputError(f'{name}={value!r} has no effect without {_join_owners(known[name].owners)}')
        return changed

    def to_json(self) -> dict[str, Any]:
        """The tree as nested dicts; user-supplied objects are represented by their qualified names."""
        record: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, about = getattr(self, field.name), field.metadata.get('setting')
            if isinstance(about, Choice):
                inner = value.to_json() if isinstance(value, Settings) else {}
                record[field.name] = {'name': about.name_of(value), **inner}
            elif isinstance(value, Settings):
                record[field.name] = value.to_json()
            else:
                record[field.name] = _json_value(value)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``, for configurations without user-supplied objects.

        Args:
          record: nested dicts from ``to_json``.

        Returns:
          The configuration.

        Raises:
          InputError: a missing or unknown field, a value that is not allowed, or a user-supplied object.
        """
        values: dict[str, Any] = {}
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if odd := fields.keys() ^ record.keys():
            raise InputError(f'{cls.__name__}: {sorted(odd)[0]} is missing or unknown')
        for name, field in fields.items():
            value, about = record[name], field.metadata.get('setting')
            if isinstance(about, Choice) and value['name'] in about.alternatives:
                inner = {key: part for key, part in value.items() if key != 'name'}
                values[name] = about.alternatives[value['name']].from_json(inner)  # type: ignore[attr-defined]
            elif isinstance(about, Choice):
                values[name] = _from_record(name, about, value)
            elif isinstance(about, _Group) and value is not None:
                values[name] = about.kind.from_json(value)  # type: ignore[attr-defined]
            elif isinstance(about, Setting) and about.by_value and is_qualified(value):
                raise InputError(f'{name} was user-supplied and cannot be restored from a record: {value}')
            else:
                values[name] = value
        return cls(**values)


def _from_record(name: str, about: Choice, record: Mapping[str, Any]) -> Any:
    """Restores a choice that is not one of the alternatives from its record."""
    value = about.from_value(record['name'])
    if value is None:
        raise InputError(f'{name} was user-supplied and cannot be restored from a record: {record["name"]}')
    names = {field.name for field in dataclasses.fields(value) if 'setting' in field.metadata}
    return dataclasses.replace(value, **{key: part for key, part in record.items() if key in names})


def _join_owners(owners: Sequence[str]) -> str:
    """Owners as text; a choice is named only once: ``optimizer=sgd, lars or muon``."""
    first, *others = owners
    names = [first, *(other.partition('=')[2] or other for other in others)]
    return names[0] if len(names) == 1 else f'{", ".join(names[:-1])} or {names[-1]}'


def _apply_changes(node: Settings, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Applies changes to a node; returns the new node and the changes that match none of its settings."""
    new: dict[str, Any] = {}
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        value, about = getattr(node, field.name), field.metadata.get('setting')
        if isinstance(about, Choice) and field.name in changes:
            value = _resolve_choice(field.name, about, changes.pop(field.name), value)
        elif isinstance(about, _Group) and isinstance(changes.get(field.name, ...), _types_of(about, field.default)):
            value = changes.pop(field.name)
        elif isinstance(about, _Group) and field.default is None:
            value = _toggle_group(about.kind, value, changes)
        elif field.name in changes and not isinstance(about, _Group):
            value = changes.pop(field.name)
        if isinstance(value, Settings):
            value, changes = _apply_changes(value, changes)
        new[field.name] = value
    return dataclasses.replace(node, **new), changes  # type: ignore[type-var]


def _resolve_choice(name: str, about: Choice, asked: Any, now: Any) -> Any:
    """The value of a choice for a name or an object; the name of the current alternative keeps its settings."""
    if isinstance(asked, str) and asked in about.alternatives:
        kind = about.alternatives[asked]
        return now if type(now) is kind else kind()
    known = isinstance(asked, tuple(about.alternatives.values()))
    # The class itself could be called, like a function of the caller, but returns something else.
    is_class = isinstance(asked, type) and issubclass(asked, Settings)
    value = asked if known else None if is_class else about.from_value(asked)
    if value is None:
        raise InputError(f'{name}={asked!r} must be one of {", ".join(about.alternatives)}')
    return value


def _types_of(about: _Group, default: Any) -> tuple[type, ...]:
    """Types that can replace a whole group."""
    return (about.kind, type(None)) if default is None else (about.kind,)


def _toggle_group(kind: type, value: Any, changes: dict[str, Any]) -> Any:
    """The value of an optional group after a change of its switch."""
    switch = switch_of(kind)
    if switch not in changes or isinstance(changes[switch], kind):
        return value
    if not changes[switch]:  # None, 0, empty
        changes.pop(switch)
        return None
    return kind(**{switch: changes[switch]}) if value is None else value


def switch_of(kind: type) -> str:
    """The name of an optional group's only field without a default, which switches it on."""
    (name,) = (field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING)
    return name


@dataclasses.dataclass(frozen=True)
class Known:
    """A setting that a configuration class can have.

    Attributes:
      about: the setting's metadata.
      type: type of its values.
      default: default in the first group that has the setting; None if it switches on a group.
      owners: the conditions under which the setting exists, as text; empty if it always does.
    """

    about: Setting | Choice
    type: Any
    default: Any
    owners: tuple[str, ...]


def all_settings(kind: type) -> dict[str, Known]:
    """Every setting that a configuration of the class ``kind`` can have, by name, in the order of the fields."""
    found: dict[str, Known] = {}
    for name, known in _walk(kind, None):
        if name in found:
            known = dataclasses.replace(found[name], owners=tuple(dict.fromkeys(found[name].owners + known.owners)))
        found[name] = known
    return found


def _walk(kind: type, owner: str | None) -> Iterator[tuple[str, Known]]:
    owners = () if owner is None else (owner,)
    for field in dataclasses.fields(kind):
        about = field.metadata.get('setting')
        if isinstance(about, _Group):
            optional = field.default is None
            switch = switch_of(about.kind) if optional else None
            for name, known in _walk(about.kind, switch or owner):
                if name == switch:
                    known = dataclasses.replace(known, default=None, owners=owners)
                yield name, known
        elif isinstance(about, Choice):
            yield field.name, Known(about, str, None, owners)
            for name, alternative in about.alternatives.items():
                yield from _walk(alternative, f'{field.name}={name}')
        elif about is not None:
            yield field.name, Known(about, type_of(kind, field.name), field.default, owners)


def values_of(node: Settings) -> dict[str, Any]:
    """The values of all settings of a configuration, by name; a choice has the name of its alternative."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        value, about = getattr(node, field.name), field.metadata.get('setting')
        if isinstance(about, Choice):
            found[field.name] = about.name_of(value)
        if isinstance(value, Settings):
            found |= values_of(value)
        elif isinstance(about, Setting):
            found[field.name] = value
    return found


def as_tuple(value: Any) -> Any:
    """Converts lists and NumPy arrays to tuples, recursively, and NumPy scalars to Python's."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) and not hasattr(value, '_fields') else value


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_value(part) for part in value]
    return value if value is None or isinstance(value, _PLAIN) else qualified_name(value)


_PLAIN = (bool, int, float, str, tuple)
_KINDS = {int: 'an integer', float: 'a number', str: 'a string', bool: 'True or False'}
_HINTS: dict[type, dict[str, Any]] = {}


def _hint(kind: type, name: str) -> Any:
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind][name]


def takes_none(kind: type, name: str) -> bool:
    """Whether a field may be None."""
    hint = _hint(kind, name)
    return hint in (Any, object) or type(None) in typing.get_args(hint)


def type_of(kind: type, name: str) -> Any:
    """The type of a field, as ``check`` and flags use it: without None, and ``tuple`` for tuples of any length."""
    hint = _hint(kind, name)
    if isinstance(hint, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        hint = parts[0] if len(parts) == 1 else object
    hint = typing.get_origin(hint) or hint
    return hint if hint in _PLAIN else object


def check(name: str, value: Any, about: Setting, kind: Any) -> None:
    """Raises InputError for a value of the wrong type or out of bounds; None is left to ``takes_none``."""
    if value is None or (about.by_value and not isinstance(value, _PLAIN)):
        return
    accepted = {float: int | float, object: object}.get(kind, kind)
    odd = isinstance(value, bool) and kind in (int, float)
    if about.choices:
        odd = value not in about.choices
    elif about.by_value or not isinstance(value, accepted):
        odd = True
    if odd:
        raise InputError(f'{name}={value!r} must be {expected(about, kind)}')
    # A sequence without a parser of its own consists of numbers, as for flags.
    if kind is tuple and about.parse is None and not all(type(number) in (int, float) for number in value):
        raise InputError(f'{name}={value!r} must be a sequence of numbers')
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float):
            _check_number(name, value, number, about)


def expected(about: Setting, kind: Any) -> str:
    """The allowed values of a setting, as text."""
    if about.choices:
        return f'one of {", ".join(about.choices)}'
    if about.by_value:
        return 'a function'
    return _KINDS.get(kind, 'a sequence')


def _check_number(name: str, value: Any, number: float, about: Setting) -> None:
    if not math.isfinite(number):
        raise InputError(f'{name}={value} must be finite')
    low, high = about.at_least, about.at_most
    inside = (low is None or number >= low) and (about.above is None or number > about.above)
    inside &= (high is None or number <= high) and (about.below is None or number < about.below)
    if inside:
        return
    if low is not None and (about.below is not None or high is not None):
        end = f'{about.below})' if high is None else f'{high}]'
        raise InputError(f'{name}={value} must be in [{low}, {end}')
    bounds = {'at least': low, 'above': about.above, 'at most': high, 'less than': about.below}
    words = ' and '.join(f'{word} {bound}' for word, bound in bounds.items() if bound is not None)
    raise InputError(f'{name}={value} must be {words}')
