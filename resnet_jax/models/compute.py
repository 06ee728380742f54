"""How layers compute, and in which mode: the settings that a network hands to every layer."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.export
import jax.numpy as jnp

from resnet_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network's layers compute, the same in all of them.

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
    axis_name: str | tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a call is for.

    Attributes:
      train: as in ``norm.BatchNorm``.
      update_stats: see there.
    """

    train: bool
    update_stats: bool | None = None


def is_constant(shape: Sequence[Any]) -> bool:
    """Whether all sizes are numbers; those of a program that ``jax.export`` makes for any size are symbols."""
    return not any(jax.export.is_symbolic_dim(size) for size in shape)


@contextlib.contextmanager
def explaining_forward_mode() -> Iterator[None]:
    """Around a call with a gradient written by hand: JAX's refusal to differentiate it forward names the way out.

    That is so where nothing is compiled: in ``jax.jvp``, ``jax.jacfwd`` and ``jax.hessian`` of a plain function.
    Under ``jax.jit``, JAX differentiates what it has traced before, outside of this call, and its own words remain.

    Raises:
      InputError: forward mode, with ``implementation='auto'``.
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
