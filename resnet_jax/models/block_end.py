"""The end of a block: last convolution, normalization, addition of the shortcut, activation.

Every block ends here, so a faster version of these steps for one platform only needs a change to this file.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from resnet_jax.models.compute import Mode
from resnet_jax.models.conv import Conv
from resnet_jax.models.layers import Layer


def finish_block(
    block: Layer,
    mode: Mode,
    h: jax.Array,
    shortcut: jax.Array | None,
    *,
    conv: Conv,
    norm: str | None,
    zero_init: bool = False,
    relu_in_branch: bool = False,
    branch: Sequence[Callable[[jax.Array], jax.Array]] = (),
    relu: bool = True,
) -> jax.Array:
    """Computes ``relu(branch(norm(conv(h))) + shortcut)``; all parts except the convolution are optional.

    Args:
      block: the block that calls this, which gets the normalization as a submodule.
      mode: mode of the call.
      h: ``[N, H, W, C]``, the residual branch before its last convolution.
      shortcut: ``[N, H, W, C_out]``, or None in a plain block.
      conv: the last convolution.
      norm: name of its normalization; None in a pre-activation block.
      zero_init: initialize the normalization's scale to zero.
      relu_in_branch: apply a ReLU between the normalization and ``branch``.
      branch: functions applied to the branch after the normalization, such as attention and stochastic depth.
      relu: apply a ReLU to the sum.

    Returns:
      ``[N, H, W, C_out]``.
    """
    if norm is not None and not branch:  # fused: fewer passes over the feature map
        return block.normalization(norm, mode, relu=relu, zero_init=zero_init).after(conv, h, shortcut)
    if norm is not None:
        h = block.normalization(norm, mode, relu=relu_in_branch, zero_init=zero_init).after(conv, h)
    else:
        h = conv(h)
    for step in branch:
        h = step(h)
    h = h if shortcut is None else h + shortcut
    return nn.relu(h) if relu else h
