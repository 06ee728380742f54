"""What is simpler than a network, and how well it does."""

import jax.numpy as jnp
import numpy as np

from resnet_jax.data.examples import Dataset
from resnet_jax.tasks import metrics
from resnet_jax.tasks.base import Task

BASELINES = ('constant', 'linear')


def baseline_outputs(kind: str, task: Task, dataset: Dataset) -> np.ndarray:
    """What a constant or a linear model says of the test images, in the form of a network's outputs ``[N, K]``.

    The constant one gives every image the shares of the classes, or the mean value, in training; the linear one is
    scikit-learn's logistic regression, or ridge regression, on the pixels from 0 to 1, with its own default settings.
    """
    (images, targets), (tests, _) = dataset.train.arrays, dataset.test.arrays
    pixels, unseen = (part.reshape(len(part), -1) / 255.0 for part in (images, tests))
    return task.baseline_outputs(kind, pixels, targets, unseen, dataset.num_classes)


def scores_of(outputs: np.ndarray, task: Task, dataset: Dataset) -> dict[str, float]:
    """The task's metrics of outputs for the test images."""
    targets, mask = dataset.test.arrays[1], jnp.ones(len(dataset.test), bool)
    arrays = jnp.asarray(outputs), jnp.asarray(targets)
    sums = task.sums(task.losses(*arrays), *arrays, mask) | task.eval_sums(*arrays, mask)
    return task.summarize(metrics.add_up([sums])) | task.scores(outputs, targets)
