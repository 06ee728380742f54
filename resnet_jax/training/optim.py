"""Optimizers, built from optax transformations."""

from typing import Any

import jax
import optax

from resnet_jax.errors import InputError
from resnet_jax.training.muon import scale_by_muon
from resnet_jax.training.optimizers import (
    SGD,
    Adam,
    AdamW,
    Lamb,
    Lars,
    Muon,
    Optax,
    Optimizer,
    RMSPropTF,
)
from resnet_jax.training.rules import Rule, for_each_array, mask, parameter_rules

_LAMB_EPSILON = 1e-6
_LARS_TRUST = 1e-3
_RMSPROP_DECAY, _RMSPROP_EPSILON = 0.9, 1e-10


def make_optimizer(
    optimizer: Any, rate: optax.Schedule, freeze: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Builds the transformation of an optimizer; ``w`` is a parameter, ``g`` its gradient, ``rate`` its learning rate.

    - ``sgd``, as in PyTorch: ``v ← momentum v + (g + weight_decay w)``, ``w ← w - rate v`` (Nesterov: ``g + momentum
      v`` instead of ``v``). Weight decay passes through the momentum and is scaled by the learning rate.
    - ``adam``: Kingma and Ba 2014 (arXiv:1412.6980), decays 0.9 and 0.999, ε 1e-8, applied to ``g + weight_decay w``.
    - ``adamw``: Adam applied to ``g`` alone, with a separate ``w ← w - rate weight_decay w`` (Loshchilov and Hutter
      2019, arXiv:1711.05101).
    - ``lamb`` (You et al. 2020, arXiv:1904.00962), as in timm: Adam's step ``u`` with ε 1e-6 outside the root, plus
      ``weight_decay w``, scaled by ``|w| / |u|`` for parameters that decay. timm clips gradients to norm 1 by default;
      here that is ``clip_norm``. Unlike timm's, it also adapts with ``weight_decay=0``.
    - ``lars`` (You et al. 2017, arXiv:1708.03888), as in optax: ``u = g + weight_decay w``, scaled by
      ``0.001 |w| / |u|`` for parameters that decay; ``v ← momentum v + rate u``, ``w ← w - v``.
    - ``rmsprop_tf``: TensorFlow's RMSProp, as timm's RMSpropTF with its defaults: the mean square starts at 1 and
      decays by 0.9, ε 1e-10 is inside the root, ``v ← momentum v + rate u / root``, ``w ← w - v``; weight decay is
      added to ``g``.
    - ``muon`` (Jordan et al. 2024, kellerjordan.github.io/posts/muon): orthogonalized Nesterov momentum. Kernels of all
      layers except the head are matrices ``[kh kw C_in, C_out]``, the transpose of the author's ``[C_out, C_in kh
      kw]``; all other parameters use AdamW. The author and PyTorch's default scale the update by
      ``sqrt(max(1, C_out / C_in))`` and need a separate learning rate for AdamW; here the scale is
      ``0.2 sqrt(max(inputs, outputs))`` (Liu et al. 2025, arXiv:2502.16982, section 2.2; PyTorch's
      ``match_rms_adamw``), so that AdamW's rate and decay work for both. There is no bias correction of the momentum,
      as in the author's and PyTorch's versions but unlike optax.contrib.muon. The iteration runs in float32 (PyTorch:
      bfloat16).

    Gradients are first clipped by ``clip_norm`` (the global norm over trained parameters) and then by ``adaptive_clip``
    (Brock et al. 2021, arXiv:2102.06171, section 4.1: per output unit, except in the last linear layer).
    ``parameter_rules`` determines which parameters are trained, which decay, and their learning-rate factors. Blocks
    that are stacked for a loop are treated separately. ``update`` needs the parameters.

    An optax function is called with the schedule and keeps its defaults for everything else; a transformation is used
    unchanged. For both, only freezing is added.
    """

    # Masks depend only on parameter paths, which are known during tracing, so they cost nothing in a compiled step.
    def build(params: Any) -> optax.GradientTransformation:
        rules = parameter_rules(params, optimizer if isinstance(optimizer, Optimizer) else Optimizer(), freeze)
        trained = (
            _built_in(optimizer, rate, rules) if isinstance(optimizer, Optimizer) else _from_optax(optimizer, rate)
        )
        if freeze is None:
            return trained
        labels = jax.tree.map(lambda rule: 'trained' if rule.trained else 'frozen', rules)
        return optax.partition({'frozen': optax.set_to_zero(), 'trained': trained}, labels)

    def init(params: Any) -> Any:
        return build(params).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if params is None:
            raise ValueError('update needs the parameters')
        return optax.with_extra_args_support(build(params)).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _from_optax(optimizer: Optax | optax.GradientTransformation, rate: optax.Schedule) -> optax.GradientTransformation:
    """The transformation of an optimizer of optax or of the caller."""
    if not isinstance(optimizer, Optax):
        return optimizer
    transformation = optimizer.function(rate)
    if not isinstance(transformation, optax.GradientTransformation):
        found = type(transformation).__name__
        raise InputError(f'optimizer={optimizer.name} must return an optax.GradientTransformation, got {found}')
    if optimizer.clip_norm is None:
        return transformation
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), transformation)


def _built_in(optimizer: Optimizer, rate: optax.Schedule, rules: Any) -> optax.GradientTransformation:
    """The transformation of a built-in optimizer for the parameters that are not frozen."""
    decays = mask(rules, lambda rule: rule.decays)
    direction, *rest = _direction_and_decay(optimizer, optax.add_decayed_weights(optimizer.weight_decay, decays), rules)
    scale = [*rest]
    if isinstance(optimizer, Lamb | Lars):
        trust = optax.scale_by_trust_ratio(trust_coefficient=1.0 if isinstance(optimizer, Lamb) else _LARS_TRUST)
        scale.append(optax.masked(_for_each(trust, rules), decays))
    if optimizer.head_learning_rate is not None or optimizer.learning_rate_factors:
        by_factor = for_each_array(rules, lambda rule, update, param: rule.factor * update)
        scale.append(optax.masked(by_factor, mask(rules, lambda rule: rule.factor != 1)))
    scale.append(optax.scale_by_learning_rate(rate))
    if isinstance(optimizer, Lars):  # the momentum includes the learning rate
        scale.append(optax.trace(optimizer.momentum, optimizer.nesterov))
    elif isinstance(optimizer, RMSPropTF):
        scale.append(optax.trace(optimizer.momentum))
    # Checkpoints contain the state in this nesting: do not change it.
    chain = optax.chain(direction, optax.chain(*scale))
    clips = _clips(optimizer, rules)
    return optax.chain(*clips, chain) if clips else chain


def _direction_and_decay(
    optimizer: Optimizer, decay: optax.GradientTransformation, rules: Any
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Weight decay and update direction, in the order of their application."""
    if isinstance(optimizer, Adam):  # and its subclasses
        epsilon = _LAMB_EPSILON if isinstance(optimizer, Lamb) else 1e-8
        adam = optax.scale_by_adam(optimizer.b1, optimizer.b2, epsilon)
        if isinstance(optimizer, Muon):
            return scale_by_muon(optimizer.momentum, rules, adam), decay
        return (adam, decay) if isinstance(optimizer, AdamW) else (decay, adam)
    if isinstance(optimizer, RMSPropTF):
        return decay, optax.scale_by_rms(_RMSPROP_DECAY, _RMSPROP_EPSILON, initial_scale=1.0)
    if isinstance(optimizer, SGD) and not isinstance(optimizer, Lars):
        return decay, optax.trace(optimizer.momentum, optimizer.nesterov)
    return decay, optax.identity()


