"""Convolution with explicit padding, and how each platform computes it.

The docstrings of the project use these letters for axes:

    N  examples       H, W  height and width      C  channels
    K  classes        G     groups                kh, kw  kernel height and width

Images and feature maps are ``[N, H, W, C]``, kernels ``[kh, kw, C / G, C_out]``.

Padding is ``(k - 1) // 2 * dilation`` on both sides, as in PyTorch and in the papers' Caffe and Torch code. It is
never ``'SAME'``, which pads a strided convolution more on one side than on the other: the shapes and the parameter
count are the same, but the values differ.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.devices import match_varying_axes, sharding_spec, with_auto_axes
from resnet_jax.errors import InputError
from resnet_jax.models import conv_cpu, conv_gpu, conv_tpu
from resnet_jax.models.compute import explaining_forward_mode, is_constant
from resnet_jax.models.conv_common import convolve_blocks, plain, subsample

IMPLEMENTATIONS = ('auto', 'xla')

# He et al. 2015b (arXiv:1502.01852), Eq. 14: the variance that preserves the scale of gradients through ReLU layers.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def check_implementation(implementation: str) -> None:
    """Raises InputError unless the value is one of ``IMPLEMENTATIONS``."""
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f'implementation={implementation!r} must be one of {", ".join(IMPLEMENTATIONS)}')


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    implementation: str = 'auto',
) -> jax.Array:
    """Two-dimensional cross-correlation with symmetric padding.

    Args:
      x: ``[N, H, W, C]``.
      kernel: ``[kh, kw, C / G, C_out]``, of the same dtype as ``x``.
      stride: step of the window along H and W, in pixels.
      dilation: distance between neighboring taps, in pixels.
      groups: G; input and output channels are split into G groups, and each group is convolved independently.
      implementation: ``auto`` uses a fast implementation for the platform that the program is compiled for, and
        supports only reverse-mode differentiation; ``xla`` is ``lax.conv_general_dilated``, which also supports
        forward mode (``jax.jvp``, Hessian-vector products).

    Returns:
      ``[N, H_out, W_out, C_out]`` with ``H_out = (H + 2 pad - dilation (kh - 1) - 1) // stride + 1``.

    Raises:
      InputError: the implementation is unknown.
    """
    check_implementation(implementation)
    if implementation == 'xla':
        return plain(x, kernel, stride, dilation, groups)
    x, kernel = match_varying_axes(x, kernel)
    rule = _convolution if is_constant(x.shape) else _symbolic_convolution
    with explaining_forward_mode():
        return rule(x, kernel, stride, dilation, groups)


def _on_cpu(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int) -> jax.Array:
    if groups == 1:
        return conv_cpu.forward(x, kernel, stride, dilation)
    dense = functools.partial(_convolution, stride=stride, dilation=dilation, groups=1)
    return convolve_blocks(dense, x, kernel, groups, conv_cpu.BLOCK)


def _forms(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int) -> dict[str, Callable[..., Any]]:
    """The forms of accelerators for this convolution, by platform, where they are not XLA's own."""
    forms: dict[str, Callable[..., Any]] = {'default': plain}
    if conv_gpu.packs(x, kernel, stride, dilation, groups):
        forms['cuda'] = conv_gpu.forward
    if groups not in (1, x.shape[3]):
        forms['tpu'] = conv_tpu.forward
    options: dict[str, Any] = {'stride': stride, 'dilation': dilation, 'groups': groups}
    return {platform: functools.partial(form, **options) for platform, form in forms.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int) -> jax.Array:
    on_cpu = functools.partial(_on_cpu, stride=stride, dilation=dilation, groups=groups)
    forms = _forms(x, kernel, stride, dilation, groups)
    choose = functools.partial(lax.platform_dependent, cpu=on_cpu, **forms)
    # Only the examples stay split, whatever the kernel is: what follows has parameters for all channels.
    return with_auto_axes(choose, x, kernel, out_spec=(sharding_spec(x)[0], None, None, None))


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolution(x, kernel, stride, dilation, groups), (x, kernel)


