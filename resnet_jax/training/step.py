"""Training and evaluation steps: pure functions without sharding or input and output."""

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

from resnet_jax.models.scanned import split_blocks
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import get_task
from resnet_jax.training import checks
from resnet_jax.training.config import Averaging, Distillation, TrainConfig

MULTICLASS = get_task()
# ``loss(outputs, batch)`` or, with an average, ``loss(outputs, batch, averaged)``; see ``loss_fn``.
CustomLoss = Callable[..., jax.Array]


@struct.dataclass
class TrainState:
    """The training state: plain data without functions, so that equal shapes are compiled only once.

    Attributes:
      step: int32 scalar, number of steps taken.
      params: the network's parameters, float32.
      batch_stats: its running statistics, float32.
      opt_state: state of the optimizer.
      average: exponential moving average, ``{'params': …, 'batch_stats': …}``, or None if none is kept.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for ``model.apply`` in training."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables for ``model.apply`` in evaluation: the average if there is one."""
        return self.variables if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Options of a training step; they are settings of ``TrainConfig``.

    Attributes:
      accumulation_steps: number of parts of the batch that are processed in sequence.
      sam_rho: radius of sharpness-aware minimization; 0 for none.
      averaging: exponential moving average; None for none.
      distillation: weight and temperature, used if the batch has a teacher's outputs.
      log_norms: return norms of every layer.
      freeze: regular expression for the start of paths of parameters without a gradient; None for none.
    """

    accumulation_steps: int = 1
    sam_rho: float = 0.0
    averaging: Averaging | None = None
    distillation: Distillation | None = None
    log_norms: bool = False
    freeze: str | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> 'StepOptions':
        """The options of a configuration."""
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
    """The state before the first step; it shares no array with the variables, so it can be donated.

    Args:
      variables: ``{'params': …, 'batch_stats': …}`` from ``init_variables`` or loaded weights, as dicts or FrozenDicts
        of arrays of JAX or NumPy.
      optimizer: a transformation of optax.
      average: whether to keep an average, which starts as a copy of the variables.

    Raises:
      InputError: the variables have no parameters, or the optimizer is not a transformation.
    """
    params, batch_stats = checks.check_variables(variables)
    checks.check_optimizer(optimizer)
    # Copies, because a donated state must contain neither the caller's arrays nor a buffer twice.
    own = jax.tree.map(jnp.array, {'params': params, 'batch_stats': batch_stats})
    taken = {id(leaf) for leaf in jax.tree.leaves(own)}
    opt_state = jax.tree.map(lambda leaf: jnp.array(leaf) if id(leaf) in taken else leaf, optimizer.init(own['params']))
    start = jax.tree.map(jnp.array, own) if average else None
    return TrainState(jnp.zeros((), jnp.int32), own['params'], own['batch_stats'], opt_state, start)


def loss_fn(
    params: Any,
    batch_stats: Any,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    task: Task = MULTICLASS,
    loss: CustomLoss | None = None,
    key: jax.Array | None = None,
    options: StepOptions = PLAIN,
    average: Any = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """Mean loss of a batch, in the form that ``jax.value_and_grad(..., has_aux=True)`` expects.

    Args:
      params: parameters to differentiate with respect to.
      batch_stats: running statistics before the step.
      batch: ``image``, normalized floats ``[N, H, W, C]``, or ``[N, V, H, W, C]`` for V views of each image; ``label``,
        int32 ``[N]`` for classes, otherwise as the task requires, and optional if the task needs no targets. Optional:
        ``target``, mixed targets from ``task.dense_targets`` that replace those of ``label`` in the loss; ``teacher``,
        a teacher's outputs ``[N, K]``, whose loss has the weight ``options.distillation.distill_weight``.
      model: the network; with a custom ``loss`` its outputs may be a tree.
      task: the task it is trained for.
      loss: custom loss that replaces the task's: ``loss(outputs, batch)``, or ``loss(outputs, batch, averaged)`` if an
        average is kept. ``averaged`` are the average's outputs, computed with its running statistics and without
        gradient. Outputs are ``[N, …]``, or ``[N, V, …]`` for V views. It returns the loss of each example, ``[N]``, or
        a scalar. ``batch`` need not contain ``label``.
      key: random key for dropout; not needed without it.
      options: only ``distillation`` and ``freeze`` are used.
      average: ``TrainState.average``, for a custom loss.

    Returns:
      The loss, float32, and ``(sums for metrics, running statistics after the step)``. The loss does not include weight
      decay, which the optimizer applies.

    Raises:
      InputError: an argument or an entry of the batch is missing or of the wrong kind or shape.
    """
    checks.check_step(model, task, loss, key, batch)
    images = batch['image']
    flat = images.reshape(-1, *images.shape[-3:])
    variables = {'params': _without_gradient(params, options.freeze), 'batch_stats': batch_stats}
    rngs = {} if key is None else {'dropout': key}
    with checks.network_errors():
        outputs, updates = model.apply(variables, flat, train=True, mutable=['batch_stats'], rngs=rngs)
    new_stats = updates.get('batch_stats', batch_stats)
    if loss is not None:
        arguments = [_by_view(outputs, images), batch, *_averaged_outputs(model, average, images)]
        losses = jnp.broadcast_to(loss(*arguments), len(images)).astype(jnp.float32)
        return losses.mean(), ({'loss': losses.sum(), 'count': jnp.asarray(len(images))}, new_stats)
    checks.check_dense(batch, outputs)
    labels = _labels(batch, task)
    targets = batch['target'] if 'target' in batch else task.dense_targets(outputs, labels)
    losses = task.training_loss()(outputs, targets)
    if 'teacher' in batch:
        distillation = options.distillation or Distillation('')
        taught = task.distillation_loss(distillation.distill_temperature)(outputs, batch['teacher'])
        losses = (1 - distillation.distill_weight) * losses + distillation.distill_weight * taught
    sums = task.sums(losses, outputs, labels, jnp.ones(losses.shape, bool))
    return losses.mean(), (sums, new_stats)


def _averaged_outputs(model: nn.Module, average: Any, images: jax.Array) -> list[Any]:
    """The average's outputs, without gradient, in a list that is empty if there is no average."""
    if average is None:
        return []
    outputs = jax.lax.stop_gradient(model.apply(average, images.reshape(-1, *images.shape[-3:]), train=False))
    return [_by_view(outputs, images)]


