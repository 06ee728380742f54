"""Muon: orthogonalized momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.training.rules import Rule, for_each_array

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS, _EPSILON, _RMS = 5, 1e-7, 0.2


def scale_by_muon(momentum: float, rules: Any, others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon's update direction for the matrices of hidden layers, another optimizer's for the rest.

    Args:
      momentum: coefficient of Nesterov's momentum.
      rules: the tree of ``rules.Rule``.
      others: transformation of the parameters that are not matrices of hidden layers.
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
    """Approximates ``U V^T`` of a matrix ``U S V^T``: singular values become 0.7 to 1.2, very small ones stay smaller.

    Applies the Newton-Schulz iteration ``X ← a X + b (X X^T) X + c (X X^T)^2 X`` five times to the matrix divided by
    its Frobenius norm, with the coefficients of Jordan et al. 2024 (kellerjordan.github.io/posts/muon).

    Args:
      matrix: float32 ``[M, N]``.

    Returns:
      ``[M, N]``.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix  # so that X X^T is the smaller product
    x = x / jnp.maximum(jnp.linalg.norm(x), _EPSILON)
    a, b, c = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return x.T if tall else x