def _clips(optimizer: Optimizer, rules: Any) -> list[optax.GradientTransformation]:
    """Gradient clipping, which comes first."""
    clips = []
    if optimizer.clip_norm is not None:
        clips.append(optax.clip_by_global_norm(optimizer.clip_norm))
    if optimizer.adaptive_clip is not None:
        by_unit = _for_each(optax.adaptive_grad_clip(optimizer.adaptive_clip), rules, by_unit=True)
        clips.append(optax.masked(by_unit, mask(rules, lambda rule: not rule.head)))
    return clips


def _for_each(
    transformation: optax.GradientTransformation, rules: Any, by_unit: bool = False
) -> optax.GradientTransformation:
    """Applies a stateless transformation of one array and its parameter to each array separately.

    Args:
      transformation: its ``update`` takes an array and the parameter.
      rules: the tree of ``Rule``.
      by_unit: for arrays with several axes, apply it to the flattened ``[n]`` values of each output (the last axis).
    """

    def single(update: jax.Array, param: jax.Array) -> jax.Array:
        return transformation.update(update, optax.EmptyState(), param)[0]

    def units(rule: Rule, update: jax.Array, param: jax.Array) -> jax.Array:
        del rule
        if not by_unit or update.ndim < 2:
            return single(update, param)
        flat = (-1, update.shape[-1])
        return jax.vmap(single, 1, 1)(update.reshape(flat), param.reshape(flat)).reshape(update.shape)

    return for_each_array(rules, units)
