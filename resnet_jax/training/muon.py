"""Muon: orthogonalized momentum (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.models.scanned import block_shape
from resnet_jax.training.rules import Rule, for_all_arrays

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS, _EPSILON, _RMS = 5, 1e-7, 0.2
_MOST_GROUPS = 5


def scale_by_muon(momentum: float, rules: Any, others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon's update direction for the matrices of hidden layers, another optimizer's for the rest.

    Args:
      momentum: coefficient of Nesterov's momentum.
      rules: the tree of ``rules.Rule``.
      others: transformation of the parameters that are not matrices of hidden layers.
    """

    def directions(rules: Sequence[Rule], updates: Sequence[jax.Array]) -> list[jax.Array]:
        shapes = [block_shape(rule.path, update) for rule, update in zip(rules, updates, strict=True)]
        matrices = [
            update.reshape(-1, math.prod(shape[:-1]), shape[-1]) for shape, update in zip(shapes, updates, strict=True)
        ]
        return [
            (_RMS * math.sqrt(max(matrix.shape[1:])) * matrix).reshape(update.shape)
            for matrix, update in zip(orthogonalized_together(matrices), updates, strict=True)
        ]

    matrices = optax.chain(optax.trace(momentum, nesterov=True), for_all_arrays(rules, directions))
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
    a, b, c = _POLYNOMIAL

    def iterate(_: Any, x: jax.Array) -> jax.Array:
        product = x @ x.T
        return a * x + (b * product + c * product @ product) @ x

    x = jax.lax.fori_loop(0, _ITERATIONS, iterate, x / jnp.maximum(jnp.linalg.norm(x), _EPSILON))
    return x.T if tall else x


def orthogonalized_together(matrices: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns ``orthogonalized`` of all matrices, from at most 15 matrix products in the compiled program.

    One by one, the iteration is three products for every matrix, in dozens of shapes, and a compiler for GPUs times
    many tilings of each shape. Therefore matrices of similar shapes are filled with zeros, which the iteration keeps,
    and share a batched product, see ``grouped``.

    Args:
      matrices: each float32 ``[B, M, N]``, a batch of matrices of one shape.

    Returns:
      Arrays of the same shapes.
    """
    tall = [matrix.shape[1] > matrix.shape[2] for matrix in matrices]
    wide = [matrix.mT if turn else matrix for matrix, turn in zip(matrices, tall, strict=True)]
    found: dict[int, jax.Array] = {}
    for group in grouped([matrix.shape for matrix in wide]):
        filled = [_filled(wide[index], group.rows, group.columns) for index in group.members]
        start, result = 0, jax.vmap(orthogonalized)(jnp.concatenate(filled))
        for index in group.members:
            batch, rows, columns = wide[index].shape
            part = result[start : start + batch, :rows, :columns]
            found[index] = part.mT if tall[index] else part
            start += batch
    return [found[index] for index in range(len(matrices))]


@dataclasses.dataclass(frozen=True)
class Group:
    """Batches of wide matrices that are filled to one shape.

    Attributes:
      members: indices of the batches.
      batch: number of matrices, over all members.
      rows: largest number of rows.
      columns: largest number of columns.
    """

    members: tuple[int, ...]
    batch: int
    rows: int
    columns: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one iteration."""
        return self.batch * (2 * self.rows**2 * self.columns + self.rows**3)

    def __add__(self, other: 'Group') -> 'Group':
        """The group of the members of both."""
        return Group(
            self.members + other.members,
            self.batch + other.batch,
            max(self.rows, other.rows),
            max(self.columns, other.columns),
        )


def grouped(shapes: Sequence[tuple[int, ...]]) -> list[Group]:
    """Groups batches of matrices for common products: one group per shape, merged until at most five are left.

    Each time, the two groups are merged whose merging adds the fewest multiply-adds. Five groups are few for a compiler
    and cost little: filling adds 3 % to the iteration's multiply-adds for ``resnet18_cifar``, 1 % for ``wrn28_10``,
    3 % for ``resnext50_32x4d``, 7 % for ``preact_resnet164`` and 16 % for ``resnet50``. Rounding the smaller side up to
    a multiple of 64 instead adds 16, 8, 6, 297 and 53 %, since it also fills columns.

    Args:
      shapes: ``(B, M, N)`` of each batch, with ``M ≤ N``.
    """
    by_shape: dict[tuple[int, ...], Group] = {}
    for index, (batch, rows, columns) in enumerate(shapes):
        one = Group((index,), batch, rows, columns)
        by_shape[rows, columns] = by_shape[rows, columns] + one if (rows, columns) in by_shape else one
    groups = list(by_shape.values())

    def added(pair: tuple[Group, Group]) -> int:
        return (pair[0] + pair[1]).multiply_adds - pair[0].multiply_adds - pair[1].multiply_adds

    while len(groups) > _MOST_GROUPS:
        first, second = min(itertools.combinations(groups, 2), key=added)
        groups = [group for group in groups if group not in (first, second)] + [first + second]
    return groups


def _filled(matrices: jax.Array, rows: int, columns: int) -> jax.Array:
    """Fills matrices ``[B, M, N]`` with zeros to ``[B, rows, columns]``."""
    _, height, width = matrices.shape
    return jnp.pad(matrices, ((0, 0), (0, rows - height), (0, columns - width)))
