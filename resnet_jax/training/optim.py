"""Learning-rate schedules and optimizers, from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

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
        if name not in ('kernel', 'scale', 'bias'):
            raise ValueError(f'no weight-decay rule for the parameter {jax.tree_util.keystr(path)}')
        return decayed == 'all' or name == 'kernel'

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum and L2 weight decay, as PyTorch's SGD computes it.

    ``v ← momentum v + (gradient + weight_decay w)``, ``w ← w - learning_rate v`` (Nesterov: ``gradient + momentum v``
    in place of ``v``). The decay goes through the momentum and is scaled by the learning rate.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, lambda params: weight_decay_mask(params, config.decayed)),
        optax.sgd(learning_rate_schedule(config, steps_per_epoch), config.momentum, config.nesterov),
    )
