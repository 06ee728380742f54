"""Losses, one value for each example, by the names that configurations give them: pure functions of two arrays."""

import jax
import jax.numpy as jnp
import optax

LOSSES = ('softmax_cross_entropy', 'sigmoid_cross_entropy', 'squared_error', 'absolute_error')


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
    losses = soft_cross_entropy(logits, jax.nn.one_hot(labels, classes), label_smoothing)
    return jnp.where((labels >= 0) & (labels < classes), losses, jnp.nan)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """``softmax_cross_entropy`` of targets ``[N, K]`` that are shares of the classes, as mixed images have them."""
    smooth = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), smooth)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    label_smoothing: float = 0.0,
    threshold: float | None = None,
    one_of_many: bool = False,
) -> jax.Array:
    """``mean_k -(t_k log p_k + (1 - t_k) log(1 - p_k))`` with ``p = sigmoid(logits)``: PyTorch's BCEWithLogitsLoss.

    Args:
      logits: ``[N, K]``.
      targets: ``[N, K]``, from 0 to 1.
      label_smoothing: ``s`` in [0, 1): targets become ``(1 - s) t + s / 2``, or ``(1 - s) t + s / K`` with
        ``one_of_many``.
      threshold: targets above it become 1, the others 0, after smoothing; None leaves them.
      one_of_many: the K labels are classes of which an example has one, so that a share goes to each K-th, as with
        softmax.

    Returns:
      float32 ``[N]``; NaN where a target is not from 0 to 1.
    """
    targets = targets.astype(jnp.float32)
    smooth = (1 - label_smoothing) * targets + label_smoothing / (logits.shape[-1] if one_of_many else 2)
    if threshold is not None:
        smooth = jnp.where(smooth > threshold, 1.0, 0.0)
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), smooth)
    return jnp.where((targets >= 0) & (targets <= 1), losses, jnp.nan).mean(-1)


def softmax_distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """``T^2 KL(teacher || student)`` of softmaxes at temperature T (Hinton et al. 2015, arXiv:1503.02531).

    Args:
      logits: of the student, ``[N, K]``.
      teacher_logits: ``[N, K]``; no gradient goes through them.
      temperature: T, above 0, that divides both; ``T^2`` keeps the size of the gradient.

    Returns:
      float32 ``[N]``, 0 where both are the same.
    """
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits.astype(jnp.float32)) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def sigmoid_distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """As ``softmax_distillation`` between K yes-or-no distributions, over which the mean is taken."""
    student = logits.astype(jnp.float32) / temperature
    teacher = jax.lax.stop_gradient(teacher_logits.astype(jnp.float32)) / temperature
    shares = jax.nn.sigmoid(teacher)
    entropies = optax.sigmoid_binary_cross_entropy(teacher, shares)
    return temperature**2 * (optax.sigmoid_binary_cross_entropy(student, shares) - entropies).mean(-1)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """``mean_d (y_d - t_d)^2``: ``[N, D]`` and ``[N, D]`` to float32 ``[N]``."""
    return jnp.square(outputs.astype(jnp.float32) - targets).mean(-1)


def absolute_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """``mean_d |y_d - t_d|``: ``[N, D]`` and ``[N, D]`` to float32 ``[N]``."""
    return jnp.abs(outputs.astype(jnp.float32) - targets).mean(-1)
