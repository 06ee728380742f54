"""Optimizers, built of optax's transformations."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.errors import InputError
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.schedules import learning_rate_schedule

_KNOWN_NAMES = ('kernel', 'scale', 'bias', 'v', 'tau')
# Blocks 2, 3, … of a stage that the network computes in a loop: their arrays have one more axis in front.
_STACKED = re.compile(r'(stage\d+)_blocks')

_LAMB_EPSILON = 1e-6
_LARS_TRUST = 1e-3
_RMSPROP_DECAY, _RMSPROP_EPSILON = 0.9, 1e-10
_MUON_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_MUON_ITERATIONS, _MUON_EPSILON, _MUON_RMS = 5, 1e-7, 0.2


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to one parameter.

    Attributes:
      trained: False leaves it as it is.
      decays: whether weight decay draws it to zero; LAMB and LARS adapt the rate of what decays.
      factor: of the learning rate.
      head: whether it belongs to the last linear layer.
      stacked: whether its first axis counts blocks that are computed in a loop.
      matrix: whether it is, flattened to ``[inputs, outputs]``, a matrix of a hidden layer, which Muon is for.
    """

    trained: bool
    decays: bool
    factor: float
    head: bool
    stacked: bool
    matrix: bool


def parameter_rules(params: Any, config: TrainConfig) -> Any:
    """The one rule of every parameter: a tree of ``Rule`` like ``params``.

    Decay: ``all`` as in the original papers; ``not_norms`` is torchvision's ``norm_weight_decay=0``, where the biases
    of convolutions and of the head decay and no parameter of a normalization does; ``kernels`` is the "no bias decay"
    of He et al. 2018 (arXiv:1812.01187, section 3.1). Patterns match the beginning of a path such as
    ``stage1_block1/conv1/kernel``.

    Args:
      params: the network's parameters; only their paths and shapes are read.
      config: its ``freeze``, ``decayed``, ``head_learning_rate`` and ``learning_rate_factors`` count.

    Raises:
      InputError: a pattern that matches nothing; a ``freeze`` that matches everything; two patterns that match the same
        parameter, or one of them and ``head_learning_rate``; a pattern that matches only some of the blocks that are
        computed in a loop.
      ValueError: a parameter that no rule knows.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    for path in paths:
        if path.rpartition('/')[2] not in _KNOWN_NAMES:
            raise ValueError(f'no weight-decay rule for the parameter {path}')
    # A layer with a scale is a normalization; its bias is told from a convolution's by that.
    norms = {path.rpartition('/')[0] for path in paths if path.endswith('scale')}
    begin = ', '.join(sorted({path.partition('/')[0] for path in paths}))

    names = [_single_names(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)]

    def matched(field: str, pattern: str) -> list[bool]:
        found = [_matches(field, pattern, some) for some in names]
        if not any(found):
            raise InputError(f'{field}={pattern!r} matches none of the parameters; their paths begin with: {begin}')
        return found

    frozen = [False] * len(paths) if config.freeze is None else matched('freeze', config.freeze)
    if all(frozen):
        raise InputError(f'freeze={config.freeze!r} matches all parameters; their paths begin with: {begin}')
    factors = _factors(config, paths, matched, frozen)

    def rule(index: int) -> Rule:
        path, leaf = paths[index], leaves[index][1]
        kernel, head = path.endswith('kernel'), path.startswith('head/')
        decays = kernel if config.decayed == 'kernels' else True
        if config.decayed == 'not_norms':
            decays = path.rpartition('/')[0] not in norms
        stacked = _STACKED.match(path) is not None
        shape = leaf.shape[1:] if stacked else leaf.shape
        matrix = kernel and not head and len(shape) > 1 and shape[-1] > 1 and math.prod(shape[:-1]) > 1
        return Rule(not frozen[index], decays, factors[index], head, stacked, matrix)

    return jax.tree_util.tree_unflatten(structure, [rule(index) for index in range(len(paths))])


def _factors(
    config: TrainConfig, paths: list[str], matched: Callable[[str, str], list[bool]], frozen: list[bool]
) -> list[float]:
    """The factor of the learning rate of every parameter."""
    taken = {path: f'freeze={config.freeze!r}' for path, is_frozen in zip(paths, frozen, strict=True) if is_frozen}
    factors = dict.fromkeys(paths, 1.0)
    if config.head_learning_rate is not None:
        for path in paths:
            if path.startswith('head/') and path not in taken:
                factors[path] = config.head_learning_rate / config.learning_rate
                taken[path] = f'head_learning_rate={config.head_learning_rate}'
    for pattern, factor in config.learning_rate_factors:
        for path, found in zip(paths, matched('learning_rate_factors', pattern), strict=True):
            if not found:
                continue
            if path in taken:
                raise InputError(f'learning_rate_factors: {pattern!r} and {taken[path]} both match {path}')
            factors[path], taken[path] = factor, repr(pattern)
    return [factors[path] for path in paths]


def _single_names(path: str, leaf: Any) -> list[str]:
    """The paths that a parameter has where blocks are not stacked."""
    if stage := _STACKED.match(path):
        return [f'{stage[1]}_block{index + 2}{path[stage.end() :]}' for index in range(leaf.shape[0])]
    return [path]


def _matches(field: str, pattern: str, names: list[str]) -> bool:
    found = [re.match(pattern, name) is not None for name in names]
    if any(found) and not all(found):
        raise InputError(
            f'{field}={pattern!r} matches {names[found.index(True)]} and not {names[found.index(False)]}, which are'
            ' computed in one loop: set scan_blocks=False'
        )
    return found[0]


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a configuration; ``w`` is a parameter, ``g`` its gradient, ``rate`` its learning rate.

    - ``sgd``, as PyTorch's: ``v ← momentum v + (g + weight_decay w)``, ``w ← w - rate v`` (Nesterov: ``g + momentum
      v`` in place of ``v``). The decay goes through the momentum and is scaled by the learning rate.
    - ``adam``: Kingma and Ba 2014 (arXiv:1412.6980), decays 0.9 and 0.999, ε 1e-8, of ``g + weight_decay w``.
    - ``adamw``: the same of the gradient alone, and ``w ← w - rate weight_decay w`` beside it (Loshchilov and
      Hutter 2019, arXiv:1711.05101).
    - ``lamb`` (You et al. 2020, arXiv:1904.00962), as timm's: Adam's step ``u`` with ε 1e-6 outside the root, plus
      ``weight_decay w``, times ``|w| / |u|`` for what decays. timm clips the gradients to norm 1 unasked: that is
      ``clip_norm``. Other than timm's, it adapts with ``weight_decay=0`` as well.
    - ``lars`` (You et al. 2017, arXiv:1708.03888), as optax's: ``u = g + weight_decay w``, times ``0.001 |w| / |u|``
      for what decays; ``v ← momentum v + rate u``, ``w ← w - v``.
    - ``rmsprop_tf``: TensorFlow's RMSProp, as timm's RMSpropTF with its defaults: the mean square starts at 1 and
      decays with 0.9, ε 1e-10 lies in the root, ``v ← momentum v + rate u / root``, ``w ← w - v``; decay in ``g``.
    - ``muon`` (Jordan et al. 2024, kellerjordan.github.io/posts/muon): Nesterov's momentum, made orthogonal. Kernels
      of all layers but the head are matrices ``[kh kw C_in, C_out]``, the author's ``[C_out, C_in kh kw]`` transposed;
      the rest has AdamW's step. The author and PyTorch's default scale the update by ``sqrt(max(1, C_out / C_in))``
      and need a learning rate of their own for the rest; here it is ``0.2 sqrt(max(inputs, outputs))`` (Liu et al.
      2025, arXiv:2502.16982, section 2.2; PyTorch's ``match_rms_adamw``), for which AdamW's rate and decay serve both.
      optax.contrib.muon corrects the momentum for its start like Nadam, which neither does, nor do we. The iteration is
      in float32, PyTorch's in bfloat16.

    In front come ``clip_norm`` (the norm of all gradients of trained parameters together) and then ``adaptive_clip``
    (Brock et al. 2021, arXiv:2102.06171, section 4.1: of each output unit, not of the last linear layer).
    ``parameter_rules`` says what is trained, what decays, and whose learning rate is another one. Blocks that are
    stacked for a loop are treated one by one. ``update`` needs the parameters.
    """
    rate = learning_rate_schedule(config, steps_per_epoch)

    # Masks follow from the parameters' paths, which are known while JAX traces: this costs nothing in a compiled step.
    def build(params: Any) -> optax.GradientTransformation:
        rules = parameter_rules(params, config)
        optimizer = _trained(config, rate, rules)
        if config.freeze is None:
            return optimizer
        labels = jax.tree.map(lambda rule: 'trained' if rule.trained else 'frozen', rules)
        return optax.partition({'frozen': optax.set_to_zero(), 'trained': optimizer}, labels)

    def init(params: Any) -> Any:
        return build(params).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise ValueError('update needs the parameters')
        return build(params).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _trained(config: TrainConfig, rate: optax.Schedule, rules: Any) -> optax.GradientTransformation:
    """What the parameters that are not frozen get."""
    decays = _mask(rules, lambda rule: rule.decays)
    decay = optax.add_decayed_weights(config.weight_decay, decays)
    first, second = {
        'sgd': (decay, optax.trace(config.momentum, config.nesterov)),
        'adam': (decay, optax.scale_by_adam()),
        'adamw': (optax.scale_by_adam(), decay),
        'lamb': (optax.scale_by_adam(eps=_LAMB_EPSILON), decay),
        'lars': (decay, optax.identity()),
        'rmsprop_tf': (decay, optax.scale_by_rms(_RMSPROP_DECAY, _RMSPROP_EPSILON, initial_scale=1.0)),
        'muon': (_muon(config.momentum, rules), decay),
    }[config.optimizer]
    scale = []
    if config.optimizer in ('lamb', 'lars'):
        trust = optax.scale_by_trust_ratio(trust_coefficient=1.0 if config.optimizer == 'lamb' else _LARS_TRUST)
        scale.append(optax.masked(_one_by_one(trust, rules), decays))
    if config.head_learning_rate is not None or config.learning_rate_factors:
        scale.append(optax.masked(_scale_by_factor(rules), _mask(rules, lambda rule: rule.factor != 1)))
    scale.append(optax.scale_by_learning_rate(rate))
    if config.optimizer in ('lars', 'rmsprop_tf'):  # the learning rate is in the momentum
        scale.append(optax.trace(config.momentum, config.nesterov and config.optimizer == 'lars'))
    # Checkpoints hold the state of this very nesting.
    optimizer = optax.chain(first, optax.chain(second, *scale))
    clips = _clips(config, rules)
    return optax.chain(*clips, optimizer) if clips else optimizer