def _labels(batch: dict[str, jax.Array], task: Task) -> Any:
    """Targets as stored; None if the task needs none and there are none."""
    return batch['label'] if task.needs_targets else batch.get('label')


def _by_view(outputs: Any, images: jax.Array) -> Any:
    """Reshapes outputs of several views from ``[N V, …]`` to ``[N, V, …]``; those of one view are unchanged."""
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
    loss: CustomLoss | None = None,
    key: jax.Array | None = None,
    options: StepOptions = PLAIN,
) -> tuple[TrainState, dict[str, Any]]:
    """Updates parameters, running statistics, optimizer state and average.

    If the loss or a gradient is not finite, all of them keep their values, and only ``state.step`` and the
    learning-rate schedule advance.

    The step is for ``jax.jit``, with a batch that may be sharded. It does not average gradients over devices, so do not
    call it inside ``jax.shard_map`` or ``jax.pmap``.

    Args:
      state: the state before the step.
      batch: as in ``loss_fn``; N must be a multiple of ``options.accumulation_steps``.
      model: the network.
      optimizer: the optimizer that created ``state.opt_state``.
      task: as in ``loss_fn``.
      loss: as in ``loss_fn``.
      key: as in ``loss_fn``.
      options: options of the step.

    Returns:
      The state after the step, and a dict with: the task's sums over the batch (``loss`` and ``count`` for a custom
      loss), zero if the step was skipped; ``skipped``, int32 0 or 1; ``gradient_norm``, float32, the global norm before
      clipping; and with ``log_norms``, ``norms``: float32 ``[3]`` by layer path, the norms of parameters, gradients and
      updates.

    Raises:
      InputError: as in ``loss_fn``; the targets do not fit the outputs; or the state or N does not fit ``options``.
    """
    state = checks.checked_state(state, batch, optimizer, options)
    loss_of = functools.partial(loss_fn, model=model, task=task, loss=loss, options=options, average=state.average)
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
    if options.accumulation_steps > 1:
        gradient_of = _accumulated(gradient_of, options.accumulation_steps)
    (_, (sums, batch_stats)), gradients = gradient_of(state.params, state.batch_stats, batch, key=key)
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums['loss'])
    if options.sam_rho:
        uphill = jax.tree.map(lambda w, g: w + options.sam_rho / jnp.maximum(norm, 1e-12) * g, state.params, gradients)
        _, gradients = gradient_of(uphill, state.batch_stats, batch, key=key)
        finite &= jnp.isfinite(optax.tree.norm(gradients))
    with checks.optimizer_errors(optimizer, state.opt_state, state.params):
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
    """Wraps ``gradient_of`` to process the batch in ``parts`` sequential parts."""

    def accumulated(params: Any, batch_stats: Any, batch: dict[str, jax.Array], *, key: jax.Array | None) -> Any:
        # A part takes every parts-th example, so that each part is spread over all devices.
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
    """The parameters with gradients stopped where the pattern matches, so that they are not computed."""
    if pattern is None:
        return params

    def freeze(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return jax.lax.stop_gradient(leaf) if re.match(pattern, name) else leaf

    return jax.tree_util.tree_map_with_path(freeze, params)


def _averaged(old: TrainState, new: TrainState, averaging: Averaging) -> dict[str, Any]:
    """The average after a step: ``decay average + (1 - decay) new`` every ``ema_every_steps`` steps.

    Running statistics that are recomputed before each evaluation are not updated.
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
    """The new state if finite, otherwise the old one with its step counters advanced."""

    def counts(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def choose(now: Any, before: Any) -> Any:
        return now if counts(now) else jnp.where(finite, now, before)

    return dataclasses.replace(jax.tree.map(choose, new, old, is_leaf=counts), step=new.step)


def _layer_norms(params: Any, gradients: Any, updates: Any) -> dict[str, jax.Array]:
    """Norms per layer: ``{'stage1_block1/conv1': [parameters, gradients, updates]}``.

    Layers of blocks that are stacked for a loop are listed separately.
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
    """Evaluates a batch with the running statistics: sums for metrics, and outputs.

    With ``flip`` or ``shift`` the outputs are averaged over several views of each image.

    Args:
      variables: ``params`` and ``batch_stats``.
      batch: as in ``loss_fn``, with ``mask`` bool ``[N]``, False for padding.
      model: the network.
      task: as in ``loss_fn``.
      flip: also use the mirror image of each view.
      shift: also use views shifted by this many pixels up-left and down-right; borders are filled by reflection.

    Returns:
      The task's sums, including those only for evaluation, and outputs float32 ``[N, K]``.

    Raises:
      InputError: an argument is of the wrong kind, or an entry of the batch is missing or does not fit.
    """
    checks.check_step(model, task)
    checks.check_batch(batch, ('image', 'label', 'mask') if task.needs_targets else ('image', 'mask'))
    variables = dict(zip(('params', 'batch_stats'), checks.check_variables(variables), strict=True))
    checks.check_shift('shift', shift, batch['image'].shape[1:])

    def outputs(images: jax.Array) -> Any:
        with checks.network_errors():
            return model.apply(variables, images, train=False)

    views = _views(batch['image'], flip, shift)
    # In a loop, so that the network is compiled once.
    logits = outputs(views[0]) if len(views) == 1 else jnp.mean(jax.lax.map(outputs, jnp.stack(views)), axis=0)
    targets, mask = _labels(batch, task), batch['mask']
    sums = task.sums(task.losses(logits, targets), logits, targets, mask)
    return sums | task.eval_sums(logits, targets, mask), logits


def _views(images: jax.Array, flip: bool, shift: int) -> list[jax.Array]:
    """The views of images ``[N, H, W, C]``: original, shifted down-right and up-left, and their mirror images."""
    views = [images]
    if shift:
        _, height, width, _ = images.shape
        padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode='reflect')
        views += [padded[:, start : start + height, start : start + width] for start in (0, 2 * shift)]
    if flip:
        views += [view[:, :, ::-1] for view in views]
    return views
