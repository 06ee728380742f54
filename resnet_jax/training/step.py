"""One step of training and of evaluation: pure functions, without sharding, input or output."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from resnet_jax.errors import InputError
from resnet_jax.models.scanned import split_blocks
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import get_task
from resnet_jax.training.config import Averaging, Distillation, TrainConfig

MULTICLASS = get_task()
# ``loss(outputs, batch)`` or, with an average, ``loss(outputs, batch, averaged)``: see ``loss_fn``.
OwnLoss = Callable[..., jax.Array]


@struct.dataclass
class TrainState:
    """What training changes: plain data, no functions inside, so equal shapes never compile twice.

    Attributes:
      step: int32 scalar, the steps taken.
      params: the network's parameters, float32.
      batch_stats: its running statistics, float32.
      opt_state: the optimizer's slots.
      average: exponential moving average, ``{'params': …, 'batch_stats': …}``, or None where none is kept.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes in training."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes in evaluation: the average, where there is one."""
        return self.variables if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is taken, beyond network, optimizer and task; the settings are those of ``TrainConfig``.

    Attributes:
      accumulation_steps: parts of the batch, one after the other.
      sam_rho: radius of sharpness-aware minimization, 0 for none.
      averaging: of parameters and statistics; None for none.
      distillation: its weight and temperature count where a batch has a teacher's outputs.
      log_norms: give norms of every layer.
      freeze: regular expression on the beginning of the paths of parameters that have no gradient; None for none.
    """

    accumulation_steps: int = 1
    sam_rho: float = 0.0
    averaging: Averaging | None = None
    distillation: Distillation | None = None
    log_norms: bool = False
    freeze: str | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> 'StepOptions':
        """Those of a configuration."""
        return cls(
            config.execution.accumulation_steps,
            getattr(config.optimizer, 'sam_rho', 0.0),
            config.averaging,
            config.distillation,
            config.reporting.log_norms,
            config.start.freeze,
        )


PLAIN = StepOptions()


def create_train_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, average: bool = False
) -> TrainState:
    """The state before the first step, from ``init_variables`` or loaded weights; ``average`` keeps one of them."""
    params, batch_stats = variables['params'], variables['batch_stats']
    # Copies: a step may be given the state's memory to write the next one to, each buffer once.
    start = {'params': jax.tree.map(jnp.copy, params), 'batch_stats': jax.tree.map(jnp.copy, batch_stats)}
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, batch_stats, optimizer.init(params), start if average else None)


def loss_fn(
    params: Any,
    batch_stats: Any,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    task: Task = MULTICLASS,
    loss: OwnLoss | None = None,
    key: jax.Array | None = None,
    options: StepOptions = PLAIN,
    average: Any = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """Mean loss of a batch, as ``jax.value_and_grad(..., has_aux=True)`` takes it.

    Args:
      params: parameters, with respect to which the gradient is taken.
      batch_stats: running statistics before the step.
      batch: ``image`` float ``[N, H, W, C]``, normalized, or ``[N, V, H, W, C]``, V views of each, and ``label``, for
        classes int32 ``[N]``, else as the task says, which may need none; ``target`` from ``task.dense_targets``,
        mixed, is what the loss takes if it is there; ``teacher``, a teacher's outputs ``[N, K]``, has
        ``options.distillation.distill_weight`` of the loss if it is there.
      model: the network; all of its outputs may be a tree where ``loss`` knows it.
      task: what it is trained for.
      loss: a loss in place of the task's, ``loss(outputs, batch)``, where an average is kept ``loss(outputs, batch,
        averaged)``: outputs of the network and of the average (its running statistics normalize it, and no gradient
        goes through it), ``[N, …]``, of V views ``[N, V, …]``. It gives the loss of each example, ``[N]``, or one. Of
        the batch it may look at whatever is there; ``label`` need not be.
      key: of what the network drops at random; a network that drops nothing needs none.
      options: of which those of the distillation and ``freeze`` count.
      average: ``TrainState.average``, for such a loss.

    Returns:
      The loss, float32, and ``(sums for metrics, running statistics after the step)``. Weight decay is the
      optimizer's and not in the loss.
    """
    images = batch['image']
    if images.ndim == 5 and loss is None:
        raise InputError(f'{images.shape[1]} views of each image need a loss that knows of them')
    flat = images.reshape(-1, *images.shape[-3:])
    variables = {'params': _without_gradient(params, options.freeze), 'batch_stats': batch_stats}
    rngs = {} if key is None else {'dropout': key}
    outputs, updates = model.apply(variables, flat, train=True, mutable=['batch_stats'], rngs=rngs)
    new_stats = updates.get('batch_stats', batch_stats)
    if loss is not None:
        arguments = [_by_view(outputs, images), batch]
        if average is not None:
            averaged = jax.lax.stop_gradient(model.apply(average, flat, train=False))
            arguments.append(_by_view(averaged, images))
        losses = jnp.broadcast_to(loss(*arguments), len(images)).astype(jnp.float32)
        return losses.mean(), ({'loss': losses.sum(), 'count': jnp.asarray(len(images))}, new_stats)
    labels = _labels(batch, task)
    targets = batch['target'] if 'target' in batch else task.dense_targets(outputs, labels)
    losses = task.training_loss()(outputs, targets)
    if 'teacher' in batch:
        how = options.distillation or Distillation('')
        taught = task.distillation_loss(how.distill_temperature)(outputs, batch['teacher'])
        losses = (1 - how.distill_weight) * losses + how.distill_weight * taught
    sums = task.sums(losses, outputs, labels, jnp.ones(losses.shape, bool))
    return losses.mean(), (sums, new_stats)


def _labels(batch: dict[str, jax.Array], task: Task) -> Any:
    """Targets as they are stored; None where there are none and the task needs none."""
    return batch['label'] if task.needs_targets else batch.get('label')


def _by_view(outputs: Any, images: jax.Array) -> Any:
    """Outputs of all views, ``[N V, …]``, as ``[N, V, …]``; of one as they are."""
    if images.ndim == 4:
        return outputs
    return jax.tree.map(lambda leaf: leaf.reshape(*images.shape[:2], *leaf.shape[1:]), outputs)


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    task: Task = MULTICLASS,
    loss: OwnLoss | None = None,
    key: jax.Array | None = None,
    options: StepOptions = PLAIN,
) -> tuple[TrainState, dict[str, Any]]:
    """One update of parameters, statistics, optimizer and average.

    Where the loss or a gradient is not finite, all of them stay as they were, and only the step is counted: by
    ``state.step`` and by the learning-rate schedule.

    Args:
      state: before the step.
      batch: as in ``loss_fn``; N must be a multiple of ``options.accumulation_steps``.
      model: the network.
      optimizer: the one that made ``state.opt_state``.
      task: as in ``loss_fn``.
      loss: likewise.
      key: likewise.
      options: how the step is taken.

    Returns:
      The state after the step, and: the task's sums over the batch, of a loss of one's own ``loss`` and ``count``, zero
      if the step was skipped; ``skipped``, int32 0 or 1; ``gradient_norm``, float32, of all gradients together, before
      any clipping; and on request ``norms``, for each layer by its path float32 ``[3]``: of its parameters, their
      gradients, and their updates.

    Raises:
      InputError: targets that do not belong to the network's outputs.
    """
    loss_of = functools.partial(loss_fn, model=model, task=task, loss=loss, options=options, average=state.average)
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
    if options.accumulation_steps > 1:
        gradient_of = _accumulated(gradient_of, options.accumulation_steps)
    (_, (sums, batch_stats)), gradients = gradient_of(state.params, state.batch_stats, batch, key=key)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums['loss'])
    if options.sam_rho:
        ascent = options.sam_rho / jnp.maximum(norm, 1e-12)
        uphill = jax.tree.map(lambda w, g: w + ascent * g, state.params, gradients)
        _, gradients = gradient_of(uphill, state.batch_stats, batch, key=key)
        finite &= jnp.isfinite(optax.tree.norm(gradients))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state)
    if options.averaging is not None:
        new = dataclasses.replace(new, average=_averaged(state, new, options.averaging))
    sums = {name: jnp.where(finite, value, jnp.zeros_like(value)) for name, value in sums.items()}
    sums |= {'skipped': 1 - finite.astype(jnp.int32), 'gradient_norm': norm}
    if options.log_norms:
        sums['norms'] = _layer_norms(state.params, gradients, updates)
    return _select(finite, new, state), sums


def _accumulated(gradient_of: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """The same function over a batch in so many parts, one after the other."""

    def accumulated(params: Any, batch_stats: Any, batch: dict[str, jax.Array], *, key: jax.Array | None) -> Any:
        # Every parts-th example is in a part, so that each device has its share of every part.
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

        def accumulate(carry: tuple[Any, Any], numbered: tuple[jax.Array, Any]) -> tuple[tuple[Any, Any], Any]:
            batch_stats, total = carry
            index, part = numbered
            part_key = None if key is None else jax.random.fold_in(key, index)
            (_, (sums, batch_stats)), gradients = gradient_of(params, batch_stats, part, key=part_key)
            return (batch_stats, jax.tree.map(jnp.add, total, gradients)), sums

        start = batch_stats, jax.tree.map(jnp.zeros_like, params)
        (batch_stats, total), sums = jax.lax.scan(accumulate, start, (jnp.arange(parts), split))
        sums = jax.tree.map(lambda x: x.sum(0), sums)
        return (sums['loss'], (sums, batch_stats)), jax.tree.map(lambda x: x / parts, total)

    return accumulated


def _without_gradient(params: Any, pattern: str | None) -> Any:
    """The parameters, those that a pattern matches as constants: what leads to them alone is not computed."""
    if pattern is None:
        return params

    def freeze(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return jax.lax.stop_gradient(leaf) if re.match(pattern, name) else leaf

    return jax.tree_util.tree_map_with_path(freeze, params)


def _averaged(old: TrainState, new: TrainState, averaging: Averaging) -> dict[str, Any]:
    """The average after a step: ``decay average + (1 - decay) new`` at every ``ema_every_steps``-th.

    Statistics that are estimated again before each evaluation stay what they are.
    """
    every, decay = averaging.ema_every_steps, jnp.float32(averaging.ema_decay)
    if averaging.ema_warmup:
        updates = (new.step // every).astype(jnp.float32)
        decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    share = jnp.where(new.step % every == 0, 1 - decay, 0.0)
    followed = new.variables
    if averaging.reestimate_examples:
        followed = followed | {'batch_stats': old.average['batch_stats']}
    return jax.tree.map(lambda average, now: average + share * (now - average), old.average, followed)


def _select(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """The new state, or the old one but for what counts steps."""

    def counts(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def choose(now: Any, before: Any) -> Any:
        return now if counts(now) else jnp.where(finite, now, before)

    return dataclasses.replace(jax.tree.map(choose, new, old, is_leaf=counts), step=new.step)


def _layer_norms(params: Any, gradients: Any, updates: Any) -> dict[str, jax.Array]:
    """``{'stage1_block1/conv1': [parameters, gradients, updates]}``, the norms over what a layer holds.

    Layers of blocks that are stacked for a loop are told apart.
    """
    squares: dict[str, list[jax.Array]] = {}
    trees = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (params, gradients, updates))
    for leaves in zip(*trees, strict=True):
        path = jax.tree_util.keystr(leaves[0][0], simple=True, separator='/')
        parts = [split_blocks(path, leaf) for _, leaf in leaves]
        for name in parts[0]:
            layer = name.rpartition('/')[0]
            squares.setdefault(layer, []).append(jnp.stack([jnp.sum(jnp.square(part[name])) for part in parts]))
    return {layer: jnp.sqrt(sum(parts)) for layer, parts in squares.items()}


def eval_step(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    task: Task = MULTICLASS,
    flip: bool = False,
    shift: int = 0,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sums over a batch with the running statistics, and the network's outputs.

    With ``flip`` or ``shift`` these are means over several views of each image.

    Args:
      variables: ``params`` and ``batch_stats``.
      batch: as in ``loss_fn``, with ``mask`` bool ``[N]``, False for filling.
      model: the network.
      task: as in ``loss_fn``.
      flip: each view also mirrored left to right.
      shift: views moved so many pixels to the upper left and to the lower right, beside the image as it is; borders are
        filled by reflection.

    Returns:
      The task's sums, those for evaluations included, and outputs float32 ``[N, K]``.
    """

    def outputs(images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    views = _views(batch['image'], flip, shift)
    # A loop, in which the network is compiled once.
    logits = outputs(views[0]) if len(views) == 1 else jnp.mean(jax.lax.map(outputs, jnp.stack(views)), axis=0)
    targets, mask = _labels(batch, task), batch['mask']
    sums = task.sums(task.losses(logits, targets), logits, targets, mask)
    return sums | task.eval_sums(logits, targets, mask), logits


def _views(images: jax.Array, flip: bool, shift: int) -> list[jax.Array]:
    """Images ``[N, H, W, C]`` as they are, moved to the lower right and to the upper left, and each mirrored."""
    views = [images]
    if shift:
        _, height, width, _ = images.shape
        padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode='reflect')
        views += [padded[:, start : start + height, start : start + width] for start in (0, 2 * shift)]
    if flip:
        views += [view[:, :, ::-1] for view in views]
    return views
