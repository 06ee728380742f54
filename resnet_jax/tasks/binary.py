"""Binary classification."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resnet_jax.tasks import drawing
from resnet_jax.tasks.base import Evaluated, check_rank_and_number, misfit, numbered
from resnet_jax.tasks.multiclass import ranked_by_probability
from resnet_jax.tasks.multilabel import MultiLabel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Binary(MultiLabel):
    """Binary classification: targets are integers ``[N]``, 0 or 1; outputs are logits ``[N, 1]`` of class 1."""

    name = 'binary'
    shown_metrics = ('accuracy', 'roc_auc')
    num_names = 2
    has_class_targets = True
    expected_feature = 'one label of two classes'
    _rank = 1

    def num_outputs(self, num_targets: int) -> int:
        """Always 1."""
        del num_targets
        return 1

    def fitting_features(self, features: dict[str, Any]) -> list[str]:
        """Bools, and class labels with two classes."""
        from tensorflow_datasets import features as tfds_features

        tensors = {key: f for key, f in features.items() if isinstance(f, tfds_features.Tensor)}
        return [key for key, f in tensors.items() if (f.shape == () and f.np_dtype == np.bool_)] + [
            key for key, f in tensors.items() if isinstance(f, tfds_features.ClassLabel) and f.num_classes == 2
        ]

    def names_of_shape(self, place: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """``'0', '1'``."""
        del place, shape
        return numbered(2)

    def _columns(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        if outputs.shape[-1] != 1:
            raise misfit(self, outputs, targets, 'a network with one output (num_classes=1)')
        check_rank_and_number(self, outputs, targets, 1, '0 or 1 per example, [N]')
        return targets[:, None]

    def in_words(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[Any]:
        """The predicted class of each example."""
        return [class_names[int(share > 0.5)] for (share,) in predictions]

    def ranked(self, predictions: np.ndarray, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """Both classes with their probabilities, most probable first; at most ``top``."""
        return ranked_by_probability(np.concatenate([1 - predictions, predictions], axis=1), class_names, top)

    def prediction_names(self, class_names: Sequence[str]) -> list[str]:
        """The name of the second class, whose probability is predicted."""
        return list(class_names[1:])

    def draw(self, axes: 'Axes', result: Evaluated, class_names: Sequence[str]) -> None:
        """Draws the ROC curve."""
        probabilities = self.predictions(np.asarray(result.outputs))
        drawing.draw_roc(axes, np.asarray(result.targets).reshape(probabilities.shape), probabilities, class_names[1])
