"""Metrics as sums over examples: devices return sums, ``summarize`` divides once."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def classification_sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is set.

    Args:
      losses: float32 ``[N]``.
      logits: ``[N, K]``.
      labels: int ``[N]``.
      mask: bool ``[N]``; False for the filling of a last batch.

    Returns:
      ``loss`` float32 and ``correct``, ``correct_top5``, ``count`` int32 scalars. An example counts for the top 5 if
      fewer than five other classes score at least as high as its own, so ties do not help; where K < 6 all count.
    """
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=1)
    is_label = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    rivals = jnp.sum(~(logits < label_logits) & ~is_label, axis=1)  # NaN is a rival, too
    return {
        'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
        'correct': jnp.sum(mask & (jnp.argmax(logits, -1) == labels)),
        'correct_top5': jnp.sum(mask & (rivals < 5)),
        'count': jnp.sum(mask),
    }


def confusion_matrix(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Counts int32 ``[K, K]``: row the true class, column the predicted one."""
    classes = logits.shape[-1]
    counts = jnp.zeros((classes, classes), jnp.int32)
    return counts.at[labels, jnp.argmax(logits, -1)].add(mask.astype(jnp.int32))


def add_up(sums: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Total of several steps' sums, on the host in float64 and int64."""
    fetched = jax.device_get(list(sums))
    return {name: np.sum([np.asarray(one[name], _wide(one[name])) for one in fetched], axis=0) for name in fetched[0]}


def _wide(value: np.ndarray) -> type:
    return np.float64 if np.issubdtype(np.asarray(value).dtype, np.floating) else np.int64


def summarize(total: dict[str, Any]) -> dict[str, float]:
    """Means from sums: ``loss``, ``accuracy`` and ``top5_accuracy``, the last two in [0, 1]."""
    count = int(total['count'])
    return {
        'loss': float(total['loss'] / count),
        'accuracy': float(total['correct'] / count),
        'top5_accuracy': float(total['correct_top5'] / count),
    }


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of each true class that is predicted right, float64 ``[K]``; NaN for a class without examples."""
    totals = confusion.sum(1)
    with np.errstate(invalid='ignore'):
        return np.diag(confusion) / np.where(totals == 0, np.nan, totals)
