"""Scoring a network on every example of a split."""

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
    """What a network makes of the examples of a split.

    Attributes:
      summary: metrics by name.
      total: the sums they come from.
      examples: int ``[N]``, which of the split were scored: all but photographs that cannot be decoded.
      outputs: of the network for them, float32 ``[N, K]``, where the task or the caller needs them.
      targets: theirs, likewise; None, too, where there are none.
    """

    summary: dict[str, float]
    total: dict[str, Any]
    examples: np.ndarray
    outputs: np.ndarray | None
    targets: np.ndarray | None


class Evaluator:
    """Scores variables on every example of a split.

    Args:
      model: the network.
      split: images and labels.
      mean: of the network's training images, one for each channel.
      std: likewise.
      devices: None is all of them.
      task: what the network was trained for.
      keep_outputs: bring the outputs to the host though the task's metrics do not need them.
      flip: as in ``step.eval_step``.
      shift: likewise.
      preprocessing: of photographs; its mean fills borders alone, and its deviation does not count.
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
        self._plain = eval_images(split, mesh, preprocessing, reader)
        self._batch_size = min(_EVAL_BATCH, len(split))
        self._batch_size += -self._batch_size % mesh.size

        def program(variables: Any, shared: Any, given: Any) -> Any:
            images, labels, mask = self._plain.examples(shared, given)
            batch = {'image': normalize(images, mean, std), 'label': labels, 'mask': mask}
            sums, outputs = eval_step(variables, batch, model=model, task=task, flip=flip, shift=shift)
            return sums, mask, (outputs, labels) if self._keep else ()

        self._program = jax.jit(program, out_shardings=replicated(mesh))

    def compile(self, variables: dict[str, Any]) -> None:
        """Compiles for variables of these shapes, by scoring one batch."""
        batch = next(self._plain.batches(self._batch_size))
        jax.block_until_ready(self._program(as_computed(self._model, variables), self._plain.shared, batch))

    def __call__(self, variables: dict[str, Any], poll: Callable[[], None] = lambda: None) -> Evaluation:
        """Scores variables; ``poll`` is called after every batch, and may raise."""
        masks, parts = [], []

        def sums() -> Iterator[dict[str, Any]]:
            for some, mask, part in self._results(as_computed(self._model, variables), poll):
                masks.append(mask)
                parts.append(part)
                yield some

        total = metrics.add_up(sums())
        (examples,) = np.nonzero(np.concatenate(masks))
        if total['count'] != len(examples) or (self._plain.all_there and len(examples) != len(self._split)):
            raise AssertionError(f'evaluated {total["count"]} of {len(self._split)} examples')
        if not len(examples):
            raise InputError(f'none of {len(self._split)} images can be decoded')
        summary, outputs = self._task.summarize(total), None
        targets: Any = None
        if self._keep:
            outputs = np.concatenate([of_batch for of_batch, _ in parts])[examples]
            if parts[0][1] is not None:
                targets = np.concatenate([of_batch for _, of_batch in parts])[examples]
            if np.isfinite(outputs).all():
                summary |= self._task.scores(outputs, targets)
        return Evaluation(summary, total, examples, outputs, targets)

    def _results(self, variables: dict[str, Any], poll: Callable[[], None]) -> Iterator[Any]:
        """What the program gives for each batch, on the host; two batches at most are on the devices."""
        before = None
        for batch in self._plain.batches(self._batch_size):
            now = self._program(variables, self._plain.shared, batch)
            if before is not None:
                yield jax.device_get(before)
            poll()
            before = now
        yield jax.device_get(before)


class StatisticsEstimator:
    """Finds the running statistics of given parameters anew, as means over batches of training images.

    The images are as an evaluation sees them, not augmented, evenly spread over the split. Where averaged parameters
    are evaluated, the statistics of no network that was trained are theirs (Izmailov et al. 2018, arXiv:1803.05407,
    section 3.2).

    Args:
      model: the network.
      split: of which the images are taken.
      mean: of the images, one for each channel.
      std: likewise.
      num_examples: how many; whole batches of 512 of them are taken, at least one batch.
      devices: None is all of them.
      preprocessing: as in ``Evaluator``.
      reader: likewise.
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
        # Of whole ghost batches, and the same number on each device.
        multiple = math.lcm(mesh.size, model.statistics if isinstance(model.statistics, int) else 1)
        size = max(min(_EVAL_BATCH, num_examples) // multiple, 1) * multiple
        self._chosen = np.linspace(0, len(split) - 1, max(num_examples // size, 1) * size).astype(np.int32)
        self._batch_size, self._plain = size, eval_images(split, mesh, preprocessing, reader)

        def program(variables: Any, shared: Any, given: Any) -> Any:
            images, _, _ = self._plain.examples(shared, given)
            _, updates = model.apply(
                variables, normalize(images, mean, std), train=True, mutable=['batch_stats'], rngs=_fixed()
            )

            # new = decay old + (1 - decay) batch; what is frozen stays what it is.
            def of_batch(new: jax.Array, old: jax.Array) -> jax.Array:
                return old + (new - old) / (1 - BatchNorm.decay)

            return jax.tree.map(of_batch, updates['batch_stats'], variables['batch_stats'])

        self._program = jax.jit(program, out_shardings=replicated(mesh))

    def compile(self, variables: dict[str, Any]) -> None:
        """Compiles for variables of these shapes, by looking at one batch."""
        jax.block_until_ready(self._program(variables, self._plain.shared, next(self._batches())))

    def _batches(self) -> Iterator[Any]:
        return self._plain.batches(self._batch_size, self._chosen)

    def __call__(self, variables: dict[str, Any], poll: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The variables with new ``batch_stats``; ``poll`` is called after every batch, and may raise."""
        found = []
        for batch in self._batches():
            found.append(self._program(variables, self._plain.shared, batch))
            jax.block_until_ready(found[-2:-1])
            poll()
        return variables | {'batch_stats': jax.tree.map(lambda *parts: sum(parts) / len(parts), *found)}


def _fixed() -> dict[str, jax.Array]:
    """Randomness of what a network drops in training, the same every time."""
    return {'dropout': jax.random.key(0)}
