"""The cost of a network, from its specification: parameters and multiply-adds."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.models.resnet import ResNet, variable_shapes


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
