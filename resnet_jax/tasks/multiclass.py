"""One of K classes."""

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

MAX_CLASSES = 10_000  # a larger label is a mistake, not a class; a confusion matrix is K x K


class MultiClass(Task):
    """One of K classes: targets are integers ``[N]`` in [0, K), outputs logits ``[N, K]``."""

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
        """As in Task: integers ``[N]``; where there are no names, every class up to the last one must be there."""
        check_integers(place, targets)
        if targets.ndim != 1:
            raise InputError(
                f'{place}: expected one integer for each image, found labels of {targets.shape}; task=multilabel takes'
                ' columns of 0 and 1'
            )
        low, high = int(targets.min()), int(targets.max())
        limit = len(names) if names else MAX_CLASSES
        if low < 0 or high >= limit:
            raise InputError(f'{place}: labels must be from 0 to {limit - 1}, found {low if low < 0 else high}')
        if names:
            return names
        if missing := sorted(set(range(high + 1)) - set(targets.tolist())):
            raise InputError(f'{place}: labels go up to {high}, but none is {missing[0]}; classes.txt can name them')
        return numbered(high + 1)

    def fitting_features(self, features: dict[str, Any]) -> list[str]:
        """Integers; of several, those called ``label`` or those whose classes have names."""
        from tensorflow_datasets import features as tfds_features

        tensors = {key: f for key, f in features.items() if isinstance(f, tfds_features.Tensor)}
        classes = [key for key, f in tensors.items() if isinstance(f, tfds_features.ClassLabel)]
        integers = [key for key, f in tensors.items() if f.shape == () and np.issubdtype(f.np_dtype, np.integer)]
        return integers if 'label' in integers else classes or integers

    def names_of_shape(self, place: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """None: classes without names are counted by their labels."""
        del shape
        raise InputError(f'{place}: its photographs have integers for labels; expected classes, a ClassLabel')

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """As in Task: one-hot, and NaN for a label that is no class."""
        if targets.shape == outputs.shape:
            raise misfit(self, outputs, targets, 'one integer for each example, [N]: labels.argmax(-1) of a one-hot')
        check_rank_and_number(self, outputs, targets, 1, 'one integer for each example, [N]')
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            raise misfit(self, outputs, targets, 'integers: labels.astype(int)')
        known = (targets >= 0) & (targets < outputs.shape[-1])
        return jnp.where(known[:, None], jax.nn.one_hot(targets, outputs.shape[-1]), jnp.nan)

    def training_loss(self) -> Loss:
        """Cross-entropy with softmax, or with sigmoids whose targets may be cut at the threshold."""
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
        """As in Task: between softmaxes, or between sigmoids where those are trained."""
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

    def decode_outputs(self, outputs: jax.Array) -> jax.Array:
        """Probabilities ``[N, K]`` that sum to 1, or independent ones if the network was trained with sigmoids."""
        return jax.nn.sigmoid(outputs) if self.loss == 'sigmoid_cross_entropy' else jax.nn.softmax(outputs)

    def in_words(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[Any]:
        """The likeliest class of each example."""
        return [class_names[index] for index in predictions.argmax(-1)]

    def ranked(self, predictions: np.ndarray, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each example, at most ``top``, with their probabilities."""
        return ranked_by_probability(predictions, class_names, top)

    def draw(self, axes: 'Axes', result: Evaluated, class_names: Sequence[str]) -> None:
        """The confusion matrix."""
        drawing.draw_confusion(axes, result.total['confusion'], class_names)

    def baseline_outputs(
        self, kind: str, pixels: np.ndarray, targets: np.ndarray, unseen: np.ndarray, num_targets: int
    ) -> np.ndarray:
        """Logarithms of the classes' shares in training, or of those that logistic regression predicts."""
        return np.log(baselines.class_shares(kind, pixels, targets, unseen, num_targets)).astype(np.float32)


def ranked_by_probability(
    predictions: np.ndarray, class_names: Sequence[str], top: int
) -> list[list[tuple[str, float]]]:
    """Of each row ``[K]`` the names and values of the largest, at most ``top``; of equal ones the first."""
    order = np.argsort(-predictions, axis=1, kind='stable')[:, :top]
    return [
        [(class_names[index], float(row[index])) for index in best]
        for best, row in zip(order, predictions, strict=True)
    ]
