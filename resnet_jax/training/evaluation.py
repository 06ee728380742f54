"""Scoring a network on every example of a split."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.data.augment import normalize
from resnet_jax.data.batches import eval_batches
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.models.resnet import ResNet, stack_blocks
from resnet_jax.training import metrics
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.sharding import data_mesh, replicated, split_batch
from resnet_jax.training.step import MULTICLASS, eval_step
from resnet_jax.training.tasks import TASKS, Regression, Task

_EVAL_BATCH = 512


def target_statistics(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the values to learn, in training; empty where the targets are no values."""
    if dataset.task != 'regression':
        return (), ()
    values = dataset.train.labels.astype(np.float64)
    std = values.std(0)
    return tuple(values.mean(0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def make_task(config: TrainConfig, target_mean: Sequence[float], target_std: Sequence[float]) -> Task:
    """The task of a configuration; mean and deviation are those of ``target_statistics``."""
    loss = config.loss or ''
    if config.task == 'regression':
        return Regression(loss, mean=tuple(target_mean), std=tuple(target_std))
    return TASKS[config.task](loss, config.label_smoothing, config.target_threshold)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network makes of the examples of a split.

    Attributes:
      summary: metrics by name.
      total: the sums they come from.
      outputs: of the network, float32 ``[N, K]``, where the task or the caller needs them.
    """

    summary: dict[str, float]
    total: dict[str, Any]
    outputs: np.ndarray | None


def make_evaluator(
    model: ResNet,
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    devices: Sequence[jax.Device] | None = None,
    task: Task = MULTICLASS,
    keep_outputs: bool = False,
) -> Callable[[dict[str, Any]], Evaluation]:
    """A function that scores variables on every example of a split.

    Args:
      model: the network.
      split: images uint8 and labels.
      mean: of the network's training images, one for each channel.
      std: likewise.
      devices: None is all of them.
      task: what the network was trained for.
      keep_outputs: bring the outputs to the host though the task's metrics do not need them.

    Returns:
      ``variables -> Evaluation`` of the split.
    """
    mesh = data_mesh(devices)
    images, labels = jax.device_put((split.images, split.labels), replicated(mesh))
    batch_size = min(_EVAL_BATCH, len(split))
    batch_size += -batch_size % mesh.size

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def program(variables: Any, images: jax.Array, labels: jax.Array, indices: jax.Array, mask: jax.Array) -> Any:
        batch = {'image': normalize(images[indices], mean, std), 'label': labels[indices], 'mask': mask}
        sums, outputs = eval_step(variables, batch, model=model, task=task)
        return sums, outputs if keep_outputs or task.needs_outputs else ()

    def evaluate(variables: dict[str, Any]) -> Evaluation:
        if model.scan_blocks:
            variables = stack_blocks(variables)
        batches = jax.device_put(list(eval_batches(len(split), batch_size)), split_batch(mesh))
        results = [program(variables, images, labels, *batch) for batch in batches]
        total = metrics.add_up(sums for sums, _ in results)
        if total['count'] != len(split):
            raise AssertionError(f'evaluated {total["count"]} of {len(split)} examples')
        summary, outputs = task.summarize(total), None
        if keep_outputs or task.needs_outputs:
            outputs = np.concatenate(jax.device_get([part for _, part in results]))[: len(split)]
            if np.isfinite(outputs).all():
                summary |= task.scores(outputs, split.labels)
        return Evaluation(summary, total, outputs)

    return evaluate
