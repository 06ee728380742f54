"""Metrics: sums over examples, computed on devices and divided on the host, and scores of rankings."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.devices import with_auto_axes


def classification_sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is set.

    Args:
      losses: float32 ``[N]``.
      logits: ``[N, K]``.
      labels: int ``[N]``.
      mask: bool ``[N]``; False for the padding of the last batch.

    Returns:
      ``loss`` float32 and ``correct``, ``correct_top5``, ``count`` int32 scalars. An example is correct in
      the top 5 if fewer than five other classes score at least as high as its own, so ties count against it; with
      K < 6 all are correct.
    """
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=1)
    is_label = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    rivals = jnp.sum(~(logits < label_logits) & ~is_label, axis=1)  # NaN also counts as a rival
    return {
        'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
        'correct': jnp.sum(mask & (jnp.argmax(logits, -1) == labels)),
        'correct_top5': jnp.sum(mask & (rivals < 5)),
        'count': jnp.sum(mask),
    }


def label_sums(losses: jax.Array, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is set, for independent labels; a label is predicted if its logit is above 0.

    Args:
      losses: float32 ``[N]``.
      logits: ``[N, K]``.
      targets: ``[N, K]`` of 0 and 1.
      mask: bool ``[N]``.

    Returns:
      ``loss`` float32, ``count`` int32, and int32 ``[K]``: ``true_positives``, ``false_positives``,
      ``false_negatives``, ``true_negatives``.
    """
    predicted, actual, counted = logits > 0, targets > 0, mask[:, None]
    return {
        'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
        'count': jnp.sum(mask),
        'true_positives': jnp.sum(counted & predicted & actual, axis=0),
        'false_positives': jnp.sum(counted & predicted & ~actual, axis=0),
        'false_negatives': jnp.sum(counted & ~predicted & actual, axis=0),
        'true_negatives': jnp.sum(counted & ~predicted & ~actual, axis=0),
    }


def regression_sums(losses: jax.Array, outputs: jax.Array, targets: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is set.

    Args:
      losses: float32 ``[N]``.
      outputs: ``[N, D]``.
      targets: float ``[N, D]`` with a mean near zero, so that the variance can be computed from sums.
      mask: bool ``[N]``.

    Returns:
      ``loss`` float32, ``count`` int32, and float32 ``[D]``: ``absolute_error``, ``squared_error``, ``target``,
      ``squared_target``.
    """
    errors = jnp.where(mask[:, None], outputs.astype(jnp.float32) - targets, 0.0)
    counted = jnp.where(mask[:, None], targets.astype(jnp.float32), 0.0)
    return {
        'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
        'count': jnp.sum(mask),
        'absolute_error': jnp.sum(jnp.abs(errors), axis=0),
        'squared_error': jnp.sum(jnp.square(errors), axis=0),
        'target': jnp.sum(counted, axis=0),
        'squared_target': jnp.sum(jnp.square(counted), axis=0),
    }


def confusion_matrix(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Counts int32 ``[K, K]``: rows are true classes, columns predicted ones."""
    classes = logits.shape[-1]

    def count(labels: jax.Array, predicted: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.zeros((classes, classes), jnp.int32).at[labels, predicted].add(mask.astype(jnp.int32))

    return with_auto_axes(count, labels, jnp.argmax(logits, -1), mask, out_spec=(None, None))


def add_up(sums: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Adds up the sums of several steps on the host, in float64 and int64, one step at a time."""
    total: dict[str, Any] = {}
    for one in sums:
        for name, value in jax.device_get(one).items():
            wide: Any = np.asarray(value, _wide(value))[()]
            total[name] = total[name] + wide if name in total else wide
    return total


def _wide(value: np.ndarray) -> type:
    return np.float64 if np.issubdtype(np.asarray(value).dtype, np.floating) else np.int64


def precision_recall_f1(
    true_positives: np.ndarray, false_positives: np.ndarray, false_negatives: np.ndarray
) -> dict[str, float]:
    """``precision``, ``recall`` and ``f1``, averaged over the labels; 0 where the denominator is 0.

    Args:
      true_positives: integer ``[K]``.
      false_positives: integer ``[K]``.
      false_negatives: integer ``[K]``.
    """
    predicted, actual = true_positives + false_positives, true_positives + false_negatives
    parts = {
        'precision': (true_positives, predicted),
        'recall': (true_positives, actual),
        'f1': (2 * true_positives, predicted + actual),
    }
    return {name: float(np.mean(part / np.maximum(whole, 1))) for name, (part, whole) in parts.items()}


def r_squared(total: dict[str, Any]) -> float:
    """``1 - sum (y - t)^2 / sum (t - mean t)^2`` from ``regression_sums``, averaged over the D values.

    For a constant target it is 1 if predictions are exact, otherwise 0, as in scikit-learn.
    """
    spread = total['squared_target'] - total['target'] ** 2 / total['count']
    errors = total['squared_error']
    constant = np.where(errors > 0, 0.0, 1.0)
    return float(np.mean(np.where(spread > 0, 1 - errors / np.where(spread > 0, spread, 1), constant)))


def ranking_scores(targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """How well scores rank positive examples above negative ones, averaged over the labels.

    Args:
      targets: ``[N, K]`` of 0 and 1.
      scores: ``[N, K]``, finite; higher means a label is more probable.

    Returns:
      ``roc_auc`` and ``average_precision`` (over several labels: the mean average precision, mAP). Labels that
      all examples or none have are excluded; empty if no label remains.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # takes a second to import

    mixed = (targets.min(0) == 0) & (targets.max(0) == 1)
    if not mixed.any():
        return {}
    targets, scores = targets[:, mixed], scores[:, mixed]
    return {
        'roc_auc': float(roc_auc_score(targets, scores, average='macro')),
        'average_precision': float(average_precision_score(targets, scores, average='macro')),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, Eq. 3).

    Args:
      probabilities: ``[N, K]``; the maximum of each row is its confidence.
      labels: int ``[N]``.
      bins: number of bins of equal width, closed at their upper end as in the paper.

    Returns:
      The mean over the examples of ``|accuracy - confidence|`` of their bins, in [0, 1].
    """
    confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, right, bins) - np.bincount(place, confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Accuracy of each true class, float64 ``[K]``; NaN for classes without examples."""
    totals = confusion.sum(1)
    with np.errstate(invalid='ignore'):
        return np.diag(confusion) / np.where(totals == 0, np.nan, totals)
