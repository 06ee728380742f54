"""Residual networks, built from their specifications."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.checks import check_image_shape, check_key
from resnet_jax.models.compute import AxisName, Compute, Mode
from resnet_jax.models.layers import Dropout, Stem, make_normalization
from resnet_jax.models.pooling import global_avg_pool
from resnet_jax.models.scanned import apply_scanned, as_stored, is_scanned
from resnet_jax.models.spec import ResNetSpec


class ResNet(nn.Module):
    """A residual network: stem, stages of blocks, global average pool, linear head.

    Parameters have paths such as ``stem/…``, ``stage2_block1/conv2/kernel`` and ``head/kernel``, which are stable.

    Attributes:
      spec: the architecture.
      dtype: compute dtype up to the pool; parameters, statistics and logits are float32.
      implementation: ``auto`` or ``xla``, as in ``conv.convolution``: fast implementations for each platform, or plain
        XLA, which also supports forward-mode differentiation.
      statistics: the statistics that batch normalization uses in training, as in ``norm.BatchNorm``.
      scan_blocks: compile the identical blocks 2, 3, … of each stage only once, as the body of a loop, so a deep
        network compiles as fast as a shallow one. The variables must be in the form that ``scanned.as_computed``
        returns.
      remat: store only the input of each block for the backward pass, and recompute its intermediate results.
      frozen: None, or a regular expression: the stem, the blocks and the final normalization whose names it matches
        from the beginning compute the same in training as in evaluation.
      axis_name: None, or the device axes over which batch normalization computes its statistics, as in
        ``norm.BatchNorm``.
    """

    spec: ResNetSpec
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    statistics: str | int = 'global'
    scan_blocks: bool = False
    remat: bool = False
    frozen: str | None = None
    axis_name: AxisName = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, update_stats: bool | None = None, features_only: bool = False
    ) -> Any:
        """Computes the logits of a batch of images.

        Args:
          images: ``[N, H, W, C]``, normalized, of any float dtype.
          train: normalize with the batch statistics and update the running statistics; the ``batch_stats`` collection
            must be mutable.
          update_stats: False does not update the running statistics in training.
          features_only: return the result of ``features`` instead; the head is not computed.

        Returns:
          float32 ``[N, K]``.

        Raises:
          InputError: the images have the wrong rank, dtype or number of channels.
        """
        check_images(images, self.variables.get('params', {}).get('stem', {}))
        spec = self.spec
        mode = Mode(train, update_stats)
        compute = Compute(self.dtype, self.implementation, spec.norm, self.statistics, spec.standardize, self.axis_name)
        # A pre-activation network normalizes before every convolution except the first. Its stem therefore has no
        # normalization after the convolution: that of the first block follows, even after an ImageNet stem's pool.
        stem = Stem(
            spec.stem.kind,
            spec.stem.width,
            not spec.pre_activation,
            spec.stem.pool,
            spec.antialias,
            compute=compute,
            name='stem',
        )
        stem_mode = self._mode('stem', mode)
        x = stem(images.astype(self.dtype), train=stem_mode.train, update_stats=stem_mode.update_stats)
        outputs = {'stem': x}
        for stage in range(1, len(spec.stages) + 1):
            x = outputs[f'stage{stage}'] = self._stage(x, stage, compute, mode)
        if spec.pre_activation:
            x = make_normalization(compute, 'norm', self._mode('norm', mode), relu=True)(x)
        self.sow('intermediates', 'last_map', x)  # the pool's input, for class activation maps
        outputs['pooled'] = global_avg_pool(x)
        if features_only:
            return outputs
        x = outputs['pooled']
        if train and spec.head.dropout_rate:
            x = Dropout(spec.head.dropout_rate)(x)
        return new_head(spec.head.num_classes, name='head')(x)

    def _stage(self, x: jax.Array, number: int, compute: Compute, mode: Mode) -> jax.Array:
        """Applies the blocks of a stage; ``number`` counts from 1."""
        spec, stage = self.spec, self.spec.stages[number - 1]
        before, size = sum(earlier.size for earlier in spec.stages[: number - 1]), stage.size
        stride, dilation, first_dilation = spec.strides_and_dilations()[number - 1]
        make = functools.partial(
            stage.block_class,
            features=stage.width,
            dilation=dilation,
            compute=compute,
            **spec.block_options(number),
        )
        # Further options of the first block, and of each block of a pruned network.
        first: dict[str, Any] = {'stride': stride, 'first_dilation': first_dilation}
        if stage.block_class.pre_activation and number == 1:
            first['first'] = True
        pruned: list[dict[str, Any]] = [{} for _ in range(size)]
        if spec.blocks.channels:
            pruned = [{'channels': channels} for channels in spec.blocks.channels[before : before + size]]
        # The linear decay rule of Huang et al. 2016 (arXiv:1603.09382, Eq. 4), from 0 at the network's first block.
        last = max(sum(each.size for each in spec.stages) - 1, 1)
        rates = [spec.blocks.drop_path_rate * index / last for index in range(before, before + size)]
        names = [f'stage{number}_block{index}' for index in range(1, size + 1)]
        x = self._apply_block(make(**first, **pruned[0], name=names[0]), x, self._mode(names[0], mode), rates[0])
        if self.scan_blocks and (spec.blocks.channels or self.frozen):
            raise InputError('scan_blocks=True is not supported with pruned or frozen blocks')
        if self.scan_blocks and is_scanned(size):
            return apply_scanned(
                lambda block, x, rate: self._apply_block(block, x, mode, rate), make, number, x, rates[1:]
            )
        for name, channels, rate in zip(names[1:], pruned[1:], rates[1:], strict=True):
            x = self._apply_block(make(**channels, name=name), x, self._mode(name, mode), rate)
        return x

    def _apply_block(self, block: nn.Module, x: jax.Array, mode: Mode, rate: float | jax.Array) -> jax.Array:
        """Applies a block; with ``remat``, the backward pass recomputes its intermediate results."""

        def call(block: nn.Module, x: jax.Array) -> jax.Array:
            return block(x, train=mode.train, update_stats=mode.update_stats, drop_rate=rate)

        return (nn.remat(call) if self.remat else call)(block, x)

    def _mode(self, name: str, mode: Mode) -> Mode:
        """Returns the mode of a submodule: evaluation if its name matches ``frozen``."""
        frozen = self.frozen is not None and re.match(self.frozen, name) is not None
        return Mode(train=False) if frozen else mode

    def features(self, images: jax.Array, *, train: bool, update_stats: bool | None = None) -> dict[str, jax.Array]:
        """Computes the feature maps of a batch of images.

        Use as ``model.apply(variables, images, train=False, method=model.features)``.

        Args:
          images: as in ``__call__``.
          train: as in ``__call__``.
          update_stats: as in ``__call__``.

        Returns:
          A dict with ``stem``, ``stage1``, …, each ``[N, H', W', C']``, and ``pooled``, float32 ``[N, C']``.
        """
        return self(images, train=train, update_stats=update_stats, features_only=True)


def check_images(images: Any, stem: Any) -> None:
    """Checks a batch of images, to raise a clearer error than a convolution would.

    Args:
      images: must be float ``[N, H, W, C]``.
      stem: the stem's parameters; empty during initialization.

    Raises:
      InputError: the rank, dtype or number of channels is wrong.
    """
    shape, advice = list(images.shape), ''
    if images.ndim != 4:
        advice = '; images[None] adds the batch axis' if images.ndim == 3 else ''
        raise InputError(f'images must have shape [N, H, W, C], found {shape}{advice}')
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f'images must be floats, normalized as in training, found {images.dtype}')
    channels = input_channels(stem)
    if channels and shape[3] != channels:
        if shape[1] == channels:
            advice = '; jnp.moveaxis(images, 1, -1) converts [N, C, H, W] to [N, H, W, C]'
        raise InputError(f'images must have {channels} channels, found {shape[3]} in {shape}{advice}')


def input_channels(stem: Any) -> int | None:
    """The number of channels of a network's images, from the stem's parameters; None during initialization."""
    return next((layer['kernel'].shape[2] for name, layer in stem.items() if name in ('conv', 'conv1')), None)


def new_head(num_classes: int, name: str | None = None) -> nn.Dense:
    """Creates the linear layer ``[N, C]`` to ``[N, K]``: kernel uniform in ±1 / sqrt(C), as in PyTorch, bias 0."""
    init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    return nn.Dense(num_classes, kernel_init=init, name=name)


def init_variables(model: nn.Module, key: jax.Array, image_shape: Sequence[int]) -> dict[str, Any]:
    """Initializes a model's variables, without computing its outputs.

    Args:
      model: a ``ResNet``, or any module with the same call signature.
      key: a key from ``jax.random.key``.
      image_shape: ``(H, W, C)``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: the model is not a module, the key is not a random key, or the shape is not three positive integers.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f'model must be a Linen module, as create_model returns, found {type(model).__name__}')
    check_key('key', key)
    images = jax.ShapeDtypeStruct((1, *check_image_shape(image_shape)), jnp.float32)
    return {'batch_stats': {}} | dict(model.lazy_init(key, images, train=False))  # not every norm has statistics


def variable_shapes(model: ResNet, in_channels: int = 3) -> dict[str, Any]:
    """Returns the shapes and dtypes of a network's variables in the stored form, without computing anything.

    Args:
      model: the network; only its specification matters.
      in_channels: number of image channels.

    Returns:
      ``{'params': …, 'batch_stats': …}`` of ``jax.ShapeDtypeStruct``; cached, so do not modify it.
    """
    spec = model.spec
    quick = ResNet(spec, implementation='xla', scan_blocks=not spec.blocks.channels)  # same variables, faster to trace
    return _traced_shapes(quick, in_channels)


@functools.lru_cache(maxsize=256)
def _traced_shapes(model: ResNet, in_channels: int) -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, 64, 64, in_channels), jnp.float32)  # large enough for every stem and stride

    def init(key: jax.Array, images: jax.Array) -> Any:
        return as_stored({'batch_stats': {}} | dict(model.init(key, images, train=False)))

    return jax.eval_shape(init, jax.random.key(0), images)
