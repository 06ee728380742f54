"""The end of a block: its last convolution, normalization, the addition of the shortcut, activation.

Every block ends here, so that a platform's own form of the four is a change of this file alone.
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
    """``relu(branch(norm(conv(h))) + shortcut)``, where each part but the convolution may be missing.

    Args:
      block: whose layers these are; it is being called.
      mode: of the call.
      h: ``[N, H, W, C]``, what the branch has computed so far.
      shortcut: ``[N, H, W, C_out]``, or None in a plain block.
      conv: the last convolution.
      norm: name of its normalization; None in a pre-activation block.
      zero_init: start the normalization's scale at zero.
      relu_in_branch: activate already behind the normalization, in front of ``branch``.
      branch: what follows the normalization on the branch: attention, stochastic depth.
      relu: activate the sum.

    Returns:
      ``[N, H, W, C_out]``.
    """
    h = conv(h)
    if norm is not None and not branch:  # in one go, which saves passes over the map
        return block.normalization(norm, mode, relu=relu, zero_init=zero_init)(h, shortcut)
    if norm is not None:
        h = block.normalization(norm, mode, relu=relu_in_branch, zero_init=zero_init)(h)
    for step in branch:
        h = step(h)
    h = h if shortcut is None else h + shortcut
    return nn.relu(h) if relu else h
