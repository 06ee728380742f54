"""What a network costs, from its description alone: parameters and multiply-adds."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.models.resnet import ResNet, variable_shapes


def count_parameters(model: ResNet, in_channels: int = 3) -> int:
    """Numbers that training changes; running statistics are not among them."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model, in_channels)['params']))


@functools.lru_cache(maxsize=64)
def multiply_adds(model: ResNet, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of convolutions and linear layers for one image, forward, as papers and torchvision count them.

    Args:
      model: the network.
      image_shape: ``(H, W, C)``.
    """
    # Whose products are those of the definition, and whose variables have the shapes of the stored form.
    plain = model.clone(implementation='xla', scan_blocks=False)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = variable_shapes(model, image_shape[-1])
    return _count(jax.make_jaxpr(lambda v, x: plain.apply(v, x, train=False))(variables, images).jaxpr)


def _count(jaxpr: Any) -> int:
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
            total += equation.params.get('length', 1) * sum(map(_count, _inner(equation.params)))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs within an equation: the body of a loop, a function that is called."""
    for value in params.values():
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
            yield inner