def _clips(config: TrainConfig, rules: Any) -> list[optax.GradientTransformation]:
    """What is done to the gradients before anything else."""
    clips = []
    if config.clip_norm is not None:
        clips.append(optax.clip_by_global_norm(config.clip_norm))
    if config.adaptive_clip is not None:
        by_unit = _one_by_one(optax.adaptive_grad_clip(config.adaptive_clip), rules, by_unit=True)
        clips.append(optax.masked(by_unit, _mask(rules, lambda rule: not rule.head)))
    return clips


def _mask(rules: Any, which: Callable[[Rule], bool]) -> Any:
    """A tree of bools like the parameters."""
    return jax.tree.map(which, rules)


def _scale_by_factor(rules: Any) -> optax.GradientTransformation:
    def update(updates: Any, params: Any) -> Any:
        # What is masked is an empty tree here, so that there is one more to map over.
        return jax.tree.map(lambda rule, part: jax.tree.map(lambda u: rule.factor * u, part), rules, updates)

    return optax.stateless(update)


def _one_by_one(
    transformation: optax.GradientTransformation, rules: Any, by_unit: bool = False
) -> optax.GradientTransformation:
    """A stateless transformation of one parameter alone, applied to each of a tree, and to each of stacked blocks.

    Args:
      transformation: its ``update`` takes an array and the parameter.
      rules: the tree of ``Rule``.
      by_unit: of arrays with several axes, apply it to what belongs to each output, the last axis: its flat ``[n]``.
    """

    def single(update: jax.Array, param: jax.Array) -> jax.Array:
        return transformation.update(update, optax.EmptyState(), param)[0]

    def units(update: jax.Array, param: jax.Array) -> jax.Array:
        if not by_unit or update.ndim < 2:
            return single(update, param)
        flat = (-1, update.shape[-1])
        return jax.vmap(single, 1, 1)(update.reshape(flat), param.reshape(flat)).reshape(update.shape)

    def update(updates: Any, params: Any) -> Any:
        def apply(rule: Rule, some: Any, their: Any) -> Any:
            return jax.tree.map(jax.vmap(units) if rule.stacked else units, some, their)

        return jax.tree.map(apply, rules, updates, params)

    return optax.stateless(update)


