"""Multilabel and binary metrics against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from resnet_jax.tasks.binary import Binary
from resnet_jax.tasks.multilabel import MultiLabel
from tests.tasks.sums import totals


@pytest.mark.parametrize('labels', [1, 4])
def test_against_scikit_learn(labels, rng):
    task = Binary() if labels == 1 else MultiLabel()
    targets = rng.integers(0, 2, (45, labels)).astype(np.int32)
    outputs = (rng.normal(size=(45, labels)) + targets).astype(np.float32)
    given = targets[:, 0] if labels == 1 else targets
    found = task.summarize(totals(task, outputs, given)) | task.scores(outputs, given)
    predicted = outputs > 0
    assert found['accuracy'] == pytest.approx(np.mean(predicted == targets))
    for name in ('precision', 'recall', 'f1'):
        scores = [
            getattr(sklearn, f'{name}_score')(targets[:, k], predicted[:, k], zero_division=0) for k in range(labels)
        ]
        assert found[name] == pytest.approx(np.mean(scores)), name
    aucs = [sklearn.roc_auc_score(targets[:, k], outputs[:, k]) for k in range(labels)]
    precisions = [sklearn.average_precision_score(targets[:, k], outputs[:, k]) for k in range(labels)]
    assert found['roc_auc'] == pytest.approx(np.mean(aucs))
    assert found['average_precision'] == pytest.approx(np.mean(precisions))
    probabilities = task.predictions(outputs)
    losses = [sklearn.log_loss(targets[:, k], probabilities[:, k].astype(float)) for k in range(labels)]
    assert found['loss'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_labels_that_all_examples_have_are_not_ranked():
    targets, outputs = np.array([[1, 0], [1, 1], [1, 0]]), np.array([[0.1, -1], [0.2, 2], [0.3, 1]], np.float32)
    assert MultiLabel().scores(outputs, targets) == {'roc_auc': 1.0, 'average_precision': 1.0}
    assert Binary().scores(outputs[:, :1], targets[:, 0]) == {}


def test_predictions_in_words():
    assert MultiLabel().in_words(np.array([[0.9, 0.6], [0.1, 0.2]]), ('a', 'b')) == [('a', 'b'), ()]
    assert MultiLabel().ranked(np.array([[0.25, 0.75]]), ('a', 'b'), 5) == [[('b', 0.75), ('a', 0.25)]]
