"""How layers compute, and in which mode: the settings that a network passes to every layer."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.export
import jax.numpy as jnp

from resnet_jax.errors import InputError

AxisName = str | tuple[str, ...] | None  # device axes of jax.shard_map, jax.pmap or jax.vmap


@dataclasses.dataclass(frozen=True)
class Compute:
    """How all layers of a network compute.

    Attributes:
      dtype: compute dtype; parameters are float32.
      implementation: ``auto`` or ``xla``, as in ``conv.convolution``.
      norm: a key of ``norm.NORMS``.
      statistics: as in ``norm.BatchNorm``.
      standardize: None, or the epsilon of weight standardization, as in ``conv.Conv``.
      axis_name: as in ``norm.BatchNorm``.
    """

    dtype: Any = jnp.float32
    implementation: str = 'auto'
    norm: str = 'batch'
    statistics: str | int = 'global'
    standardize: float | None = None
    axis_name: AxisName = None


@dataclasses.dataclass(frozen=True)
class Mode:
    """The mode of a call: training or evaluation.

    Attributes:
      train: as in ``norm.BatchNorm``.
      update_stats: as in ``norm.BatchNorm``.
    """

    train: bool
    update_stats: bool | None = None


def is_constant(shape: Sequence[Any]) -> bool:
    """Whether all sizes are integers, not symbols of a program that ``jax.export`` exports for any size."""
    return not any(jax.export.is_symbolic_dim(size) for size in shape)


@contextlib.contextmanager
def explaining_forward_mode() -> Iterator[None]:
    """Replaces JAX's error for forward-mode differentiation of a ``custom_vjp`` with one that names the alternative.

    This works for functions that are not compiled, in ``jax.jvp``, ``jax.jacfwd`` and ``jax.hessian``. Under
    ``jax.jit``, JAX differentiates the traced program outside of this context, and JAX's own error remains.

    Raises:
      InputError: forward mode with ``implementation='auto'``.
    """
    try:
        yield
    except TypeError as error:
        if 'jvp' not in str(error) or 'custom_vjp' not in str(error):
            raise
        raise InputError(
            "implementation='auto' supports only reverse-mode differentiation; forward mode (jax.jvp, jax.jacfwd,"
            " jax.hessian) requires implementation='xla'"
        ) from error
