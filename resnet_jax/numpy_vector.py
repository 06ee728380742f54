"""ResNet-18 on a vector of numbers: the network's plan with nothing around it, in NumPy alone.

A "convolution" here is ``w x + b`` with one weight and one bias for all numbers of the vector: a 1x1 convolution of one
channel along one axis. Four blocks of five of them stand for the four stages of ResNet-18: two residual blocks of two
convolutions each, and the projection in the first block's shortcut.

    h = relu(w1 x + b1)        F(x) = w2 h + b2        y = relu(F(x) + w5 x + b5)
    h = relu(w3 y + b3)        F(y) = w4 h + b4        z = relu(F(y) + y)

Then global average pooling to one number, a linear output, and the sigmoid, for two classes: 21 weights, 21 biases.
"""

from typing import Any

import numpy as np

BLOCKS = 4
LAYERS = 5  # of a block
SIZE = BLOCKS * LAYERS + 1


def convolve(x: np.ndarray, weight: float, bias: float) -> np.ndarray:
    """``w x + b``."""
    return weight * x + bias


def relu(x: np.ndarray) -> np.ndarray:
    """``max(x, 0)``."""
    return np.maximum(x, 0)


def gap(x: np.ndarray) -> np.ndarray:
    """Global average pooling: the mean over the last axis."""
    return x.mean(-1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))``, without overflow."""
    return np.exp(-np.logaddexp(0, -x))


class ResNet18:
    """The simplified network; it has no state, weights are arguments."""

    def stages(self, x: Any, weights: Any, biases: Any) -> dict[str, np.ndarray]:
        """Every intermediate result by name, in order.

        Args:
          x: ``[D]`` or ``[N, D]``.
          weights: ``[21]``: block after block, w1 to w5, then the output's.
          biases: ``[21]``, likewise.

        Returns:
          ``input``, for blocks 1 to 4 ``blockB_h1``, ``blockB_y``, ``blockB_h2`` and ``blockB_z``, then ``gap``,
          ``output`` and ``probability``.

        Raises:
          ValueError: another number of weights or biases.
        """
        weights, biases = (_checked(name, values) for name, values in (('weights', weights), ('biases', biases)))
        x = np.asarray(x, float)
        results = {'input': x}
        for block in range(BLOCKS):
            first = block * LAYERS
            pairs = list(zip(weights[first : first + LAYERS], biases[first : first + LAYERS], strict=True))
            h1 = relu(convolve(x, *pairs[0]))
            y = relu(convolve(h1, *pairs[1]) + convolve(x, *pairs[4]))
            h2 = relu(convolve(y, *pairs[2]))
            x = relu(convolve(h2, *pairs[3]) + y)
            named = {'h1': h1, 'y': y, 'h2': h2, 'z': x}
            results |= {f'block{block + 1}_{name}': value for name, value in named.items()}
        results['gap'] = gap(x)
        results['output'] = convolve(results['gap'], weights[-1], biases[-1])
        results['probability'] = sigmoid(results['output'])
        return results

    def predict(self, x: Any, weights: Any, biases: Any) -> np.ndarray:
        """The probability of the second class: ``[D]`` to one number, ``[N, D]`` to ``[N]``; as ``stages``."""
        return self.stages(x, weights, biases)['probability']

    def gradients(self, x: Any, labels: Any, weights: Any, biases: Any) -> tuple[float, np.ndarray, np.ndarray]:
        """Mean binary cross entropy and its gradients.

        Args:
          x: ``[D]`` or ``[N, D]``.
          labels: 0 or 1, one for each vector.
          weights: as in ``stages``.
          biases: as in ``stages``.

        Returns:
          The loss, and the derivatives by the weights ``[21]`` and by the biases ``[21]``.
        """
        x, labels = np.atleast_2d(np.asarray(x, float)), np.atleast_1d(np.asarray(labels, float))
        weights = _checked('weights', weights)
        results = self.stages(x, weights, biases)
        output = results['output']
        loss = np.mean(np.logaddexp(0, output) - labels * output)
        dweights, dbiases = np.zeros(SIZE), np.zeros(SIZE)

        def through(dy: np.ndarray, x: np.ndarray, layer: int) -> np.ndarray:
            """Back through one convolution: its weight and its bias, then its input."""
            dweights[layer] += (dy * x).sum()
            dbiases[layer] += dy.sum()
            return weights[layer] * dy

        # The sigmoid and the cross entropy together: probability less label.
        dgap = through((results['probability'] - labels) / len(labels), results['gap'], SIZE - 1)
        dz = np.broadcast_to(dgap[:, None] / x.shape[1], x.shape)
        for block in reversed(range(BLOCKS)):
            first = block * LAYERS
            h1, y, h2, z = (results[f'block{block + 1}_{name}'] for name in ('h1', 'y', 'h2', 'z'))
            before = results[f'block{block}_z'] if block else results['input']
            dz = dz * (z > 0)
            # The identity passes dz on unchanged; the branch adds to it.
            dy = dz + through(through(dz, h2, first + 3) * (h2 > 0), y, first + 2)
            dy = dy * (y > 0)
            dz = through(through(dy, h1, first + 1) * (h1 > 0), before, first) + through(dy, before, first + 4)
        return float(loss), dweights, dbiases

    def fit(
        self, x: Any, labels: Any, weights: Any, biases: Any, learning_rate: float = 0.1, steps: int = 500
    ) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """Gradient descent on all examples at once.

        Returns:
          Weights, biases, and the loss before each step.
        """
        weights, biases = _checked('weights', weights).copy(), _checked('biases', biases).copy()
        losses = []
        for _ in range(steps):
            loss, dweights, dbiases = self.gradients(x, labels, weights, biases)
            losses.append(loss)
            weights -= learning_rate * dweights
            biases -= learning_rate * dbiases
        return weights, biases, losses


def _checked(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, float)
    if values.shape != (SIZE,):
        raise ValueError(
            f'{name} of shape {values.shape} must be [{SIZE}]: {BLOCKS} blocks of {LAYERS}, and the output'
        )
    return values