def _muon(momentum: float, rules: Any) -> optax.GradientTransformation:
    """Muon's direction for matrices, Adam's for the rest."""

    def direction(update: jax.Array) -> jax.Array:
        matrix = update.reshape(-1, update.shape[-1])
        scale = _MUON_RMS * math.sqrt(max(matrix.shape))
        return scale * orthogonalized(matrix).reshape(update.shape)

    def update(updates: Any, params: Any) -> Any:
        def apply(rule: Rule, some: Any) -> Any:
            return jax.tree.map(jax.vmap(direction) if rule.stacked else direction, some)

        return jax.tree.map(apply, rules, updates)

    matrices = optax.chain(optax.trace(momentum, nesterov=True), optax.stateless(update))
    labels = jax.tree.map(lambda rule: 'muon' if rule.matrix else 'adamw', rules)
    return optax.partition({'muon': matrices, 'adamw': optax.scale_by_adam()}, labels)


def orthogonalized(matrix: jax.Array) -> jax.Array:
    """About ``U V^T`` of a matrix ``U S V^T``: singular values go to between 0.7 and 1.2, very small ones less far.

    Five times ``X ← a X + b (X X^T) X + c (X X^T)^2 X`` on the matrix divided by its Frobenius norm, the Newton-Schulz
    iteration with the coefficients of Jordan et al. 2024 (kellerjordan.github.io/posts/muon).

    Args:
      matrix: float32 ``[M, N]``.

    Returns:
      ``[M, N]``.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # the smaller of the two products
    x = x / jnp.maximum(jnp.linalg.norm(x), _MUON_EPSILON)
    a, b, c = _MUON_POLYNOMIAL
    for _ in range(_MUON_ITERATIONS):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return x.T if tall else x
