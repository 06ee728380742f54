"""Multilabel classification."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.tasks import baselines, drawing, losses, metrics
from resnet_jax.tasks.base import Evaluated, Loss, Task, check_integers, misfit, numbered
from resnet_jax.tasks.multiclass import ranked_by_probability

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class MultiLabel(Task):
    """Multilabel classification: targets are 0 or 1, ``[N, K]``, outputs are logits ``[N, K]``."""

    name = 'multilabel'
    known_losses = ('sigmoid_cross_entropy',)
    primary_metric = 'accuracy'
    higher_is_better = True
    shown_metrics = ('accuracy', 'average_precision')
    needs_outputs = True
    smoothable = True
    distillable = True
    expected_feature = 'one sequence of classes or one vector of bools'
    _rank: ClassVar[int] = 2  # rank of stored targets

    def check_targets(self, place: str, targets: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
        """As in Task: 0 or 1, integers or bools."""
        if targets.dtype != bool:
            check_integers(place, targets, ' or bool')
        if targets.ndim != self._rank:
            shape = '[N]' if self._rank == 1 else '[N, K]'
            raise InputError(f'{place}: task={self.name} expects labels of shape {shape}, found {targets.shape}')
        if outside := sorted(set(np.unique(targets).tolist()) - {0, 1}):
            raise InputError(f'{place}: task={self.name} expects labels 0 and 1, found {outside[0]}')
        expected = self.num_names or targets.shape[1]
        if names and len(names) != expected:
            raise InputError(f'{place}: expected {expected} names for task={self.name}, found {len(names)}')
        return names or numbered(expected)

    def stored_targets(self, targets: np.ndarray) -> np.ndarray:
        """int32."""
        return targets.astype(np.int32)

    def fitting_features(self, features: dict[str, Any]) -> list[str]:
        """Sequences of classes, and vectors of bools."""
        from tensorflow_datasets import features as tfds_features

        sequences = {key: f for key, f in features.items() if isinstance(f, tfds_features.Sequence)}
        return [key for key, f in sequences.items() if isinstance(f.feature, tfds_features.ClassLabel)] + [
            key
            for key, f in features.items()
            if isinstance(f, tfds_features.Tensor) and len(f.shape) == 1 and f.np_dtype == np.bool_
        ]

    def names_of_shape(self, place: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The column indices."""
        del place
        return numbered(shape[0])

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """As in Task."""
        return self._columns(outputs, targets).astype(jnp.float32)

    def _columns(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Targets in the shape of the outputs, ``[N, K]``."""
        if targets.shape != outputs.shape:
            raise misfit(self, outputs, targets, 'one column of 0 and 1 per output of the network, [N, K]')
        return targets

    def training_loss(self) -> Loss:
        """Cross-entropy with sigmoids."""
        return functools.partial(
            losses.sigmoid_cross_entropy, label_smoothing=self.label_smoothing, threshold=self.target_threshold
        )

    def evaluation_loss(self) -> Loss:
        """As in Task."""
        return losses.sigmoid_cross_entropy

    def distillation_loss(self, temperature: float) -> Loss:
        """As in Task: between sigmoids."""
        return functools.partial(losses.sigmoid_distillation, temperature=temperature)

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """As in Task."""
        return metrics.label_sums(example_losses, outputs, self._columns(outputs, targets), mask)

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """``loss``, ``accuracy`` over examples and labels; ``precision``, ``recall``, ``f1`` averaged over labels."""
        count, hits = int(total['count']), total['true_positives']
        right = (hits + total['true_negatives']) / count
        ratios = metrics.precision_recall_f1(hits, total['false_positives'], total['false_negatives'])
        return {'loss': float(total['loss'] / count), 'accuracy': float(right.mean())} | ratios

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """``roc_auc`` and ``average_precision``, averaged over the labels."""
        return metrics.ranking_scores(targets.reshape(outputs.shape), outputs)

    def decode_outputs(self, outputs: jax.Array) -> jax.Array:
        """The probability of each label, ``[N, K]``."""
        return jax.nn.sigmoid(outputs)

    def in_words(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[Any]:
        """A tuple of the predicted labels of each example."""
        return [tuple(class_names[index] for index in np.flatnonzero(row > 0.5).tolist()) for row in predictions]

    def decisions(self, predictions: np.ndarray, class_names: Sequence[str]) -> dict[str, list[Any]]:
        """0 or 1 for each label; for a single class as in Task."""
        if self.has_class_targets:
            return super().decisions(predictions, class_names)
        columns = (predictions > 0.5).astype(int).T.tolist()
        return {f'predicted {name}': column for name, column in zip(class_names, columns, strict=True)}

    def ranked(self, predictions: np.ndarray, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """The ``top`` most probable labels of each example with their probabilities."""
        return ranked_by_probability(predictions, class_names, top)

    def draw(self, axes: 'Axes', result: Evaluated, class_names: Sequence[str]) -> None:
        """Draws precision, recall and average precision of each label."""
        probabilities = self.predictions(np.asarray(result.outputs))
        drawing.draw_labels(axes, np.asarray(result.targets), probabilities, class_names)

    def baseline_outputs(
        self, kind: str, pixels: np.ndarray, targets: np.ndarray, unseen: np.ndarray, num_targets: int
    ) -> np.ndarray:
        """Log odds of each label: its frequency in training, or predictions of logistic regression."""
        del num_targets
        columns = targets.reshape(len(targets), -1).T
        shares = [baselines.class_shares(kind, pixels, column, unseen, 2)[:, 1] for column in columns]
        positive = np.stack(shares, axis=1)
        return np.log(positive / (1 - positive)).astype(np.float32)
