"""Finds a network's variables among the tensors of a file, and converts them.

Files of trainers hold more than one network's tensors: queues, projectors, teachers, averages. All names of a network
begin with the same prefix, such as ``state_dict.module.encoder_q.``, so the network is what is complete under one.
"""

import collections
import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError, some
from resnet_jax.models.flat import with_changes
from resnet_jax.models.resnet import ResNet, new_head, variable_shapes
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.weights.names import (
    HEAD,
    HEADS,
    namings,
    paths_of,
    torch_shape,
    without_bit_names,
    without_collection,
)

_FIRST_KERNELS = ('params/stem/conv/kernel', 'params/stem/conv1/kernel')
_UNUSED = 'num_batches_tracked'  # PyTorch's counters of batches


@dataclasses.dataclass(frozen=True)
class Match:
    """The tensors of a network among those of a file.

    Attributes:
      tensors: the tensors by our paths, including collections; without the head if the file has no fitting one. Tensors
        in our layout have our order of axes, others PyTorch's.
      our_layout: whether the tensors are in our layout.
      head_beside: the module of the head if it is outside of the network's prefix; else empty.
      old_head: names of the tensors of a head that does not fit.
      left_over: names of all other tensors.
    """

    tensors: dict[str, Any]
    our_layout: bool
    head_beside: str
    old_head: tuple[str, ...]
    left_over: tuple[str, ...]

    @property
    def num_classes(self) -> int | None:
        """K, the number of outputs of the head, or None without one."""
        bias = self.tensors.get(f'{HEAD}bias')
        return None if bias is None else int(bias.shape[0])


@dataclasses.dataclass(frozen=True)
class _Place:
    """A place where a network may be: a prefix, the names below it by our paths, and how many of them are found."""

    prefix: str
    naming: Mapping[str, str]
    num_found: int

    def __str__(self) -> str:
        return self.prefix.removesuffix('.') or "'' (no prefix)"


def match_tensors(tensors: Mapping[str, Any], model: ResNet, in_channels: int = 3, prefix: str | None = None) -> Match:
    """Finds a network's variables among tensors by their names and shapes.

    Args:
      tensors: tensors by our paths; or of torchvision, timm or another code base named in ``names``, with any prefix;
        or BiT's arrays. Values may be any objects with a ``shape``.
      model: the network; its number of classes does not matter.
      in_channels: C of its images; other numbers are allowed.
      prefix: prefix of the network's names, or a part of it; needed if several networks are found.

    Returns:
      The match.

    Raises:
      InputError: tensors are missing, have other shapes, or belong to further blocks, or several networks are found.
        The message names the first few tensors, or the prefixes.
    """
    our_layout = any(name.startswith('params/') for name in tensors)
    given = {name: value for name, value in without_bit_names(tensors).items() if not name.endswith(_UNUSED)}
    shapes = {path: leaf.shape for path, leaf in paths_of(_shapes(model, in_channels)).items()}
    in_order = sorted(shapes, key=lambda path: path.startswith('batch_stats/'))  # parameters first, in messages
    trunk = {path: shapes[path] for path in in_order if not path.startswith(HEAD)}
    known = [{path: path for path in trunk}] if our_layout else namings(model.spec, trunk)
    places = _places(given, known, prefix)
    faults = [_faults(given, place, trunk, None if our_layout else model.spec) for place in places]
    fitting = [place for place, found in zip(places, faults, strict=True) if not found]
    if not fitting:
        few = 2 * places[0].num_found < len(trunk) and not our_layout  # the place may be a wrong one
        found = [*faults[0], *([f'the file has {some(given)}'] if few else [])]
        raise InputError(f'the tensors do not fit the network: {"; ".join(found)}')
    place = _only(fitting, given, prefix)
    head, head_beside = _find_head(given, place.prefix, shapes[f'{HEAD}kernel'][0], our_layout)
    used = {path: f'{place.prefix}{name}' for path, name in place.naming.items()} | head
    rest = _without(given, used.values())
    old_head = () if head else tuple(name for name in rest if _is_of_head(name, place.prefix, our_layout))
    matched = {path: given[name] for path, name in used.items()}
    return Match(matched, our_layout, head_beside, old_head, tuple(_without(rest, old_head)))


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    left_out = set(others)
    return [name for name in names if name not in left_out]


def _shapes(model: ResNet, in_channels: int) -> dict[str, Any]:
    """Shapes of a network's variables with one class, so that networks with different heads are traced once."""
    return variable_shapes(dataclasses.replace(model, spec=with_changes(model.spec, num_classes=1)), in_channels)


