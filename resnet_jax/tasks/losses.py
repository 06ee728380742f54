"""Per-example losses: pure functions of two arrays, named as in configurations."""

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
      float32 ``[N]``; NaN if a label is not in [0, K), where its one-hot vector would be zero.
    """
    classes = logits.shape[-1]
    losses = soft_cross_entropy(logits, jax.nn.one_hot(labels, classes), label_smoothing)
    return jnp.where((labels >= 0) & (labels < classes), losses, jnp.nan)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """``softmax_cross_entropy`` for targets ``[N, K]`` that are class probabilities, as for mixed images."""
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
      targets: ``[N, K]`` in [0, 1].
      label_smoothing: ``s`` in [0, 1): targets become ``(1 - s) t + s / 2``, or ``(1 - s) t + s / K`` with
        ``one_of_many``.
      threshold: after smoothing, targets above it become 1, others 0; None for no threshold.
      one_of_many: whether the K labels are exclusive classes, so that smoothing spreads over K, as with softmax.

    Returns:
      float32 ``[N]``; NaN if a target is not in [0, 1].
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
      logits: logits of the student, ``[N, K]``.
      teacher_logits: logits of the teacher, ``[N, K]``, without gradient.
      temperature: T > 0, which divides both; the factor ``T^2`` keeps the scale of the gradient.

    Returns:
      float32 ``[N]``, 0 if both agree.
    """
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits.astype(jnp.float32)) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def sigmoid_distillation(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """Like ``softmax_distillation``, averaged over K Bernoulli distributions."""
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
