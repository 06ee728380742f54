"""One step of training and of evaluation: pure functions, without sharding, input or output."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from resnet_jax.training.tasks import MultiClass, Task

MULTICLASS = MultiClass()


@struct.dataclass
class TrainState:
    """What training changes: plain data, no functions inside, so equal shapes never compile twice.

    Attributes:
      step: int32 scalar, the steps taken.
      params: the network's parameters, float32.
      batch_stats: its running statistics, float32.
      opt_state: the optimizer's slots.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {'params': self.params, 'batch_stats': self.batch_stats}


def create_train_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, from ``init_variables`` or loaded weights."""
    params = variables['params']
    return TrainState(jnp.zeros((), jnp.int32), params, variables['batch_stats'], optimizer.init(params))


def loss_fn(
    params: Any,
    batch_stats: Any,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    task: Task = MULTICLASS,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """Mean loss of a batch, as ``jax.value_and_grad(..., has_aux=True)`` takes it.

    Args:
      params: parameters, with respect to which the gradient is taken.
      batch_stats: running statistics before the step.
      batch: ``image`` float ``[N, H, W, C]``, normalized, and ``label``, for classes int32 ``[N]``, else as the task
        says; ``target`` from ``task.dense_targets``, mixed, is what the loss takes if it is there.
      model: the network.
      task: what it is trained for.
      key: of what the network drops at random; a network that drops nothing needs none.

    Returns:
      The loss, float32, and ``(sums for metrics, running statistics after the step)``. Weight decay is the
      optimizer's and not in the loss.
    """
    variables = {'params': params, 'batch_stats': batch_stats}
    rngs = {} if key is None else {'dropout': key}
    logits, updates = model.apply(variables, batch['image'], train=True, mutable=['batch_stats'], rngs=rngs)
    if 'target' in batch:
        losses = task.dense_losses(logits, batch['target'], smooth=True)
    else:
        losses = task.losses(logits, batch['label'], smooth=True)
    sums = task.sums(losses, logits, batch['label'], jnp.ones(losses.shape, bool))
    return losses.mean(), (sums, updates.get('batch_stats', batch_stats))


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    task: Task = MULTICLASS,
    key: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of parameters, statistics and optimizer.

    Args:
      state: before the step.
      batch: as in ``loss_fn``.
      model: the network.
      optimizer: the one that made ``state.opt_state``.
      task: as in ``loss_fn``.
      key: as in ``loss_fn``.

    Returns:
      The state after the step, and the task's sums over the batch.

    Raises:
      InputError: targets that do not belong to the network's outputs.
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (_, (sums, batch_stats)), gradients = gradient_fn(
        state.params, state.batch_stats, batch, model=model, task=task, key=key
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), sums


def eval_step(
    variables: dict[str, Any], batch: dict[str, jax.Array], *, model: nn.Module, task: Task = MULTICLASS
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over a batch with the running statistics, and the network's outputs.

    Args:
      variables: ``params`` and ``batch_stats``.
      batch: as in ``loss_fn``, with ``mask`` bool ``[N]``, False for filling.
      model: the network.
      task: as in ``loss_fn``.

    Returns:
      The task's sums, those for evaluations included, and outputs float32 ``[N, K]``.
    """
    logits: Any = model.apply(variables, batch['image'], train=False)
    targets, mask = batch['label'], batch['mask']
    sums = task.sums(task.losses(logits, targets), logits, targets, mask)
    return sums | task.eval_sums(logits, targets, mask), logits
