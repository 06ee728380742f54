"""Regression."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.tasks import drawing, losses, metrics
from resnet_jax.tasks.base import Evaluated, Loss, Task, misfit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Regression: targets are floats ``[N, D]`` in any unit, outputs ``[N, D]`` are standardized.

    Attributes:
      mean: mean of each of the D training targets.
      std: standard deviation of each of the D training targets.
    """

    name = 'regression'
    known_losses = ('squared_error', 'absolute_error')
    primary_metric = 'r2'
    higher_is_better = True
    shown_metrics = ('r2', 'mae')
    needs_outputs = True
    keeps_appearance = True
    # Gradients of errors are unbounded, unlike those of probabilities.
    learning_rate_divisor = 5.0
    has_statistics = True
    expected_feature = 'one float or vector of floats'
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def check_targets(self, place: str, targets: np.ndarray, names: tuple[str, ...]) -> tuple[str, ...]:
        """As in Task: finite numbers ``[N]`` or ``[N, D]``."""
        real = np.issubdtype(targets.dtype, np.integer) or np.issubdtype(targets.dtype, np.floating)
        if targets.ndim not in (1, 2) or not real:
            raise InputError(
                f'{place}: task={self.name} expects numbers [N] or [N, D], found {targets.dtype} {targets.shape}'
            )
        if (wrong := ~(np.abs(targets) <= np.finfo(np.float32).max)).any():
            raise InputError(f'{place}: task={self.name} expects finite float32 numbers, found {targets[wrong][0]}')
        columns = targets.shape[1] if targets.ndim == 2 else 1
        if names and len(names) != columns:
            raise InputError(f'{place}: expected {len(names)} values per image, one per name, found {columns}')
        return names or _value_names(columns)

    def stored_targets(self, targets: np.ndarray) -> np.ndarray:
        """float32 ``[N, D]``."""
        return targets.astype(np.float32).reshape(len(targets), -1)

    def statistics(self, targets: np.ndarray) -> dict[str, Any]:
        """``mean`` and ``std`` of each target; ``std`` is 1 for a constant target."""
        values = np.asarray(targets, np.float64)
        std = values.std(0)
        return {'mean': tuple(values.mean(0).tolist()), 'std': tuple(np.where(std > 0, std, 1.0).tolist())}

    def fitting_features(self, features: dict[str, Any]) -> list[str]:
        """Floats and vectors of floats."""
        from tensorflow_datasets import features as tfds_features

        tensors = {key: f for key, f in features.items() if isinstance(f, tfds_features.Tensor)}
        return [key for key, f in tensors.items() if len(f.shape) <= 1 and np.issubdtype(f.np_dtype, np.floating)]

    def feature_names(self, key: str, feature: Any) -> tuple[str, ...]:
        """The feature's key if it is a single number."""
        return (key,) if feature.shape == () else ()

    def names_of_shape(self, place: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """``value``, or ``value0, value1, …``."""
        del place
        return _value_names(shape[0] if shape else 1)

    def dense_targets(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Standardized targets."""
        if targets.shape != outputs.shape:  # [N] and [N, 1] would silently become [N, N]
            advice = '; use targets[:, None]' if targets.ndim == 1 else ''
            raise misfit(self, outputs, targets, f'one column per output of the network, [N, D]{advice}')
        if len(self.mean) not in (1, outputs.shape[-1]):
            raise misfit(self, outputs, targets, f'{len(self.mean)} columns, as mean={self.mean}')
        return (targets - jnp.asarray(self.mean)[None]) / jnp.asarray(self.std)[None]

    def training_loss(self) -> Loss:
        """Squared or absolute error of standardized targets."""
        return losses.squared_error if self.loss == 'squared_error' else losses.absolute_error

    def sums(
        self, example_losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        """As in Task."""
        return metrics.regression_sums(example_losses, outputs, self.dense_targets(outputs, targets), mask)

    def summarize(self, total: dict[str, Any]) -> dict[str, float]:
        """``loss`` of standardized targets; ``r2``; ``mae`` and ``rmse`` in the targets' units, averaged over the D."""
        count, std = int(total['count']), np.asarray(self.std)
        return {
            'loss': float(total['loss'] / count),
            'r2': metrics.r_squared(total),
            'mae': float(np.mean(std * total['absolute_error'] / count)),
            'rmse': float(np.mean(std * np.sqrt(total['squared_error'] / count))),
        }

    def decode_outputs(self, outputs: jax.Array) -> jax.Array:
        """Values ``[N, D]`` in the targets' units."""
        return outputs * jnp.asarray([self.std], jnp.float32) + jnp.asarray([self.mean], jnp.float32)

    def draw(self, axes: 'Axes', result: Evaluated, class_names: Sequence[str]) -> None:
        """Plots predicted over true values."""
        drawing.draw_values(axes, np.asarray(result.targets), self.predictions(np.asarray(result.outputs)), class_names)

    def baseline_outputs(
        self, kind: str, pixels: np.ndarray, targets: np.ndarray, unseen: np.ndarray, num_targets: int
    ) -> np.ndarray:
        """The mean of the training targets, or ridge regression."""
        from sklearn.dummy import DummyRegressor
        from sklearn.linear_model import Ridge

        values = (targets - np.asarray(self.mean)) / np.asarray(self.std)
        model = DummyRegressor() if kind == 'constant' else Ridge()
        return model.fit(pixels, values).predict(unseen).reshape(-1, num_targets).astype(np.float32)


def _value_names(count: int) -> tuple[str, ...]:
    return ('value',) if count == 1 else tuple(f'value{index}' for index in range(count))
