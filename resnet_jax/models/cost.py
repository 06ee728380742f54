"""What a network costs, from its description alone: parameters and multiply-adds."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.models.resnet import ResNet, init_variables


def count_parameters(model: ResNet, in_channels: int = 3) -> int:
    """Numbers that training changes; running statistics are not among them."""
    shapes = jax.eval_shape(lambda key: init_variables(model, key, (64, 64, in_channels)), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


def multiply_adds(model: ResNet, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of convolutions and linear layers for one image, forward, as papers and torchvision count them.

    Args:
      model: the network.
      image_shape: ``(H, W, C)``.
    """
    plain = model.clone(implementation='xla')  # whose products are those of the definition
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda key: init_variables(plain, key, image_shape), jax.random.key(0))
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
