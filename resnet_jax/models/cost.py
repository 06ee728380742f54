"""The cost of a network: parameters and multiply-adds, from its specification or, for a known name, from a table.

``costs.csv`` holds the costs of all architectures, because computing them traces every network.
"""

import csv
import dataclasses
import functools
import importlib.resources
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError, nearest
from resnet_jax.models.resnet import ResNet, variable_shapes


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of an architecture with its published number of classes and three channels.

    Attributes:
      parameters: number of parameters; running statistics are not included.
      image_size: image size in pixels that ``multiply_adds`` is for: 32 for networks with the CIFAR stem; otherwise the
        training size of the most accurate published weights, or 224.
      multiply_adds: of the convolutions and linear layers for one image, forward pass.
    """

    parameters: int
    image_size: int
    multiply_adds: int


@functools.cache
def _costs() -> dict[str, Cost]:
    source = importlib.resources.files('resnet_jax.models') / 'costs.csv'
    rows = csv.DictReader(source.read_text(encoding='utf-8').splitlines())
    return {row.pop('name'): Cost(**{field: int(value) for field, value in row.items()}) for row in rows}


def get_cost(name: str) -> Cost:
    """The cost of a named architecture, from a table; no network is traced.

    Args:
      name: one of ``list_models()``.

    Raises:
      InputError: an unknown name.
    """
    if name not in _costs():
        raise InputError(f'unknown architecture {name!r}; {nearest(name, _costs())}; list_models() returns all names')
    return _costs()[name]


def count_parameters(model: ResNet, in_channels: int = 3) -> int:
    """Counts the parameters of a network; running statistics are not included.

    Args:
      model: the network.
      in_channels: number of image channels.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model, in_channels)['params']))


@functools.lru_cache(maxsize=64)
def multiply_adds(model: ResNet, image_shape: tuple[int, int, int]) -> int:
    """Counts the multiply-adds of the convolutions and linear layers for one image, as papers and torchvision do.

    Only the forward pass is counted.

    Args:
      model: the network.
      image_shape: ``(H, W, C)``.
    """
    # Plain XLA has the multiplications of the definition; without scanning, the variables are in the stored form.
    plain = model.clone(implementation='xla', scan_blocks=False)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = variable_shapes(model, image_shape[-1])
    return _count_multiply_adds(jax.make_jaxpr(lambda v, x: plain.apply(v, x, train=False))(variables, images).jaxpr)


def _count_multiply_adds(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        size = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == 'conv_general_dilated':
            kernel = equation.invars[1].aval.shape
            total += size * math.prod(kernel) // kernel[equation.params['dimension_numbers'].rhs_spec[0]]
        elif equation.primitive.name == 'dot_general':
            contracted = equation.params['dimension_numbers'][0][0]
            total += size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        else:
            total += equation.params.get('length', 1) * sum(map(_count_multiply_adds, _inner_jaxprs(equation.params)))
    return total


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs inside an equation, such as a loop's body or a called function."""
    for value in params.values():
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
            yield inner
