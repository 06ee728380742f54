"""What is simpler than a network, and how well it does."""

import jax.numpy as jnp
import numpy as np

from resnet_jax.data.examples import Dataset
from resnet_jax.training import metrics
from resnet_jax.training.tasks import Task

BASELINES = ('constant', 'linear')


def baseline_outputs(kind: str, task: Task, dataset: Dataset) -> np.ndarray:
    """What a constant or a linear model says of the test images, in the form of a network's outputs ``[N, K]``.

    The constant one gives every image the shares of the classes, or the mean value, in training; the linear one is
    scikit-learn's logistic regression, or ridge regression, on the pixels from 0 to 1, with its own default settings.
    """
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.linear_model import LogisticRegression, Ridge

    (images, targets), (tests, _) = dataset.train.arrays, dataset.test.arrays
    pixels, unseen = (part.reshape(len(part), -1) / 255.0 for part in (images, tests))
    if task.name == 'regression':
        values = (targets - np.asarray(task.mean)) / np.asarray(task.std)  # type: ignore[attr-defined]
        model = DummyRegressor() if kind == 'constant' else Ridge()
        return model.fit(pixels, values).predict(unseen).reshape(-1, targets.shape[1]).astype(np.float32)

    def shares_of(labels: np.ndarray, classes: int) -> np.ndarray:
        constant = kind == 'constant' or len(set(labels.tolist())) == 1
        single = DummyClassifier(strategy='prior') if constant else LogisticRegression(max_iter=5000)
        shares = np.zeros((len(unseen), classes))
        found = single.fit(pixels, labels).predict_proba(unseen)
        shares[:, single.classes_] = found  # of classes without training images there are none
        return shares.clip(1e-12, 1 - 1e-12)

    if task.name == 'multiclass':
        return np.log(shares_of(targets, dataset.num_classes)).astype(np.float32)
    columns = targets.reshape(len(targets), -1).T
    positive = np.stack([shares_of(column, 2)[:, 1] for column in columns], axis=1)
    return np.log(positive / (1 - positive)).astype(np.float32)


def scores_of(outputs: np.ndarray, task: Task, dataset: Dataset) -> dict[str, float]:
    """The task's metrics of outputs for the test images."""
    targets, mask = dataset.test.arrays[1], jnp.ones(len(dataset.test), bool)
    arrays = jnp.asarray(outputs), jnp.asarray(targets)
    sums = task.sums(task.losses(*arrays), *arrays, mask) | task.eval_sums(*arrays, mask)
    return task.summarize(metrics.add_up([sums])) | task.scores(outputs, targets)