def _places(given: Mapping[str, Any], known: Sequence[Mapping[str, str]], prefix: str | None) -> list[_Place]:
    """The places with the most names of a network, among those that the user chose.

    Raises:
      InputError: there are none.
    """
    places = []
    for naming in known:
        names = set(naming.values())
        depth = max(name.count('.') for name in names)
        found: collections.Counter[str] = collections.Counter()
        for name in given:
            parts = name.rsplit('.', depth + 1)
            below = ('.'.join(parts[start:]) for start in range(len(parts)))
            found.update(name.removesuffix(suffix) for suffix in below if suffix in names)
        places += [_Place(start, naming, count) for start, count in found.items()]
    if not places:
        wanted = some(known[0].values(), 2)
        raise InputError(
            f'the tensors do not fit the network: none of its names ({wanted}) is found among {some(given)}'
        )
    chosen = [place for place in places if _is_chosen(place, prefix)]
    most = max(place.num_found for place in chosen or places)
    best = [place for place in chosen or places if place.num_found == most]
    if not chosen:
        raise InputError(f'weights_prefix={prefix}: the network is not found there, but at {some(map(str, best))}')
    return best if most == len(known[0]) else best[:1]  # of incomplete ones, one is reported


def _is_chosen(place: _Place, prefix: str | None) -> bool:
    """Whether a prefix is what the user asked for, or contains it: ``teacher`` stands for ``teacher.backbone.``."""
    if not prefix:
        return prefix is None or not place.prefix
    return f'.{prefix.removesuffix(".")}.' in f'.{place.prefix}'


def _only(places: list[_Place], given: Mapping[str, Any], prefix: str | None) -> _Place:
    """The only place where a network fits.

    Raises:
      InputError: there are several with different tensors.
    """
    exact = [place for place in places if prefix is not None and place.prefix == f'{prefix.removesuffix(".")}.']
    different = {tuple(id(given[place.prefix + name]) for name in place.naming.values()): place for place in places}
    if len(different) == 1 or exact:
        return (exact or places)[0]
    raise InputError(
        f'{len(different)} such networks are found, at {some(map(str, different.values()), 8)}: choose one with'
        ' --weights_prefix (in Python: prefix); experiments.convert writes it to a file of its own'
    )


def _faults(
    given: Mapping[str, Any], place: _Place, shapes: Mapping[str, tuple[int, ...]], spec: ResNetSpec | None
) -> list[str]:
    """What does not fit at a place: kinds of faults with their tensors; empty if all fits.

    Args:
      given: the tensors.
      place: the place.
      shapes: the network's shapes by path, without the head.
      spec: the network's specification; None for tensors in our layout.
    """
    missing, misshapen = [], []
    for path, expected in shapes.items():
        name = f'{place.prefix}{place.naming[path]}'
        if name not in given:
            missing.append(name)
            continue
        shape = tuple(given[name].shape)
        if not _fits(path, shape if spec is None else _our_shape(shape, len(expected)), expected):
            wanted = expected if spec is None else torch_shape(without_collection(path), expected, spec)
            misshapen.append(f'{name} {shape} instead of {wanted}')
    names = set(place.naming.values())
    modules = {_module(name) for name in names}
    below = [name.removeprefix(place.prefix) for name in given if name.startswith(place.prefix)]
    unexpected = [
        f'{place.prefix}{name}'
        for name in below
        if name not in names and (not name.startswith(HEAD) if spec is None else _module(name) in modules)
    ]
    kinds = {'missing': missing, 'unexpected': unexpected, 'with wrong shapes': misshapen}
    return [f'{len(found)} {kind}: {some(found)}' for kind, found in kinds.items() if found]


def _module(name: str) -> str:
    """The kind of a tensor's topmost module: ``layer`` for ``layer4.0.conv1.weight``."""
    top = name.partition('.')[0]
    return re.sub(r'\d+$', '', top) or top


