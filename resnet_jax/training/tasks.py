"""What a network is trained for: the size of its head, its loss, its metrics, what its outputs mean.

A task is plain data that can be hashed, so that a jitted step may close over it. Targets are arrays whose shapes the
task knows; one that does not fit is explained before anything is computed with it.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.training import losses, metrics


@dataclasses.dataclass(frozen=True)
class Task:
    """What the tasks have in common.

    Attributes:
      name: key of TASKS.
      known_losses: names of the losses it can be trained with; the first is the usual one.
      headline: the metric that stands for the others; higher is better.
      loss: one of the known losses; empty is the usual one.
      label_smoothing: share of the target that is spread over all classes, in [0, 1).
      target_threshold: of sigmoids in training: smoothed or mixed targets above it become 1, the others 0. None: none.
      needs_outputs: ``scores`` or the report look at all outputs.
    """

    name: ClassVar[str]
    known_losses: ClassVar[tuple[str, ...]]
    headline: ClassVar[str]
    needs_outputs: ClassVar[bool] = True
    loss: str = ''
    label_smoothing: float = 0.0
    target_threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'loss', self.loss or self.known_losses[0])
        if self.loss not in self.known_losses:
            raise InputError(f'loss={self.loss!r} must be one of {", ".join(self.known_losses)} for task={self.name}')
        if self.target_threshold is not None and self.loss != 'sigmoid_cross_entropy':
            raise InputError(f'target_threshold={self.target_threshold} is for sigmoid_cross_entropy, not {self.loss}')

    @staticmethod
    def num_outputs(num_targets: int) -> int:
        """Size of the head for so many classes, labels or values."""
        return num_targets

    def losses(self, outputs: jax.Array, targets: jax.Array, smooth: bool = False) -> jax.Array:
        """Loss of each example, float32 ``[N]``; labels are smoothed in training alone, where ``smooth`` is set.

        Raises:
          InputError: targets that do not belong to such outputs.
        """
        return self.dense_losses(outputs, self.dense_targets(outputs, targets), smooth)

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Targets as float32 of the outputs' shape ``[N, K]``, which may be mixed; of the outputs only that is read.

        Raises:
          InputError: targets that do not belong to such outputs.
        """
        raise NotImplementedError

    def dense_losses(self, outputs: jax.Array, targets: jax.Array, smooth: bool = False) -> jax.Array:
        """As ``losses``, of targets from ``dense_targets``."""
        raise NotImplementedError

    def teacher_losses(self, outputs: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
        """Distance from a teacher's outputs ``[N, K]``, float32 ``[N]``; the gradient does not reach the teacher."""
        raise NotImplementedError

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums over the examples whose mask is set, from which ``summarize`` makes metrics."""
        raise NotImplementedError

    def eval_sums(self, outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """More sums, which are of use in an evaluation alone."""
        del outputs, targets, mask
        return {}

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """Metrics from the sums of ``metrics.add_up``: ``loss``, the headline, others."""
        raise NotImplementedError

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Metrics that need all outputs at once, ``[N, K]``; empty where there are none."""
        del outputs, targets
        return {}

    def meaning(self, outputs: jax.Array) -> jax.Array:
        """What the outputs mean, float32 ``[N, K]``: probabilities, or values in the targets' units."""
        raise NotImplementedError

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """As ``meaning``, on the host."""
        return np.asarray(self.meaning(jnp.asarray(outputs)))


class MultiClass(Task):
    """One of K classes: targets are integers ``[N]`` in [0, K), outputs logits ``[N, K]``."""

    name = 'multiclass'
    needs_outputs = False
    known_losses = ('softmax_cross_entropy', 'sigmoid_cross_entropy')
    headline = 'accuracy'

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """As in Task: one-hot, and NaN for a label that is no class."""
        if targets.shape == outputs.shape:
            raise _misfit(self, outputs, targets, 'one integer for each example, [N]: labels.argmax(-1) of a one-hot')
        _check_rank_and_number(self, outputs, targets, 1, 'one integer for each example, [N]')
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            raise _misfit(self, outputs, targets, 'integers: labels.astype(int)')
        known = (targets >= 0) & (targets < outputs.shape[-1])
        return jnp.where(known[:, None], jax.nn.one_hot(targets, outputs.shape[-1]), jnp.nan)

    def dense_losses(self, outputs: jax.Array, targets: jax.Array, smooth: bool = False) -> jax.Array:
        """As in Task."""
        smoothing = self.label_smoothing if smooth else 0.0
        if self.loss == 'softmax_cross_entropy':
            return losses.soft_cross_entropy(outputs, targets, smoothing)
        # Over K classes a share goes to each K-th, with sigmoids as with softmax.
        spread = (1 - smoothing) * targets + smoothing / outputs.shape[-1]
        return losses.sigmoid_cross_entropy(outputs, spread, threshold=self.target_threshold if smooth else None)

    def teacher_losses(self, outputs: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
        """As in Task: ``losses.distillation`` between softmaxes, or between sigmoids where those are trained."""
        return losses.distillation(outputs, taught, temperature, sigmoids=self.loss == 'sigmoid_cross_entropy')

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """As in Task."""
        return metrics.classification_sums(example_losses, outputs, targets, mask)

    def eval_sums(self, outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """``confusion``, int32 ``[K, K]``."""
        return {'confusion': metrics.confusion_matrix(outputs, targets, mask)}

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """``loss``, ``accuracy``, ``top5_accuracy``; of an evaluation also ``precision``, ``recall``, ``f1``.

        The last three are means over the classes that are true or predicted somewhere (macro averages).
        """
        count = int(total['count'])
        summary = {
            'loss': float(total['loss'] / count),
            'accuracy': float(total['correct'] / count),
            'top5_accuracy': float(total['correct_top5'] / count),
        }
        if (confusion := total.get('confusion')) is not None:
            hits, actual, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
            seen = actual + predicted > 0
            wrong = (predicted - hits)[seen], (actual - hits)[seen]
            summary |= metrics.precision_recall_f1(hits[seen], *wrong)
        return summary

    def meaning(self, outputs: jax.Array) -> jax.Array:
        """Probabilities ``[N, K]`` that sum to 1, or independent ones if the network was trained with sigmoids."""
        return jax.nn.sigmoid(outputs) if self.loss == 'sigmoid_cross_entropy' else jax.nn.softmax(outputs)


class MultiLabel(Task):
    """Any number of K labels: targets are 0 or 1, ``[N, K]``, outputs logits ``[N, K]``."""

    name = 'multilabel'
    known_losses = ('sigmoid_cross_entropy',)
    headline = 'accuracy'

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """As in Task."""
        return self._columns(outputs, targets).astype(jnp.float32)

    def dense_losses(self, outputs: jax.Array, targets: jax.Array, smooth: bool = False) -> jax.Array:
        """As in Task."""
        if not smooth:
            return losses.sigmoid_cross_entropy(outputs, targets)
        return losses.sigmoid_cross_entropy(outputs, targets, self.label_smoothing, self.target_threshold)

    def teacher_losses(self, outputs: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
        """As in Task: ``losses.distillation`` between sigmoids."""
        return losses.distillation(outputs, taught, temperature, sigmoids=True)

    def _columns(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Targets ``[N, K]``, whose shape is the outputs'."""
        if targets.shape != outputs.shape:
            raise _misfit(self, outputs, targets, 'as many columns of 0 and 1 as the network has outputs, [N, K]')
        return targets

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """As in Task."""
        return metrics.label_sums(example_losses, outputs, self._columns(outputs, targets), mask)

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """``loss``, ``accuracy`` over examples and labels, ``precision``, ``recall``, ``f1`` as means over labels."""
        count, hits = int(total['count']), total['true_positives']
        right = (hits + total['true_negatives']) / count
        ratios = metrics.precision_recall_f1(hits, total['false_positives'], total['false_negatives'])
        return {'loss': float(total['loss'] / count), 'accuracy': float(right.mean())} | ratios

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """``roc_auc`` and ``average_precision``, averaged over the labels."""
        return metrics.ranking_scores(targets.reshape(outputs.shape), outputs)

    def meaning(self, outputs: jax.Array) -> jax.Array:
        """The probability of each label, ``[N, K]``."""
        return jax.nn.sigmoid(outputs)


class Binary(MultiLabel):
    """Yes or no: targets are integers ``[N]``, 0 or 1, outputs one logit each, ``[N, 1]``, of the second class."""

    name = 'binary'

    @staticmethod
    def num_outputs(num_targets: int) -> int:
        """1."""
        del num_targets
        return 1

    def _columns(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        if outputs.shape[-1] != 1:
            raise _misfit(self, outputs, targets, 'a network with one output: num_classes=1')
        _check_rank_and_number(self, outputs, targets, 1, '0 or 1 for each example, [N]')
        return targets[:, None]


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """D numbers: targets are floats ``[N, D]`` in any units, outputs ``[N, D]`` in standard deviations of them.

    Attributes:
      mean: of the targets, one for each of the D.
      std: likewise.
    """

    name = 'regression'
    known_losses = ('squared_error', 'absolute_error')
    headline = 'r2'
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def dense_losses(self, outputs: jax.Array, targets: jax.Array, smooth: bool = False) -> jax.Array:
        """Errors in standard deviations of the targets."""
        del smooth
        function = losses.squared_error if self.loss == 'squared_error' else losses.absolute_error
        return function(outputs, targets)

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Targets in standard deviations from their mean."""
        if targets.shape != outputs.shape:  # [N] and [N, 1] would silently become [N, N]
            advice = ': targets[:, None] makes one' if targets.ndim == 1 else ''
            raise _misfit(self, outputs, targets, f'a column for each output of the network, [N, D]{advice}')
        if len(self.mean) not in (1, outputs.shape[-1]):
            raise _misfit(self, outputs, targets, f'{len(self.mean)} columns, as mean={self.mean}')
        return (targets - jnp.asarray(self.mean)[None]) / jnp.asarray(self.std)[None]

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """As in Task."""
        return metrics.regression_sums(example_losses, outputs, self.dense_targets(outputs, targets), mask)

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """``loss`` in standard deviations; ``r2``; ``mae`` and ``rmse`` in the targets' units, averaged over the D."""
        count, std = int(total['count']), np.asarray(self.std)
        return {
            'loss': float(total['loss'] / count),
            'r2': metrics.r_squared(total),
            'mae': float(np.mean(std * total['absolute_error'] / count)),
            'rmse': float(np.mean(std * np.sqrt(total['squared_error'] / count))),
        }

    def meaning(self, outputs: jax.Array) -> jax.Array:
        """Values ``[N, D]`` in the targets' units."""
        return outputs * jnp.asarray([self.std], jnp.float32) + jnp.asarray([self.mean], jnp.float32)


TASKS: dict[str, type[Task]] = {task.name: task for task in (MultiClass, Binary, MultiLabel, Regression)}


def _check_rank_and_number(task: Task, outputs: jax.Array, targets: jax.Array, rank: int, expected: str) -> None:
    if targets.ndim != rank or len(targets) != len(outputs):
        column = targets.ndim == 2 and targets.shape[1] == 1
        raise _misfit(task, outputs, targets, expected + (': labels[:, 0]' if column else ''))


def _misfit(task: Task, outputs: jax.Array, targets: jax.Array, expected: str) -> InputError:
    return InputError(
        f'task={task.name}: outputs {list(outputs.shape)} and targets {list(targets.shape)} of {targets.dtype} do not'
        f' fit; expected {expected}'
    )
