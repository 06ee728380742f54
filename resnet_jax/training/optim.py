"""Learning-rate schedules and optimizers, from optax."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.errors import InputError
from resnet_jax.training.recipes import TrainConfig


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
    """Stochastic gradient descent with momentum and L2 weight decay, as PyTorch's SGD computes it.

    ``v ← momentum v + (gradient + weight_decay w)``, ``w ← w - learning_rate v`` (Nesterov: ``gradient + momentum v``
    in place of ``v``). The decay goes through the momentum and is scaled by the learning rate. Frozen parameters have
    neither momentum nor decay.
    """
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay, lambda params: weight_decay_mask(params, config.decayed)),
        optax.sgd(learning_rate_schedule(config, steps_per_epoch), config.momentum, config.nesterov),
    )
    if config.freeze is None:
        return optimizer
    pattern = config.freeze

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda frozen: 'frozen' if frozen else 'trained', frozen_parameters(params, pattern))

    return optax.partition({'frozen': optax.set_to_zero(), 'trained': optimizer}, labels)


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