def _our_shape(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Converts the shape of a PyTorch tensor to our order of axes."""
    if ndim == 2 and len(shape) == 4 and shape[2:] == (1, 1):
        shape = shape[:2]
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def _fits(path: str, shape: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether a tensor fits, possibly after adapting the first convolution."""
    if path in _FIRST_KERNELS:
        return len(shape) == 4 and (*shape[:2], shape[3]) == (*ours[:2], ours[3]) and shape[2] > 0
    return shape == ours


def _find_head(given: Mapping[str, Any], prefix: str, features: int, our_layout: bool) -> tuple[dict[str, str], str]:
    """Names of the kernel and bias of a linear layer for any number of classes, by our paths; empty if there is none.

    Trainers have it below the network's prefix, or beside it: ``backbone.conv1.weight`` and ``head.fc.weight``. Also
    returns the name of the module in the latter case.
    """
    if our_layout:
        modules = {'params/head/': ('kernel', 'bias')}
    else:
        modules = {f'{start}{head}.': ('weight', 'bias') for start in _starts(prefix) for head in HEADS}
    for module, (kernel, bias) in modules.items():
        if f'{module}{kernel}' in given and f'{module}{bias}' in given:
            shape, classes = (tuple(given[f'{module}{name}'].shape) for name in (kernel, bias))
            shape = shape if our_layout else _our_shape(shape, 2)
            if len(shape) == 2 and shape[0] == features and classes == shape[1:] and shape[1] > 0:
                names = {f'{HEAD}kernel': f'{module}{kernel}', f'{HEAD}bias': f'{module}{bias}'}
                return names, '' if our_layout or module.startswith(prefix) else module.removesuffix('.')
    return {}, ''


def _starts(prefix: str) -> list[str]:
    """The prefix of a network, and that without its last part."""
    return [prefix, re.sub(r'[^.]*\.$', '', prefix)] if prefix else ['']


def _is_of_head(name: str, prefix: str, our_layout: bool) -> bool:
    """Whether a tensor seems to belong to a head, of any shape."""
    if our_layout:
        return name.startswith(HEAD)
    starts = [f'{start}{head}.' for start in _starts(prefix) for head in HEADS]
    return name.startswith(tuple(starts))


def variables_from_tensors(
    tensors: Mapping[str, Any],
    model: ResNet,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    headless: bool = False,
    prefix: str | None = None,
) -> dict[str, Any]:
    """Converts tensors to Flax variables. What is left out, replaced or adapted gives a warning.

    Args:
      tensors: as in ``match_tensors``, with arrays of any floating-point dtype as values.
      model: the network. If its number of classes differs from the tensors', or they have no fitting head, the head is
        initialized.
      in_channels: C of its images. If it differs from the tensors', the first kernel is adapted as in timm. None keeps
        the tensors' C.
      key: random key of a new head; defaults to ``jax.random.key(0)``.
      headless: whether to return no head if the tensors have none.
      prefix: as in ``match_tensors``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: as ``match_tensors``, or a tensor is not floating-point.
    """
    if in_channels is not None and in_channels < 1:
        raise InputError(f'in_channels={in_channels} must be at least 1')
    match = match_tensors(tensors, model, in_channels or 3, prefix)
    axis = 2 if match.our_layout else 1
    first = next(path for path in _FIRST_KERNELS if path in match.tensors)
    channels = in_channels or int(match.tensors[first].shape[axis])
    shapes = _shapes(model, channels)

    def convert(path: str, ndim: int) -> jax.Array:
        tensor = match.tensors[path]
        value = np.asarray(tensor) if match.our_layout else _our_value(tensor, ndim)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            name = without_collection(path)
            raise InputError(f'the tensor of {name} must be floating-point, got {value.dtype}')
        if path == first and value.shape[2] != channels:
            warnings.warn(f'the first kernel is adapted from {value.shape[2]} to {channels} channels', stacklevel=3)
            value = _adapt_input(value, channels)
        return jnp.asarray(value, jnp.float32)

    trunk = shapes | {'params': {name: tree for name, tree in shapes['params'].items() if name != 'head'}}
    leaves = [convert(path, len(leaf.shape)) for path, leaf in paths_of(trunk).items()]
    variables: dict[str, Any] = {'batch_stats': {}} | jax.tree.unflatten(jax.tree.structure(trunk), leaves)
    old_head: tuple[str, ...] = ()
    if match.num_classes == model.spec.head.num_classes:
        variables['params']['head'] = {'kernel': convert(f'{HEAD}kernel', 2), 'bias': convert(f'{HEAD}bias', 1)}
        if match.head_beside:
            warnings.warn(f'the head is {match.head_beside}', stacklevel=2)
    elif headless and match.num_classes is None:
        old_head = match.old_head
    else:
        variables['params']['head'] = _new_head(match, model, shapes['params']['head']['kernel'].shape[0], key)
    _report_left_over([*old_head, *match.left_over])
    return variables


def _report_left_over(names: Sequence[str]) -> None:
    if names:
        count = 'one tensor is' if len(names) == 1 else f'{len(names):,} tensors are'
        warnings.warn(f'{count} left out as no part of the network: {some(names)}', stacklevel=3)


def _new_head(match: Match, model: ResNet, features: int, key: jax.Array | None) -> dict[str, Any]:
    """Initializes the head instead of a missing or another one, with a warning."""
    classes = model.spec.head.num_classes
    if match.num_classes is None and not match.old_head:
        warnings.warn(f'the weights have no head: that for {classes} classes is new and not trained yet', stacklevel=3)
    else:
        old = some(match.old_head) if match.num_classes is None else f'that for {match.num_classes}'
        warnings.warn(f'a new head for {classes} classes replaces {old}', stacklevel=3)
    key = jax.random.key(0, impl='threefry2x32') if key is None else key
    params: dict[str, Any] = new_head(classes).init(key, jnp.zeros((1, features), jnp.float32))['params']
    return params


def _our_value(tensor: Any, ndim: int) -> np.ndarray:
    value = np.asarray(tensor)
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.transpose()
    return value[0, 0] if value.ndim == 4 and ndim == 2 else value


def _adapt_input(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts the first kernel ``[kh, kw, C, C_out]`` to another number of input channels, as timm does.

    A single channel has the sum over the old ones; several channels repeat the old ones, scaled to the same sum.
    """
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeats = -(-channels // old)
    return np.tile(kernel, (1, 1, repeats, 1))[:, :, :channels] * np.float32(old / channels)
