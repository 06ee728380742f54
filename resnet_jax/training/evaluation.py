"""Evaluation of a network on every example of a split."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.data.augment import normalize
from resnet_jax.data.examples import Split
from resnet_jax.data.feeds import THREAD_READER, ReaderOptions, eval_images
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.devices import data_mesh, replicated
from resnet_jax.errors import InputError
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.scanned import as_computed
from resnet_jax.tasks import metrics
from resnet_jax.tasks.base import Task
from resnet_jax.training.step import MULTICLASS, eval_step

_EVAL_BATCH = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of evaluating a network on a split.

    Attributes:
      summary: metrics by name.
      total: the sums that the metrics are computed from.
      examples: int ``[N]``, indices of the evaluated examples: all except photographs that cannot be decoded.
      outputs: outputs for them, float32 ``[N, K]``; None if neither the task nor the caller needs them.
      targets: their targets; None if not needed, or if there are none.
    """

    summary: dict[str, float]
    total: dict[str, Any]
    examples: np.ndarray
    outputs: np.ndarray | None
    targets: np.ndarray | None


class Evaluator:
    """Evaluates variables on every example of a split.

    Args:
      model: the network.
      split: images and labels.
      mean: mean to normalize images with, one per channel.
      std: standard deviation to normalize images with, one per channel.
      devices: devices to use; None uses all.
      task: the task of the network.
      keep_outputs: return the outputs even if the task's metrics do not need them.
      flip: as in ``step.eval_step``.
      shift: as in ``step.eval_step``.
      preprocessing: preprocessing of photographs; its mean only fills borders, and its std is ignored.
      reader: how photographs are read.
    """

    def __init__(
        self,
        model: ResNet,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        devices: Sequence[jax.Device] | None = None,
        task: Task = MULTICLASS,
        keep_outputs: bool = False,
        flip: bool = False,
        shift: int = 0,
        preprocessing: Preprocessing | None = None,
        reader: ReaderOptions = THREAD_READER,
    ):
        self._model, self._split, self._task = model, split, task
        self._keep = keep_outputs or task.needs_outputs
        mesh = data_mesh(devices)
        self._feed = eval_images(split, mesh, preprocessing, reader)
        self._batch_size = min(_EVAL_BATCH, len(split))
        self._batch_size += -self._batch_size % mesh.size

        def program(variables: Any, shared: Any, given: Any) -> Any:
            images, labels, mask = self._feed.examples(shared, given)
            batch = {'image': normalize(images, mean, std), 'label': labels, 'mask': mask}
            sums, outputs = eval_step(variables, batch, model=model, task=task, flip=flip, shift=shift)
            return sums, mask, (outputs, labels) if self._keep else ()

        self._program = jax.jit(program, out_shardings=replicated(mesh))

    def compile(self, variables: dict[str, Any]) -> None:
        """Compiles for variables of these shapes by evaluating one batch."""
        batch = next(self._feed.batches(self._batch_size))
        jax.block_until_ready(self._program(as_computed(self._model, variables), self._feed.shared, batch))

    def __call__(self, variables: dict[str, Any], poll: Callable[[], None] = lambda: None) -> Evaluation:
        """Evaluates variables; ``poll`` is called after every batch and may raise."""
        masks, parts = [], []

        def sums() -> Iterator[dict[str, Any]]:
            for batch_sums, mask, part in self._results(as_computed(self._model, variables), poll):
                masks.append(mask)
                parts.append(part)
                yield batch_sums

        total = metrics.add_up(sums())
        (examples,) = np.nonzero(np.concatenate(masks))
        if total['count'] != len(examples) or (self._feed.all_there and len(examples) != len(self._split)):
            raise AssertionError(f'evaluated {total["count"]} of {len(self._split)} examples')
        if not len(examples):
            raise InputError(f'no image could be decoded ({len(self._split)} tried)')
        summary, outputs = self._task.summarize(total), None
        targets: Any = None
        if self._keep:
            outputs = np.concatenate([batch_outputs for batch_outputs, _ in parts])[examples]
            if parts[0][1] is not None:
                targets = np.concatenate([batch_targets for _, batch_targets in parts])[examples]
            if np.isfinite(outputs).all():
                summary |= self._task.scores(outputs, targets)
        return Evaluation(summary, total, examples, outputs, targets)

    def _results(self, variables: dict[str, Any], poll: Callable[[], None]) -> Iterator[Any]:
        """Yields the program's results for each batch on the host; at most two batches are on the devices."""
        before = None
        for batch in self._feed.batches(self._batch_size):
            now = self._program(variables, self._feed.shared, batch)
            if before is not None:
                yield jax.device_get(before)
            poll()
            before = now
        yield jax.device_get(before)


