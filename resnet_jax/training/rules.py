"""The rule of each parameter: whether it is trained, whether it decays, and its learning-rate factor."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from resnet_jax.errors import InputError
from resnet_jax.models.scanned import block_paths, block_shape, map_blocks
from resnet_jax.training.optimizers import DECAYED, Optimizer, check_pattern

# Parameter names that identify their role; other parameters are identified by shape.
_KERNELS, _SCALES, _BIASES = ('kernel',), ('scale', 'v', 'tau'), ('bias',)


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule of one parameter.

    Attributes:
      path: its path, such as ``stage1_block1/conv1/kernel``.
      trained: False if it is frozen.
      decays: whether it has weight decay; LAMB and LARS adapt the rate of parameters that decay.
      factor: learning-rate factor.
      head: whether it belongs to the last linear layer.
      matrix: whether it is a hidden layer's matrix when flattened to ``[inputs, outputs]``; Muon applies to these.
    """

    path: str
    trained: bool
    decays: bool
    factor: float
    head: bool
    matrix: bool


def parameter_rules(params: Any, optimizer: Optimizer, freeze: str | None = None) -> Any:
    """Returns the rule of each parameter: a tree of ``Rule`` like ``params``.

    Weight decay: ``all`` as in the original papers; ``not_norms`` is torchvision's ``norm_weight_decay=0``, where
    biases of convolutions and of the head decay but no parameters of normalizations; ``kernels`` is the "no bias decay"
    of He et al. 2018 (arXiv:1812.01187, section 3.1). Parameters of custom blocks are classified by shape: as a kernel
    with two or more axes, otherwise as the scale of a normalization. Patterns match the start of a path such as
    ``stage1_block1/conv1/kernel``.

    Args:
      params: the network's parameters; only their paths and shapes are used.
      optimizer: its ``decayed``, ``head_learning_rate`` and ``learning_rate_factors`` are used.
      freeze: pattern of the parameters that are not trained; None for none.

    Raises:
      InputError: a pattern matches nothing, ``freeze`` matches everything, or ``decayed`` only frozen parameters; two
        patterns, or a pattern and ``head_learning_rate``, match the same parameter; a pattern matches only some of the
        blocks that are computed in one loop.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    names = _Names(paths, [block_paths(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)])
    frozen = [False] * len(paths) if freeze is None else names.matched('freeze', freeze)
    if all(frozen):
        raise InputError(f'freeze={freeze!r} matches all parameters; paths start with: {names.beginnings}')
    shapes = [block_shape(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)]
    decays = _decays(names, shapes, optimizer.decayed, frozen)
    factors = _factors(names, optimizer, freeze, frozen)

    def rule(index: int) -> Rule:
        path, shape = paths[index], shapes[index]
        head = path.startswith('head/')
        hidden = _role(path, shape) == 'kernel' and not head
        matrix = hidden and len(shape) > 1 and shape[-1] > 1 and math.prod(shape[:-1]) > 1
        return Rule(path, not frozen[index], decays[index], factors[index], head, matrix)

    return jax.tree_util.tree_unflatten(structure, [rule(index) for index in range(len(paths))])


@dataclasses.dataclass(frozen=True)
class _Names:
    """The paths of all parameters, and for each one the paths of its single blocks."""

    paths: list[str]
    blocks: list[list[str]]

    @property
    def beginnings(self) -> str:
        return ', '.join(sorted({path.partition('/')[0] for path in self.paths}))

    def matched(self, field: str, pattern: str) -> list[bool]:
        """Which parameters a pattern matches."""
        found = [_matches(field, pattern, names) for names in self.blocks]
        if not any(found):
            known = f'other values: {", ".join(DECAYED)}; ' if field == 'decayed' else ''
            raise InputError(
                f'{field}={pattern!r} matches none of the parameters; {known}paths start with: {self.beginnings}'
            )
        return found


def _role(path: str, shape: Sequence[int]) -> str:
    """``kernel``, ``scale`` or ``bias``."""
    name = path.rpartition('/')[2]
    for role, known in (('kernel', _KERNELS), ('scale', _SCALES), ('bias', _BIASES)):
        if name in known:
            return role
    return 'kernel' if len(shape) > 1 else 'scale'


def _decays(names: _Names, shapes: list[tuple[int, ...]], decayed: str, frozen: list[bool]) -> list[bool]:
    """Whether each parameter decays."""
    if decayed == 'all':
        return [True] * len(names.paths)
    if decayed not in DECAYED:
        check_pattern('decayed', decayed)
        found = names.matched('decayed', decayed)
        if all(is_frozen for is_frozen, decays in zip(frozen, found, strict=True) if decays):
            raise InputError(f'decayed={decayed!r} matches only parameters that freeze excludes from training')
        return found
    roles = [_role(path, shape) for path, shape in zip(names.paths, shapes, strict=True)]
    if decayed == 'kernels':
        return [role == 'kernel' for role in roles]
    # A layer with a scale is a normalization; this distinguishes its bias from that of a convolution.
    layers = [path.rpartition('/')[0] for path in names.paths]
    norms = {layer for layer, path in zip(layers, names.paths, strict=True) if path.endswith('/scale')}
    return [role != 'scale' and layer not in norms for role, layer in zip(roles, layers, strict=True)]


def _factors(names: _Names, optimizer: Optimizer, freeze: str | None, frozen: list[bool]) -> list[float]:
    """The learning-rate factor of each parameter."""
    paths = names.paths
    taken = {path: f'freeze={freeze!r}' for path, is_frozen in zip(paths, frozen, strict=True) if is_frozen}
    factors = dict.fromkeys(paths, 1.0)
    if optimizer.head_learning_rate is not None:
        for path in paths:
            if path.startswith('head/') and path not in taken:
                factors[path] = optimizer.head_learning_rate / optimizer.learning_rate
                taken[path] = f'head_learning_rate={optimizer.head_learning_rate}'
    for pattern, factor in optimizer.learning_rate_factors:
        for path, found in zip(paths, names.matched('learning_rate_factors', pattern), strict=True):
            if not found:
                continue
            if path in taken:
                raise InputError(f'learning_rate_factors: {pattern!r} and {taken[path]} both match {path}')
            factors[path], taken[path] = factor, repr(pattern)
    return [factors[path] for path in paths]


def _matches(field: str, pattern: str, names: list[str]) -> bool:
    found = [re.match(pattern, name) is not None for name in names]
    if any(found) and not all(found):
        raise InputError(
            f'{field}={pattern!r} matches {names[found.index(True)]} and not {names[found.index(False)]}, which are'
            ' computed in one loop; set scan_blocks=False'
        )
    return found[0]


def mask(rules: Any, which: Callable[[Rule], bool]) -> Any:
    """A tree of bools like the parameters."""
    return jax.tree.map(which, rules)


def for_all_arrays(rules: Any, function: Callable[..., Sequence[jax.Array]]) -> optax.GradientTransformation:
    """A stateless transformation that is applied to all arrays together.

    Args:
      rules: the tree of ``Rule``.
      function: ``function(rules, updates)`` of two lists returns the list of new updates. Stacked arrays are stacked.
    """

    def update(updates: Any, params: Any) -> Any:
        del params
        # Masked parameters are empty trees here.
        known = jax.tree.map(lambda rule, some: rule if jax.tree.leaves(some) else None, rules, updates)
        leaves, structure = jax.tree.flatten(updates)
        return jax.tree.unflatten(structure, function(jax.tree.leaves(known), leaves))

    return optax.stateless(update)


def for_each_array(rules: Any, function: Callable[..., jax.Array]) -> optax.GradientTransformation:
    """A stateless transformation that is applied to every array, and every block of a stacked array, separately.

    Args:
      rules: the tree of ``Rule``.
      function: ``function(rule, update, param)`` returns the new update.
    """

    def update(updates: Any, params: Any) -> Any:
        def apply(rule: Rule, updates: Any, params: Any) -> Any:
            # Masked parameters are empty trees here, hence the inner map.
            def one(update: jax.Array, param: jax.Array) -> jax.Array:
                return map_blocks(lambda u, p: function(rule, u, p), rule.path, update, param)

            return jax.tree.map(one, updates, params)

        return jax.tree.map(apply, rules, updates, params)

    return optax.stateless(update)
