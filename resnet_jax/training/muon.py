"""Muon: momentum made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.training.rules import Rule, for_each_array

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS, _EPSILON, _RMS = 5, 1e-7, 0.2


def scale_by_muon(momentum: float, rules: Any, others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon's direction for the matrices of hidden layers, another one for the rest.

    Args:
      momentum: Nesterov's.
      rules: the tree of ``rules.Rule``.
      others: gives the direction of what is no matrix.
    """

    def direction(rule: Rule, update: jax.Array, param: jax.Array) -> jax.Array:
        del rule, param
        matrix = update.reshape(-1, update.shape[-1])
        scale = _RMS * math.sqrt(max(matrix.shape))
        return scale * orthogonalized(matrix).reshape(update.shape)

    matrices = optax.chain(optax.trace(momentum, nesterov=True), for_each_array(rules, direction))
    labels = jax.tree.map(lambda rule: 'muon' if rule.matrix else 'adamw', rules)
    return optax.partition({'muon': matrices, 'adamw': others}, labels)


def orthogonalized(matrix: jax.Array) -> jax.Array:
    """About ``U V^T`` of a matrix ``U S V^T``: singular values go to between 0.7 and 1.2, very small ones less far.

    Five times ``X ← a X + b (X X^T) X + c (X X^T)^2 X`` on the matrix divided by its Frobenius norm, the Newton-Schulz
    iteration with the coefficients of Jordan et al. 2024 (kellerjordan.github.io/posts/muon).

    Args:
      matrix: float32 ``[M, N]``.

    Returns:
      ``[M, N]``.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # the smaller of the two products
    x = x / jnp.maximum(jnp.linalg.norm(x), _EPSILON)
    a, b, c = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return x.T if tall else x
