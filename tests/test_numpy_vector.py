"""The vector network compared with a computation by hand and with finite differences."""

import numpy as np
import pytest

from resnet_jax import numpy_vector
from resnet_jax.numpy_vector import ResNet18

X = [1.0, -0.5, 2.0]


def test_a_computation_by_hand():
    """Block 1 has w1 = 1, w2 = 0.5, w5 = 2, b5 = -1, w3 = -1, b3 = 3, w4 = 1; the others are identities."""
    weights, biases = np.zeros(21), np.zeros(21)
    weights[:5], biases[:5] = [1, 0.5, -1, 1, 2], [0, 0, 3, 0, -1]
    weights[[9, 14, 19]] = 1  # the shortcuts of blocks 2, 3 and 4
    weights[20], biases[20] = 0.25, -1
    results = ResNet18().stages(X, weights, biases)
    # h1 = relu(x) = [1, 0, 2];  y = relu(0.5 h1 + 2 x - 1) = relu([1.5, -2, 4])
    np.testing.assert_array_equal(results['block1_h1'], [1, 0, 2])
    np.testing.assert_array_equal(results['block1_y'], [1.5, 0, 4])
    # h2 = relu(3 - y);  z = relu(h2 + y)
    np.testing.assert_array_equal(results['block1_h2'], [1.5, 3, 0])
    np.testing.assert_array_equal(results['block1_z'], [3, 3, 4])
    np.testing.assert_array_equal(results['block4_z'], [3, 3, 4])
    assert results['gap'] == pytest.approx(10 / 3)
    assert results['output'] == pytest.approx(10 / 12 - 1)
    assert ResNet18().predict(X, weights, biases) == pytest.approx(1 / (1 + np.exp(1 / 6)))


@pytest.mark.parametrize('x', [X, [X, [0.3, 0.2, -1.0], [-2.0, 1.0, 0.1]]])
def test_gradients_match_finite_differences(x, rng):
    weights, biases = rng.uniform(0.5, 1, 21), rng.uniform(-0.1, 0.3, 21)
    labels = np.arange(len(np.atleast_2d(x))) % 2
    _, dweights, dbiases = ResNet18().gradients(x, labels, weights, biases)
    assert np.abs(dweights).min() > 0
    for index in range(21):
        for values, derivative in ((weights, dweights), (biases, dbiases)):
            losses = []
            for step in (1e-6, -1e-6):
                values[index] += step
                losses.append(ResNet18().gradients(x, labels, weights, biases)[0])
                values[index] -= step
            assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(derivative[index], rel=1e-4, abs=1e-8)


def test_it_learns_to_classify_vectors_by_their_mean(rng):
    x = rng.normal(size=(200, 3))
    labels = x.mean(1) > 0.2
    start = rng.uniform(0.2, 0.6, 21), rng.uniform(0, 0.1, 21)
    weights, biases, losses = ResNet18().fit(x, labels, *start)
    assert losses[-1] < losses[0] / 2
    accuracy = np.mean((ResNet18().predict(x, weights, biases) > 0.5) == labels)
    assert accuracy > max(labels.mean(), 1 - labels.mean()) + 0.1


def test_large_outputs_do_not_overflow():
    np.testing.assert_array_equal(numpy_vector.sigmoid(np.array([-1000.0, 0.0, 1000.0])), [0, 0.5, 1])


def test_a_wrong_number_of_weights_is_refused():
    with pytest.raises(ValueError, match=r'weights must be of shape \(21,\), .*, got \(20,\)'):
        ResNet18().predict(X, np.ones(20), np.ones(21))
