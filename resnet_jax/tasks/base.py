"""What a network is trained for: the interface of all kinds of targets.

A task is plain data that can be hashed, so that a jitted step may close over it. Whatever depends on the kind of target
is a method or an attribute of its task: nothing else asks what a task is called. A kind of one's own is a subclass of
``Task``, given as a class or an instance wherever a name is taken.
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

# From outputs and dense targets, both ``[N, K]``, to the loss of each example, float32 ``[N]``.
Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Evaluated(Protocol):
    """What is drawn of an evaluation."""

    @property
    def total(self) -> dict[str, Any]:
        """Sums over all examples."""

    @property
    def outputs(self) -> np.ndarray | None:
        """Of the network, float32 ``[N, K]``; None where the task does not need them."""

    @property
    def targets(self) -> np.ndarray | None:
        """As they are stored, likewise."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What the tasks have in common, and what each answers for itself.

    A task of one's own has at least ``training_loss``, and where it has targets ``dense_targets`` and
    ``check_targets``. Methods that are not overridden have neutral defaults.

    Attributes:
      name: in messages and names of folders; of built-in ones the key of ``kinds.TASKS``.
      known_losses: names of the losses it can be trained with; the first is the usual one. Empty: it has one of its
        own.
      primary_metric: the metric that stands for the others, and by which the best checkpoint is chosen.
      higher_is_better: of the primary metric.
      shown_metrics: metrics that a comparison of networks shows.
      picture: name of the picture of a test result, without its ending; empty for the task's own name.
      needs_outputs: ``scores`` or the picture look at all outputs of an evaluation.
      needs_targets: whether examples have targets; without, ``Split.labels`` is None.
      num_names: how many names of classes there must be; None for any number.
      has_class_targets: each target is the number of one of the dataset's classes.
      has_class_outputs: the network has an output for each class, of which an example has one.
      keeps_appearance: targets may depend on where things are and how they look: no augmentation by default.
      learning_rate_divisor: of a recipe's learning rate, which is for losses of classes.
      smoothable: targets are probabilities, which can be smoothed and cut at a threshold.
      distillable: outputs of two networks mean the same, so that one can teach the other.
      has_statistics: ``statistics`` looks at the training targets, which are read before the images.
      expected_feature: words for the TFDS features that ``fitting_features`` finds.
      loss: one of the known losses; empty is the usual one.
      label_smoothing: share of the target that is spread over all classes, in [0, 1).
      target_threshold: of sigmoids in training: smoothed or mixed targets above it become 1, the others 0. None: none.
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
            raise InputError(f'target_threshold={self.target_threshold} is for sigmoid_cross_entropy, not {loss}')
        if self.label_smoothing and not self.smoothable:
            raise InputError(f'label_smoothing={self.label_smoothing} is for classes; task={self.name} takes 0')

    # What a dataset brings.

    def check_targets(self, place: str, targets: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
        """Checks the targets of a split, and names what has no names.

        Args:
          place: where they come from, for messages.
          targets: ``[N, …]``, at least one value for each of at least one example.
          names: of the classes, labels or values; empty if they have none.

        Returns:
          The names, one for each class, label or value.

        Raises:
          InputError: targets that are none of this task.
        """
        del place, targets
        return names

    def stored_targets(self, targets: np.ndarray) -> np.ndarray:
        """Targets ``[N, …]`` that were checked, in the dtype and shape in which a dataset keeps them."""
        return targets.astype(np.int32 if targets.dtype.kind in 'biu' else np.float32)

    def statistics(self, targets: np.ndarray) -> dict[str, Any]:
        """Fields of the task that follow from the training targets, as stored: what JSON can hold."""
        del targets
        return {}

    def fitting_features(self, features: dict[str, Any]) -> list[str]:
        """Keys of those of a dataset's TFDS features that can be the target."""
        del features
        return []

    def feature_names(self, key: str, feature: Any) -> tuple[str, ...]:
        """Names of the classes, labels or values of a TFDS feature; empty where they have none."""
        del key
        return tuple(getattr(getattr(feature, 'feature', feature), 'names', None) or ())

    def names_of_shape(self, place: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names where there are none, from the shape of a target alone.

        Raises:
          InputError: the targets themselves would have to be counted.
        """
        del shape
        raise InputError(f'{place}: the targets of task={self.name} have no names; class_names must give them')

    def num_outputs(self, num_targets: int) -> int:
        """Size of the head for so many classes, labels or values."""
        return num_targets

    # What a step computes.

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Targets as float32 of the outputs' shape ``[N, K]``, which may be mixed; of the outputs only that is read.

        Raises:
          InputError: targets that do not belong to such outputs.
        """
        del outputs
        return targets

    def training_loss(self) -> Loss:
        """The loss in training, smoothed and cut as the task says: a plain function of outputs and dense targets."""
        raise NotImplementedError(f'{type(self).__name__}.training_loss')

    def evaluation_loss(self) -> Loss:
        """The loss in evaluations, of the targets as they are."""
        return self.training_loss()

    def distillation_loss(self, temperature: float) -> Loss:
        """Distance from a teacher's outputs ``[N, K]``, to which no gradient goes: a function of both outputs."""
        del temperature
        raise InputError(f'task={self.name} has no loss for distillation')

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """``evaluation_loss`` of targets as they are stored, float32 ``[N]``.

        Raises:
          InputError: targets that do not belong to such outputs.
        """
        return self.evaluation_loss()(outputs, self.dense_targets(outputs, targets))

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums over the examples whose mask is set, from which ``summarize`` makes metrics.

        Args:
          example_losses: float32 ``[N]``.
          outputs: ``[N, K]``.
          targets: as stored.
          mask: bool ``[N]``.
        """
        del outputs, targets
        return {'loss': jnp.sum(jnp.where(mask, example_losses, 0.0)), 'count': jnp.sum(mask)}

    def eval_sums(self, outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """More sums, which are of use in an evaluation alone."""
        del outputs, targets, mask
        return {}

    # What is made of it.

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """Metrics from the sums of ``metrics.add_up``: ``loss``, the primary metric, others."""
        return {'loss': float(total['loss'] / int(total['count']))}

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Metrics that need all outputs at once, ``[N, K]``; empty where there are none."""
        del outputs, targets
        return {}

    def decode_outputs(self, outputs: jax.Array) -> jax.Array:
        """What the outputs mean, float32 ``[N, K]``: probabilities, or values in the targets' units."""
        return outputs.astype(jnp.float32)

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """As ``decode_outputs``, on the host."""
        return np.asarray(self.decode_outputs(jnp.asarray(outputs)))

    def in_words(self, predictions: np.ndarray, class_names: Sequence[str]) -> list[Any]:
        """Decoded outputs ``[N, K]`` as what one would say of each example: a tuple of the numbers."""
        del class_names
        return [tuple(row.tolist()) for row in predictions]

    def ranked(self, predictions: np.ndarray, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """Decoded outputs ``[N, K]`` beside their names: for each example all of them, in their order."""
        del top
        return [list(zip(class_names, row.tolist(), strict=True)) for row in predictions]

    def prediction_names(self, class_names: Sequence[str]) -> list[str]:
        """Names of the columns of decoded outputs."""
        return list(class_names)

    def draw(self, axes: 'Axes', result: Evaluated, class_names: Sequence[str]) -> None:
        """Draws what the network makes of a test set: nothing."""
        del result, class_names
        axes.set_axis_off()

    def baseline_outputs(
        self, kind: str, pixels: np.ndarray, targets: np.ndarray, unseen: np.ndarray, num_targets: int
    ) -> np.ndarray:
        """What a simple model says, in the form of a network's outputs: float32 ``[N', K]``.

        Args:
          kind: ``constant`` or ``linear``.
          pixels: of training images, float ``[N, H W C]``.
          targets: theirs, as stored.
          unseen: pixels of other images, ``[N', H W C]``.
          num_targets: classes, labels or values.

        Raises:
          InputError: none is known for the task.
        """
        del pixels, targets, unseen, num_targets
        raise InputError(f'task={self.name} has no {kind} baseline')


def numbered(count: int) -> tuple[str, ...]:
    """``'0', '1', …``: names of what has none."""
    return tuple(map(str, range(count)))


def misfit(task: Task, outputs: jax.Array, targets: jax.Array, expected: str) -> InputError:
    """Says that targets do not belong to outputs."""
    return InputError(
        f'task={task.name}: outputs {list(outputs.shape)} and targets {list(targets.shape)} of {targets.dtype} do not'
        f' fit; expected {expected}'
    )


def check_rank_and_number(task: Task, outputs: jax.Array, targets: jax.Array, rank: int, expected: str) -> None:
    """Raises InputError for targets of another rank, or for another number of examples."""
    if targets.ndim != rank or len(targets) != len(outputs):
        column = targets.ndim == 2 and targets.shape[1] == 1
        raise misfit(task, outputs, targets, expected + (': labels[:, 0]' if column else ''))


def check_integers(place: str, labels: np.ndarray, more: str = '') -> None:
    """Raises InputError for labels of another kind."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f'{place}: labels must be integers{more}, found {labels.dtype}')
