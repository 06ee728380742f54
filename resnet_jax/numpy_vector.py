"""ResNet-18 on a vector of numbers, in pure NumPy: the structure of the network and nothing else.

A "convolution" here is ``w x + b`` with one weight and one bias for the whole vector: a 1x1 convolution of one channel
along one axis. Four blocks represent the four stages of ResNet-18. Each has five convolutions: two residual blocks of
two convolutions each, and the projection shortcut of the first.

    h = relu(w1 x + b1)        F(x) = w2 h + b2        y = relu(F(x) + w5 x + b5)
    h = relu(w3 y + b3)        F(y) = w4 h + b4        z = relu(F(y) + y)

Global average pooling to one number, a linear output and the sigmoid follow, for two classes: 21 weights and 21
biases.
"""

from typing import Any

import numpy as np

BLOCKS = 4
LAYERS = 5  # per block
SIZE = BLOCKS * LAYERS + 1


def convolve(x: np.ndarray, weight: float, bias: float) -> np.ndarray:
    """Computes ``w x + b``."""
    return weight * x + bias


def relu(x: np.ndarray) -> np.ndarray:
    """Computes ``max(x, 0)``."""
    return np.maximum(x, 0)


def gap(x: np.ndarray) -> np.ndarray:
    """Global average pooling: computes the mean over the last axis."""
    return x.mean(-1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Computes ``1 / (1 + exp(-x))`` without overflow."""
    return np.exp(-np.logaddexp(0, -x))


class ResNet18:
    """The simplified network. It is stateless: weights are passed as arguments."""

    def stages(self, x: Any, weights: Any, biases: Any) -> dict[str, np.ndarray]:
        """Computes all intermediate results.

        Args:
          x: vectors, ``[D]`` or ``[N, D]``.
          weights: ``[21]``: w1 to w5 of each block in order, then the output's weight.
          biases: ``[21]``, in the same order.

        Returns:
          A dict, in the order of computation: ``input``; ``blockB_h1``, ``blockB_y``, ``blockB_h2`` and ``blockB_z``
          for blocks B = 1 to 4; ``gap``, ``output`` and ``probability``.

        Raises:
          ValueError: the number of weights or biases is not 21.
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
        """Computes the probability of the second class.

        Args:
          x: vectors, ``[D]`` or ``[N, D]``.
          weights: as in ``stages``.
          biases: as in ``stages``.

        Returns:
          One number for ``[D]``, ``[N]`` for ``[N, D]``.

        Raises:
          ValueError: as in ``stages``.
        """
        return self.stages(x, weights, biases)['probability']

    def gradients(self, x: Any, labels: Any, weights: Any, biases: Any) -> tuple[float, np.ndarray, np.ndarray]:
        """Computes the mean binary cross entropy and its gradients.

        Args:
          x: vectors, ``[D]`` or ``[N, D]``.
          labels: 0 or 1 for each vector.
          weights: as in ``stages``.
          biases: as in ``stages``.

        Returns:
          The loss, and its gradients with respect to the weights ``[21]`` and the biases ``[21]``.

        Raises:
          ValueError: as in ``stages``.
        """
        x, labels = np.atleast_2d(np.asarray(x, float)), np.atleast_1d(np.asarray(labels, float))
        weights = _checked('weights', weights)
        results = self.stages(x, weights, biases)
        output = results['output']
        loss = np.mean(np.logaddexp(0, output) - labels * output)
        dweights, dbiases = np.zeros(SIZE), np.zeros(SIZE)

        def through(dy: np.ndarray, x: np.ndarray, layer: int) -> np.ndarray:
            """Backpropagates through one convolution: adds its parameters' gradients, returns its input's gradient."""
            dweights[layer] += (dy * x).sum()
            dbiases[layer] += dy.sum()
            return weights[layer] * dy

        # Gradient of sigmoid and cross entropy combined: probability - label.
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
        """Trains by full-batch gradient descent.

        Args:
          x: vectors, ``[D]`` or ``[N, D]``.
          labels: 0 or 1 for each vector.
          weights: initial weights, as in ``stages``.
          biases: initial biases, as in ``stages``.
          learning_rate: step size.
          steps: number of updates.

        Returns:
          The trained weights and biases, and the loss before each step.

        Raises:
          ValueError: as in ``stages``.
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
            f'{name} must be of shape ({SIZE},), {BLOCKS} blocks of {LAYERS} and the output, got {values.shape}'
        )
    return values
