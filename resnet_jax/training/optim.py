"""Learning-rate schedules and optimizers, from optax."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.errors import InputError
from resnet_jax.training.config import TrainConfig


def learning_rate_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step, counted from 0.

    During the first ``warmup_epochs`` it rises linearly, step s having ``(s + 1) / warmup_steps`` of the peak. Then

    - ``cosine``: half a cosine from the peak to zero at the end of training (Loshchilov and Hutter 2017,
      arXiv:1608.03983, without restarts);
    - ``linear``: a line from the peak to zero at the end of training;
    - ``step``: times ``decay_factor`` at each of ``decay_epochs``, counted from the start of training.
    """
    peak, warmup = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
    remaining = max(config.epochs * steps_per_epoch - warmup, 1)
    boundaries = jnp.array([round(epoch * steps_per_epoch) for epoch in config.decay_epochs], jnp.int32)

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step)
        progress = jnp.clip((step - warmup) / remaining, 0.0, 1.0)
        if config.schedule == 'cosine':
            rate = peak * (1 + jnp.cos(jnp.pi * progress)) / 2
        elif config.schedule == 'linear':
            rate = peak * (1 - progress)
        else:
            rate = peak * config.decay_factor ** jnp.sum(step >= boundaries)
        return jnp.where(step < warmup, peak * (step + 1) / max(warmup, 1), rate)

    return schedule


def weight_decay_mask(params: Any, decayed: str) -> Any:
    """Which parameters decay: a tree of bools like ``params``.

    Args:
      params: the network's parameters; only their paths are read.
      decayed: ``'all'``, as in the original papers, or ``'kernels'``: neither biases nor normalization scales
        (He et al. 2018, arXiv:1812.01187, section 3.1).

    Raises:
      ValueError: a parameter that no rule knows.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = path[-1].key
        if name not in ('kernel', 'scale', 'bias', 'v', 'tau'):
            raise ValueError(f'no weight-decay rule for the parameter {jax.tree_util.keystr(path)}')
        return decayed == 'all' or name == 'kernel'

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of a configuration, computed as PyTorch's of the same name.

    - ``sgd``: ``v ← momentum v + (gradient + weight_decay w)``, ``w ← w - learning_rate v`` (Nesterov: ``gradient +
      momentum v`` in place of ``v``). The decay goes through the momentum and is scaled by the learning rate.
    - ``adam``: Kingma and Ba 2014 (arXiv:1412.6980), decays 0.9 and 0.999, ε 1e-8, of ``gradient + weight_decay w``.
    - ``adamw``: the same of the gradient alone, and ``w ← w - learning_rate weight_decay w`` beside it (Loshchilov and
      Hutter 2019, arXiv:1711.05101).

    The last linear layer may have a learning rate of its own. Frozen parameters have neither momentum nor decay.
    """
    rate = learning_rate_schedule(config, steps_per_epoch)
    decay = optax.add_decayed_weights(config.weight_decay, lambda params: weight_decay_mask(params, config.decayed))
    first, second = {
        'sgd': (decay, optax.trace(config.momentum, config.nesterov)),
        'adam': (decay, optax.scale_by_adam()),
        'adamw': (optax.scale_by_adam(), decay),
    }[config.optimizer]
    scale = [optax.scale_by_learning_rate(rate)]
    if config.head_learning_rate is not None:
        ratio = config.head_learning_rate / config.learning_rate
        scale.insert(0, optax.masked(optax.scale(ratio), head_parameters))
    # Checkpoints hold the state of this very nesting.
    optimizer = optax.chain(first, optax.chain(second, *scale))
    if config.freeze is None:
        return optimizer
    pattern = config.freeze

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda frozen: 'frozen' if frozen else 'trained', frozen_parameters(params, pattern))

    return optax.partition({'frozen': optax.set_to_zero(), 'trained': optimizer}, labels)


def head_parameters(params: Any) -> Any:
    """Which parameters are those of the last linear layer: a tree of bools like ``params``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == 'head', params)


def frozen_parameters(params: Any, pattern: str) -> Any:
    """Which parameters stay as they are: a tree of bools like ``params``.

    Args:
      params: the network's parameters; only their paths are read.
      pattern: a regular expression that matches the beginning of their paths, such as ``stem|stage[1-3]``.

    Raises:
      InputError: it matches no parameter, or all of them.
    """
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: re.match(pattern, jax.tree_util.keystr(path, simple=True, separator='/')) is not None, params
    )
    found = jax.tree.leaves(frozen)
    if not any(found) or all(found):
        which = 'all parameters' if any(found) else 'none of the parameters'
        raise InputError(f'freeze={pattern!r} matches {which}; their paths begin with: {", ".join(sorted(params))}')
    return frozen