class StatisticsEstimator:
    """Recomputes the running statistics of given parameters, as means over batches of training images.

    The images are not augmented and are evenly spaced over the split. Averaged parameters need this because the running
    statistics collected in training belong to other parameters (Izmailov et al. 2018, arXiv:1803.05407, section 3.2).

    Args:
      model: the network.
      split: the split to take images from.
      mean: mean to normalize images with, one per channel.
      std: standard deviation to normalize images with, one per channel.
      num_examples: number of images, rounded down to whole batches of 512; at least one batch.
      devices: devices to use; None uses all.
      preprocessing: as in ``Evaluator``.
      reader: as in ``Evaluator``.
    """

    def __init__(
        self,
        model: ResNet,
        split: Split,
        mean: Sequence[float],
        std: Sequence[float],
        num_examples: int,
        devices: Sequence[jax.Device] | None = None,
        preprocessing: Preprocessing | None = None,
        reader: ReaderOptions = THREAD_READER,
    ):
        mesh = data_mesh(devices)
        num_examples = min(num_examples, len(split))
        # A batch consists of whole ghost batches and is split evenly over the devices.
        multiple = math.lcm(mesh.size, model.statistics if isinstance(model.statistics, int) else 1)
        size = max(min(_EVAL_BATCH, num_examples) // multiple, 1) * multiple
        self._chosen = np.linspace(0, len(split) - 1, max(num_examples // size, 1) * size).astype(np.int32)
        self._batch_size, self._feed = size, eval_images(split, mesh, preprocessing, reader)

        def program(variables: Any, shared: Any, given: Any) -> Any:
            images, _, _ = self._feed.examples(shared, given)
            _, updates = model.apply(
                variables, normalize(images, mean, std), train=True, mutable=['batch_stats'], rngs=_fixed_rngs()
            )

            # Solve new = decay old + (1 - decay) batch for the statistics of the batch; frozen ones do not change.
            def batch_statistics(new: jax.Array, old: jax.Array) -> jax.Array:
                return old + (new - old) / (1 - BatchNorm.decay)

            return jax.tree.map(batch_statistics, updates['batch_stats'], variables['batch_stats'])

        self._program = jax.jit(program, out_shardings=replicated(mesh))

    def compile(self, variables: dict[str, Any]) -> None:
        """Compiles for variables of these shapes by running one batch."""
        jax.block_until_ready(self._program(variables, self._feed.shared, next(self._batches())))

    def _batches(self) -> Iterator[Any]:
        return self._feed.batches(self._batch_size, self._chosen)

    def __call__(self, variables: dict[str, Any], poll: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Returns the variables with recomputed ``batch_stats``; ``poll`` is called after every batch and may raise."""
        found = []
        for batch in self._batches():
            found.append(self._program(variables, self._feed.shared, batch))
            jax.block_until_ready(found[-2:-1])
            poll()
        return variables | {'batch_stats': jax.tree.map(lambda *parts: sum(parts) / len(parts), *found)}


def _fixed_rngs() -> dict[str, jax.Array]:
    """Fixed random keys for dropout, so that the estimate is deterministic."""
    return {'dropout': jax.random.key(0, impl='threefry2x32')}
