"""Metrics by hand and with a mask."""

import numpy as np
import pytest

from resnet_jax.tasks import metrics
from resnet_jax.tasks.losses import softmax_cross_entropy
from resnet_jax.tasks.multiclass import MultiClass


def test_sums_exclude_masked_examples(rng):
    logits, labels = rng.normal(size=(8, 7)).astype(np.float32), rng.integers(0, 7, 8).astype(np.int32)
    losses = softmax_cross_entropy(logits, labels)
    mask = np.array([True] * 5 + [False] * 3)
    masked = metrics.classification_sums(losses, logits, labels, mask)
    short = metrics.classification_sums(losses[:5], logits[:5], labels[:5], mask[:5])
    for name in short:
        np.testing.assert_allclose(masked[name], short[name], rtol=1e-6)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(logits, labels, mask), metrics.confusion_matrix(logits[:5], labels[:5], mask[:5])
    )


def test_accuracies_by_hand():
    logits = np.array([[9, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9], [1, 1, 1, 1, 1, 1]], np.float32)
    labels = np.array([0, 0, 5], np.int32)
    mask = np.ones(3, bool)
    sums = metrics.classification_sums(np.zeros(3, np.float32), logits, labels, mask)
    summary = MultiClass().summarize(metrics.add_up([sums]))
    assert summary['accuracy'] == pytest.approx(1 / 3)
    # The second example's class ranks sixth; the third's ties with five others, which does not count.
    assert summary['top5_accuracy'] == pytest.approx(1 / 3)
    confusion = np.asarray(metrics.confusion_matrix(logits, labels, mask))
    assert confusion[0, 0] == confusion[0, 5] == confusion[5, 0] == 1
    assert confusion.sum() == 3
    shares = metrics.per_class_accuracy(confusion)
    assert shares[0] == 0.5
    assert shares[5] == 0
    assert np.isnan(shares[1])


def test_nan_logits_are_never_correct():
    logits = np.full((2, 7), np.nan, np.float32)
    sums = metrics.classification_sums(np.zeros(2, np.float32), logits, np.array([1, 2]), np.ones(2, bool))
    assert int(sums['correct_top5']) == 0


def test_sums_are_added_in_wide_types():
    total = metrics.add_up([{'loss': np.float32(1e8), 'count': np.int32(2**30)}] * 4)
    assert total['count'] == 2**32
    assert total['loss'] == 4e8
