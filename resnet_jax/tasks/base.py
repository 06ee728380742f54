"""The interface of tasks, which define what a network is trained for.

A task is plain hashable data, so that a jitted step may close over it. Everything that depends on the kind of target is
a method or attribute of its task; other code never compares task names. A custom task is a subclass of ``Task``, passed
as a class or an instance wherever a name is accepted.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Maps outputs and dense targets, both ``[N, K]``, to the loss of each example, float32 ``[N]``.
Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Evaluated(Protocol):
    """The parts of an evaluation that ``Task.draw`` uses."""

    @property
    def total(self) -> dict[str, Any]:
        """Sums over all examples."""

    @property
    def outputs(self) -> np.ndarray | None:
        """Outputs of the network, float32 ``[N, K]``; None if the task does not need them."""

    @property
    def targets(self) -> np.ndarray | None:
        """Targets as stored; None if the task does not need them."""


@dataclasses.dataclass(frozen=True)
class Task:
    """The base class of tasks.

    A custom task must define ``training_loss`` and, if it has targets, ``dense_targets`` and ``check_targets``. Other
    methods have neutral defaults.

    Attributes:
      name: name in messages and folder names; the key of ``kinds.TASKS`` for built-in tasks.
      known_losses: names of supported losses, the default first; empty if the task defines its own loss.
      primary_metric: the main metric, which also selects the best checkpoint.
      higher_is_better: whether higher values of the primary metric are better.
      shown_metrics: metrics shown in comparisons of networks.
      picture: file name of the plot of a test result, without suffix; empty for the name of the task.
      needs_outputs: whether ``scores`` or the plot need all outputs of an evaluation.
      needs_targets: whether examples must have targets; if not, ``Split.labels`` may be None.
      num_names: required number of class names; None for any number.
      has_class_targets: whether each target is the index of one of the dataset's classes.
      has_class_outputs: whether the network has one output per class and each example has one class.
      keeps_appearance: whether targets may depend on position and appearance; if so, there is no augmentation by
        default.
      learning_rate_divisor: divides a recipe's learning rate, which is tuned for classification losses.
      smoothable: whether targets are probabilities, which can be smoothed and thresholded.
      distillable: whether outputs of two networks are comparable, as distillation requires.
      has_statistics: whether ``statistics`` needs the training targets, which are then read before the images.
      expected_feature: description of the TFDS features that ``fitting_features`` finds, for messages.
      loss: one of the known losses; empty for the default.
      label_smoothing: fraction of the target that is spread over all classes, in [0, 1).
      target_threshold: in sigmoid training losses, smoothed or mixed targets above it become 1, others 0; None for no
        threshold.
    """

    name: ClassVar[str] = 'task'
    known_losses: ClassVar[tuple[str, ...]] = ()
    primary_metric: ClassVar[str] = 'loss'
    higher_is_better: ClassVar[bool] = False
    shown_metrics: ClassVar[tuple[str, ...]] = ('loss',)
    picture: ClassVar[str] = ''
    needs_outputs: ClassVar[bool] = False
    needs_targets: ClassVar[bool] = True
    num_names: ClassVar[int | None] = None
    has_class_targets: ClassVar[bool] = False
    has_class_outputs: ClassVar[bool] = False
    keeps_appearance: ClassVar[bool] = False
    learning_rate_divisor: ClassVar[float] = 1.0
    smoothable: ClassVar[bool] = False
    distillable: ClassVar[bool] = False
    has_statistics: ClassVar[bool] = False
    expected_feature: ClassVar[str] = 'a target for the task'
    loss: str = ''
    label_smoothing: float = 0.0
    target_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.known_losses:
            object.__setattr__(self, 'loss', self.loss or self.known_losses[0])
        if self.loss not in (self.known_losses or ('',)):
            known = ', '.join(self.known_losses) or 'empty'
            raise InputError(f'loss={self.loss!r} must be one of {known} for task={self.name}')
        if self.target_threshold is not None and self.loss != 'sigmoid_cross_entropy':
            loss = self.loss or f'task={self.name}'
            raise InputError(
                f'target_threshold={self.target_threshold} applies only to sigmoid_cross_entropy, not to {loss}'
            )
        if self.label_smoothing and not self.smoothable:
            raise InputError(f'label_smoothing={self.label_smoothing} is not supported for task={self.name}')

    # Targets and names of datasets.

    def check_targets(self, place: str, targets: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
        """Checks the targets of a split and supplies missing names.

        Args:
          place: where the targets come from, for messages.
          targets: ``[N, …]`` with N >= 1 and at least one value per example.
          names: names of the classes, labels or values; empty if there are none.

        Returns:
          The names, one per class, label or value.

        Raises:
          InputError: the targets do not fit this task.
        """
        del place, targets
        return names

    def stored_targets(self, targets: np.ndarray) -> np.ndarray:
        """Converts checked targets ``[N, …]`` to the dtype and shape in which a dataset stores them."""
        return targets.astype(np.int32 if targets.dtype.kind in 'biu' else np.float32)

    def statistics(self, targets: np.ndarray) -> dict[str, Any]:
        """Fields of the task computed from the stored training targets; must be JSON-serializable."""
        del targets
        return {}

    def fitting_features(self, features: dict[str, Any]) -> list[str]:
        """Keys of the TFDS features that can be the target."""
        del features
        return []

    def feature_names(self, key: str, feature: Any) -> tuple[str, ...]:
        """Names of the classes, labels or values of a TFDS feature; empty if there are none."""
        del key
        return tuple(getattr(getattr(feature, 'feature', feature), 'names', None) or ())

    def names_of_shape(self, place: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Default names from the shape of a target.

        Raises:
          InputError: the shape does not determine the names.
        """
        del shape
        raise InputError(f'{place}: the targets of task={self.name} have no names; class_names is required')

    def num_outputs(self, num_targets: int) -> int:
        """Size of the head for a number of classes, labels or values."""
        return num_targets

    # Losses and sums, computed in a step.

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Converts targets to float32 ``[N, K]``, which can be mixed; only the shape of the outputs is used.

        Raises:
          InputError: the targets do not fit the outputs.
        """
        del outputs
        return targets

    def training_loss(self) -> Loss:
        """The training loss as a function of outputs and dense targets, with label smoothing and threshold."""
        raise NotImplementedError(f'{type(self).__name__}.training_loss')

    def evaluation_loss(self) -> Loss:
        """The evaluation loss, without label smoothing and threshold."""
        return self.training_loss()

    def distillation_loss(self, temperature: float) -> Loss:
        """The distillation loss as a function of outputs and the teacher's outputs, without gradient to the teacher."""
        del temperature
        raise InputError(f'distillation is not supported for task={self.name}')

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """``evaluation_loss`` of stored targets, float32 ``[N]``.

        Raises:
          InputError: the targets do not fit the outputs.
        """
        return self.evaluation_loss()(outputs, self.dense_targets(outputs, targets))

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums over the examples whose mask is set; ``summarize`` computes metrics from them.

        Args:
          example_losses: float32 ``[N]``.
          outputs: ``[N, K]``.
          targets: as stored.
          mask: bool ``[N]``.
        """
        del outputs, targets
        return {'loss': jnp.sum(jnp.where(mask, example_losses, 0.0)), 'count': jnp.sum(mask)}

    def eval_sums(self, outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Additional sums, only used in evaluation."""
        del outputs, targets, mask
        return {}

    # Metrics, predictions and plots.

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """Metrics from the sums of ``metrics.add_up``: ``loss``, the primary metric, others."""
        return {'loss': float(total['loss'] / int(total['count']))}

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Metrics that need all outputs at once, ``[N, K]``; empty if there are none."""
        del outputs, targets
        return {}

    def decode_outputs(self, outputs: jax.Array) -> jax.Array:
        """Converts outputs to float32 ``[N, K]`` probabilities, or values in the targets' units."""
        return outputs.astype(jnp.float32)

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """``decode_outputs`` on the host."""
        return np.asarray(self.decode_outputs(jnp.asarray(outputs)))

    def in_words(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[Any]:
        """Converts decoded outputs ``[N, K]`` to readable predictions: one tuple of numbers per example."""
        del class_names
        return [tuple(row.tolist()) for row in predictions]

    def ranked(self, predictions: np.ndarray, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """Names and decoded outputs ``[N, K]`` for each example: all of them, in their order."""
        del top
        return [list(zip(class_names, row.tolist(), strict=True)) for row in predictions]

    def prediction_names(self, class_names: Sequence[str]) -> list[str]:
        """Names of the columns of decoded outputs."""
        return list(class_names)

    def decisions(self, predictions: np.ndarray, class_names: Sequence[str]) -> dict[str, list[Any]]:
        """Columns with the decision for each example, from decoded outputs ``[N, K]``; empty for numbers."""
        if self.has_class_targets:
            return {'predicted': self.in_words(predictions, class_names)}
        return {}

    def draw(self, axes: 'Axes', result: Evaluated, class_names: Sequence[str]) -> None:
        """Draws a test result; the default draws nothing."""
        del result, class_names
        axes.set_axis_off()

    def baseline_outputs(
        self, kind: str, pixels: np.ndarray, targets: np.ndarray, unseen: np.ndarray, num_targets: int
    ) -> np.ndarray:
        """Predictions of a simple model, in the form of a network's outputs: float32 ``[N', K]``.

        Args:
          kind: ``constant`` or ``linear``.
          pixels: pixels of training images, float ``[N, H W C]``.
          targets: their targets, as stored.
          unseen: pixels of test images, ``[N', H W C]``.
          num_targets: number of classes, labels or values.

        Raises:
          InputError: the task has no such baseline.
        """
        del pixels, targets, unseen, num_targets
        raise InputError(f'task={self.name} has no {kind} baseline')


def numbered(count: int) -> tuple[str, ...]:
    """Default names: ``'0', '1', …``."""
    return tuple(map(str, range(count)))


def misfit(task: Task, outputs: jax.Array, targets: jax.Array, expected: str) -> InputError:
    """The error for targets that do not fit outputs."""
    return InputError(
        f'task={task.name}: outputs {list(outputs.shape)} and targets {list(targets.shape)} of {targets.dtype} do not'
        f' fit; expected {expected}'
    )


def check_rank_and_number(task: Task, outputs: jax.Array, targets: jax.Array, rank: int, expected: str) -> None:
    """Raises InputError if the targets have another rank or number of examples."""
    if targets.ndim != rank or len(targets) != len(outputs):
        column = targets.ndim == 2 and targets.shape[1] == 1
        raise misfit(task, outputs, targets, expected + ('; use labels[:, 0]' if column else ''))


def check_integers(place: str, labels: np.ndarray, more: str = '') -> None:
    """Raises InputError if the labels are not integers."""
    if not np.issubdtype(labels.dtype, np.integer):
        advice = {
            'f': '; use labels.astype(int), or task=regression for other numbers',
            'b': '; use labels.astype(int), or task=binary',
            'U': '; use np.unique(labels, return_inverse=True) for class names and integers',
        }.get(labels.dtype.kind, '')
        raise InputError(f'{place}: labels must be integers{more}, found {labels.dtype}{advice}')