def _backward(
    stride: int, dilation: int, groups: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def by_jax(form: Any, x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(form, x, kernel)[1](dy)

    def on_cpu(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        if groups == 1:
            return conv_cpu.gradients(x, kernel, dy, stride, dilation)
        return by_jax(functools.partial(_on_cpu, stride=stride, dilation=dilation, groups=groups), x, kernel, dy)

    forms = _forms(*saved, stride, dilation, groups)
    others = {platform: functools.partial(by_jax, form) for platform, form in forms.items()}
    choose = functools.partial(lax.platform_dependent, cpu=on_cpu, **others)
    return with_auto_axes(choose, *saved, dy, out_spec=[sharding_spec(operand) for operand in saved])


_convolution.defvjp(_forward, _backward)


def gradients(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of ``x`` and ``kernel`` in ``convolution(x, kernel)``, given that of its result."""
    return _backward(1, 1, 1, (x, kernel), dy)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _symbolic_convolution(x: jax.Array, kernel: jax.Array, stride: int, dilation: int, groups: int) -> jax.Array:
    """XLA's own convolution for symbolic sizes; the padding of its gradient is constant, as JAX requires."""
    return plain(x, kernel, stride, dilation, groups)


def _symbolic_gradients(
    stride: int, dilation: int, groups: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def by_subsampling(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return subsample(plain(x, kernel, 1, dilation, groups), stride)

    return jax.vjp(by_subsampling, *saved)[1](dy)


_symbolic_convolution.defvjp(
    lambda x, kernel, *options: (_symbolic_convolution(x, kernel, *options), (x, kernel)), _symbolic_gradients
)


@dataclasses.dataclass(frozen=True)
class BoundConvolution:
    """A convolution with its kernel: ``conv(x)`` is ``convolution(x, kernel, …)`` in the dtype of ``x``.

    Attributes:
      kernel: float32 ``[kh, kw, C / G, C_out]``.
      stride: as in ``convolution``.
      dilation: as in ``convolution``.
      groups: as in ``convolution``.
      implementation: as in ``convolution``.
    """

    kernel: jax.Array
    stride: int
    dilation: int
    groups: int
    implementation: str

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, H, W, C]`` to ``[N, H_out, W_out, C_out]``."""
        kernel = self.kernel.astype(x.dtype)
        return convolution(x, kernel, self.stride, self.dilation, self.groups, self.implementation)


class Conv(nn.Module):
    """Convolution; by default without a bias, because the normalization that follows has one.

    Attributes:
      features: C_out, number of output channels.
      kernel_size: kh = kw.
      stride: step of the window along H and W, in pixels.
      dilation: distance between neighboring taps, in pixels.
      groups: G, a divisor of the numbers of input and output channels.
      use_bias: add a vector ``bias`` to the result.
      standardize: None, or the epsilon of weight standardization (Qiao et al. 2019, arXiv:1903.10520): the kernel of
        each output channel is normalized to mean 0 and variance 1, ``(w - mean) / sqrt(var + epsilon)``.
      dtype: compute dtype; parameters are float32.
      implementation: as in ``convolution``.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    standardize: float | None = None
    dtype: Any = jnp.float32
    implementation: str = 'auto'

    @nn.compact
    def __call__(
        self, x: jax.Array, then: Callable[[jax.Array, BoundConvolution], jax.Array] | None = None
    ) -> jax.Array:
        """Maps ``[N, H, W, C]`` to ``[N, H_out, W_out, features]``.

        Args:
          x: ``[N, H, W, C]``.
          then: None, or a function of ``x`` and the convolution, which computes it together with what follows. The
            layer then has no bias.

        Raises:
          InputError: ``groups`` does not divide the input and output channels.
        """
        channels = x.shape[-1]
        if channels % self.groups or self.features % self.groups:
            raise InputError(
                f'groups={self.groups} must divide the input channels ({channels})'
                f' and the output channels ({self.features})'
            )
        shape = (self.kernel_size, self.kernel_size, channels // self.groups, self.features)
        kernel = self.param('kernel', he_normal_fan_out, shape, jnp.float32)
        if self.standardize is not None:
            deviations = kernel - kernel.mean((0, 1, 2), keepdims=True)
            var = jnp.square(deviations).mean((0, 1, 2), keepdims=True)
            kernel = deviations * lax.rsqrt(var + self.standardize)
        conv = BoundConvolution(kernel, self.stride, self.dilation, self.groups, self.implementation)
        if then is not None:
            return then(x, conv)
        y = conv(x.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)[None, None, None]
