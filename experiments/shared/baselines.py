"""Simple baseline models and their scores."""

import jax.numpy as jnp
import numpy as np

from resnet_jax.data.examples import Dataset
from resnet_jax.tasks import metrics
from resnet_jax.tasks.base import Task

BASELINES = ('constant', 'linear')


def baseline_outputs(kind: str, task: Task, dataset: Dataset) -> np.ndarray:
    """Predictions of a constant or a linear model for the test images, shaped like a network's outputs ``[N, K]``.

    The constant model predicts the class frequencies, or the mean value, of the training set. The linear model is
    scikit-learn's logistic or ridge regression with default settings, on pixels scaled to [0, 1].
    """
    (images, targets), (tests, _) = dataset.train.arrays, dataset.test.arrays
    pixels, unseen = (part.reshape(len(part), -1) / 255.0 for part in (images, tests))
    return task.baseline_outputs(kind, pixels, targets, unseen, dataset.num_classes)


def scores_of(outputs: np.ndarray, task: Task, dataset: Dataset) -> dict[str, float]:
    """The task's metrics for the test images."""
    targets, mask = dataset.test.arrays[1], jnp.ones(len(dataset.test), bool)
    arrays = jnp.asarray(outputs), jnp.asarray(targets)
    sums = task.sums(task.losses(*arrays), *arrays, mask) | task.eval_sums(*arrays, mask)
    return task.summarize(metrics.add_up([sums])) | task.scores(outputs, targets)
