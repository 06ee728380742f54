"""The baselines against scikit-learn's scores and the closed form of ridge regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from experiments.shared.baselines import BASELINES, baseline_outputs, scores_of
from resnet_jax import TrainConfig
from resnet_jax.data.datasets import load_dataset
from resnet_jax.training.plan import objective_task


def scored(name):
    """The digits for a task and the scores of each baseline."""
    digits = load_dataset('digits', task=name)
    task = objective_task(TrainConfig().replace(task=name), digits.target_statistics())
    return digits, {kind: scores_of(baseline_outputs(kind, task, digits), task, digits) for kind in BASELINES}


def pixels_of(dataset):
    return (part.images.reshape(len(part), -1) / 255 for part in (dataset.train, dataset.test))


def test_binary():
    digits, scores = scored('binary')
    pixels, unseen = pixels_of(digits)
    linear = LogisticRegression(max_iter=5000).fit(pixels, digits.train.labels)
    assert scores['linear']['accuracy'] == pytest.approx(linear.score(unseen, digits.test.labels))
    area = roc_auc_score(digits.test.labels, linear.decision_function(unseen))
    assert scores['linear']['roc_auc'] == pytest.approx(area, abs=1e-6)
    assert scores['constant']['roc_auc'] == scores['constant']['accuracy'] == 0.5


def test_multiclass():
    digits, scores = scored('multiclass')
    pixels, unseen = pixels_of(digits)
    linear = LogisticRegression(max_iter=5000).fit(pixels, digits.train.labels)
    assert scores['linear']['accuracy'] == pytest.approx(linear.score(unseen, digits.test.labels))
    counts = np.bincount(digits.train.labels)
    assert scores['constant']['accuracy'] == pytest.approx(np.mean(digits.test.labels == counts.argmax()))


def test_regression():
    digits, scores = scored('regression')
    assert -0.05 < scores['constant']['r2'] <= 0
    assert 0.5 < scores['linear']['r2'] < 1
    assert scores['constant']['mae'] > scores['linear']['mae']
    pixels, unseen = pixels_of(digits)
    targets, center = digits.train.labels[:, 0], pixels.mean(0)
    weights = np.linalg.solve(
        (pixels - center).T @ (pixels - center) + np.eye(64), (pixels - center).T @ (targets - targets.mean())
    )
    predicted = (unseen - center) @ weights + targets.mean()
    assert scores['linear']['mae'] == pytest.approx(np.mean(np.abs(predicted - digits.test.labels[:, 0])), rel=1e-3)
