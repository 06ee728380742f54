"""Multiclass classification."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.tasks import baselines, drawing, losses, metrics
from resnet_jax.tasks.base import Evaluated, Loss, Task, check_integers, check_rank_and_number, misfit, numbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CLASSES = 10_000  # larger labels are probably mistakes; a confusion matrix is K x K


class MultiClass(Task):
    """Multiclass classification: targets are integers ``[N]`` in [0, K), outputs are logits ``[N, K]``."""

    name = 'multiclass'
    known_losses = ('softmax_cross_entropy', 'sigmoid_cross_entropy')
    primary_metric = 'accuracy'
    higher_is_better = True
    shown_metrics = ('accuracy', 'f1')
    picture = 'confusion'
    has_class_targets = True
    has_class_outputs = True
    smoothable = True
    distillable = True
    expected_feature = 'one integer label'

    def check_targets(self, place: str, targets: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
        """As in Task: integers ``[N]``; without names, every class up to the largest label must occur."""
        check_integers(place, targets)
        if targets.ndim != 1:
            raise InputError(
                f'{place}: expected one integer per image, found labels of shape {targets.shape}; for one-hot'
                ' labels use labels.argmax(-1); columns of 0 and 1 need task=multilabel'
            )
        if len(names) - 1 > np.iinfo(targets.dtype).max:  # larger labels have become smaller ones
            raise InputError(f'{place}: labels of {len(names)} classes cannot be {targets.dtype}')
        low, high = int(targets.min()), int(targets.max())
        limit = len(names) if names else MAX_CLASSES
        if low < 0 or high >= limit:
            raise InputError(f'{place}: labels must be from 0 to {limit - 1}, found {low if low < 0 else high}')
        if names:
            return names
        if missing := sorted(set(range(high + 1)) - set(targets.tolist())):
            raise InputError(
                f'{place}: labels go up to {high}, but label {missing[0]} is missing; classes.txt can name the classes'
            )
        return numbered(high + 1)

    def fitting_features(self, features: dict[str, Any]) -> list[str]:
        """Integers; if there are several, those named ``label`` or with class names are preferred."""
        from tensorflow_datasets import features as tfds_features

        tensors = {key: f for key, f in features.items() if isinstance(f, tfds_features.Tensor)}
        classes = [key for key, f in tensors.items() if isinstance(f, tfds_features.ClassLabel)]
        integers = [key for key, f in tensors.items() if f.shape == () and np.issubdtype(f.np_dtype, np.integer)]
        return integers if 'label' in integers else classes or integers

    def names_of_shape(self, place: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Raises InputError: without class names, the labels would have to be counted."""
        del shape
        raise InputError(f'{place}: photographs have integer labels without class names; expected a ClassLabel')

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """As in Task: one-hot; NaN for labels out of range."""
        if targets.shape == outputs.shape:
            raise misfit(
                self, outputs, targets, 'one integer per example, [N]; for one-hot labels use labels.argmax(-1)'
            )
        check_rank_and_number(self, outputs, targets, 1, 'one integer per example, [N]')
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            raise misfit(self, outputs, targets, 'integers; use labels.astype(int)')
        known = (targets >= 0) & (targets < outputs.shape[-1])
        return jnp.where(known[:, None], jax.nn.one_hot(targets, outputs.shape[-1]), jnp.nan)

    def training_loss(self) -> Loss:
        """Cross-entropy with softmax, or with sigmoids and an optional threshold for targets."""
        if self.loss == 'softmax_cross_entropy':
            return functools.partial(losses.soft_cross_entropy, label_smoothing=self.label_smoothing)
        return functools.partial(
            losses.sigmoid_cross_entropy,
            label_smoothing=self.label_smoothing,
            threshold=self.target_threshold,
            one_of_many=True,
        )

    def evaluation_loss(self) -> Loss:
        """As in Task."""
        if self.loss == 'softmax_cross_entropy':
            return losses.soft_cross_entropy
        return losses.sigmoid_cross_entropy

    def distillation_loss(self, temperature: float) -> Loss:
        """As in Task: between softmaxes, or between sigmoids if the loss uses them."""
        sigmoids = self.loss == 'sigmoid_cross_entropy'
        function = losses.sigmoid_distillation if sigmoids else losses.softmax_distillation
        return functools.partial(function, temperature=temperature)

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """As in Task."""
        return metrics.classification_sums(example_losses, outputs, targets, mask)

    def eval_sums(self, outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """``confusion``, int32 ``[K, K]``."""
        return {'confusion': metrics.confusion_matrix(outputs, targets, mask)}

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """``loss``, ``accuracy``, ``top5_accuracy``; in evaluation also ``precision``, ``recall``, ``f1``.

        The last three are macro averages over the classes that occur among targets or predictions.
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

    def decode_outputs(self, outputs: jax.Array) -> jax.Array:
        """Probabilities ``[N, K]``, which sum to 1 unless the loss uses sigmoids."""
        return jax.nn.sigmoid(outputs) if self.loss == 'sigmoid_cross_entropy' else jax.nn.softmax(outputs)

    def in_words(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[Any]:
        """The most probable class of each example."""
        return [class_names[index] for index in predictions.argmax(-1)]

    def ranked(self, predictions: np.ndarray, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """The ``top`` most probable classes of each example with their probabilities."""
        return ranked_by_probability(predictions, class_names, top)

    def draw(self, axes: 'Axes', result: Evaluated, class_names: Sequence[str]) -> None:
        """Draws the confusion matrix."""
        drawing.draw_confusion(axes, result.total['confusion'], class_names)

    def baseline_outputs(
        self, kind: str, pixels: np.ndarray, targets: np.ndarray, unseen: np.ndarray, num_targets: int
    ) -> np.ndarray:
        """Log-probabilities: class frequencies in training, or predictions of logistic regression."""
        return np.log(baselines.class_shares(kind, pixels, targets, unseen, num_targets)).astype(np.float32)


def ranked_by_probability(
    predictions: np.ndarray, class_names: Sequence[str], top: int
) -> list[list[tuple[str, float]]]:
    """Names and values of the ``top`` largest entries of each row; ties go to the first."""
    order = np.argsort(-predictions, axis=1, kind='stable')[:, :top]
    return [
        [(class_names[index], float(row[index])) for index in best]
        for best, row in zip(order, predictions, strict=True)
    ]
