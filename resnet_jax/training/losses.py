"""Losses, one value for each example."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """``-sum_k q_k log p_k`` with ``p = softmax(logits)``.

    ``q`` is one-hot, mixed with the uniform distribution: ``q = (1 - s) onehot + s / K`` (Szegedy et al. 2016,
    arXiv:1512.00567, Eq. 3, and PyTorch's ``label_smoothing``).

    Args:
      logits: ``[N, K]``.
      labels: integer ``[N]`` in [0, K).
      label_smoothing: ``s`` in [0, 1).

    Returns:
      float32 ``[N]``; NaN where a label is not in [0, K), which a one-hot would turn into zero.
    """
    classes = logits.shape[-1]
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), label_smoothing)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    return jnp.where((labels >= 0) & (labels < classes), losses, jnp.nan)
