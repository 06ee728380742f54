"""The module that builds a residual network from its specification."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.compute import Compute, Mode
from resnet_jax.models.layers import Stem, make_normalization
from resnet_jax.models.pooling import global_avg_pool
from resnet_jax.models.scanned import apply_scanned, as_stored, is_scanned
from resnet_jax.models.spec import ResNetSpec


class ResNet(nn.Module):
    """A residual network from its specification: stem, stages of blocks, global average pool, linear head.

    Parameters live at ``stem/…``, ``stage2_block1/conv2/kernel``, ``head/kernel``; these paths are stable.

    Attributes:
      spec: the architecture.
      dtype: compute dtype of everything up to the pool; parameters, statistics and logits are float32.
      implementation: ``auto`` or ``xla``, as in ``conv.convolution``: what is fast on each platform, or plain XLA,
        which also differentiates forward.
      statistics: what batch normalization normalizes with in training, as in ``norm.BatchNorm``.
      scan_blocks: compile the blocks 2, 3, … of a stage, which are alike, once, as the body of a loop, instead of one
        after the other: a deep network then compiles in the time of a shallow one. It takes variables in the form that
        ``scanned.as_computed`` gives.
      remat: keep only what goes into each block for the backward pass, and compute its inside again.
      frozen: None, or a regular expression: the stem, the blocks and the last normalization whose names it matches at
        their beginning compute in training what they compute in evaluation.
      axis_name: None, or the device axes over which batch normalization takes its statistics, as in ``norm.BatchNorm``.
    """

    spec: ResNetSpec
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    statistics: str | int = 'global'
    scan_blocks: bool = False
    remat: bool = False
    frozen: str | None = None
    axis_name: str | tuple[str, ...] | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, update_stats: bool | None = None, features_only: bool = False
    ) -> Any:
        """Logits of a batch of images.

        Args:
          images: ``[N, H, W, C]``, normalized, of any float dtype.
          train: normalize with the batch's statistics and update the running ones, for which ``batch_stats`` must
            be mutable.
          update_stats: False leaves the running statistics alone while training.
          features_only: give what ``features`` gives, without the head.

        Returns:
          float32 ``[N, K]``.

        Raises:
          InputError: images of another rank, dtype or number of channels than the network takes.
        """
        check_images(images, self.variables.get('params', {}).get('stem', {}))
        spec = self.spec
        mode = Mode(train, update_stats)
        compute = Compute(self.dtype, self.implementation, spec.norm, self.statistics, spec.standardize, self.axis_name)
        # A pre-activation network normalizes in front of every convolution but the first, which sees the images.
        # The ImageNet stem of such a network is followed by the first block's normalization as well.
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
        self.sow('intermediates', 'last_map', x)  # what the pool averages: class activation maps are made of it
        outputs['pooled'] = global_avg_pool(x)
        if features_only:
            return outputs
        x = nn.Dropout(spec.head.dropout_rate)(outputs['pooled'], deterministic=not train)
        return new_head(spec.head.num_classes, name='head')(x)

    def _stage(self, x: jax.Array, number: int, compute: Compute, mode: Mode) -> jax.Array:
        """The blocks of a stage, counted from 1."""
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
        # What the first block is told besides, and each block of a pruned network.
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
        x = self._call(make(**first, **pruned[0], name=names[0]), x, self._mode(names[0], mode), rates[0])
        if self.scan_blocks and (spec.blocks.channels or self.frozen):
            raise InputError('scan_blocks=True is not supported with pruned or frozen blocks')
        if self.scan_blocks and is_scanned(size):
            return apply_scanned(lambda block, x, rate: self._call(block, x, mode, rate), make, number, x, rates[1:])
        for name, channels, rate in zip(names[1:], pruned[1:], rates[1:], strict=True):
            x = self._call(make(**channels, name=name), x, self._mode(name, mode), rate)
        return x

    def _call(self, block: nn.Module, x: jax.Array, mode: Mode, rate: float | jax.Array) -> jax.Array:
        """A block applied, whose inside is kept for the backward pass or not."""

        def call(block: nn.Module, x: jax.Array) -> jax.Array:
            return block(x, train=mode.train, update_stats=mode.update_stats, drop_rate=rate)

        return (nn.remat(call) if self.remat else call)(block, x)

    def _mode(self, name: str, mode: Mode) -> Mode:
        """The mode of a part by its name."""
        frozen = self.frozen is not None and re.match(self.frozen, name) is not None
        return Mode(train=False) if frozen else mode

    def features(self, images: jax.Array, *, train: bool, update_stats: bool | None = None) -> dict[str, jax.Array]:
        """Feature maps ``{'stem', 'stage1', …, 'pooled'}``: ``[N, H', W', C']`` each, ``pooled`` float32 ``[N, C']``.

        Use as ``model.apply(variables, images, train=False, method=model.features)``.
        """
        return self(images, train=train, update_stats=update_stats, features_only=True)


def check_images(images: Any, stem: Any) -> None:
    """Explains what is wrong with a batch of images, before a convolution stumbles over it.

    Args:
      images: should be float ``[N, H, W, C]``.
      stem: its parameters; empty while they are made.

    Raises:
      InputError: of another rank, dtype or number of channels.
    """
    shape, advice = list(images.shape), ''
    if images.ndim != 4:
        advice = '; images[None] adds the batch axis' if images.ndim == 3 else ''
        raise InputError(f'images must have shape [N, H, W, C], found {shape}{advice}')
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f'images must be floats, normalized as in training, found {images.dtype}')
    channels = [layer['kernel'].shape[2] for name, layer in stem.items() if name in ('conv', 'conv1')]
    if channels and shape[3] != channels[0]:
        if shape[1] == channels[0]:
            advice = '; jnp.moveaxis(images, 1, -1) converts [N, C, H, W] to [N, H, W, C]'
        raise InputError(f'images must have {channels[0]} channels, found {shape[3]} in {shape}{advice}')


def new_head(num_classes: int, name: str | None = None) -> nn.Dense:
    """The linear layer ``[N, C]`` to ``[N, K]``, its kernel uniform in ±1 / sqrt(C) as PyTorch's, its bias 0."""
    init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    return nn.Dense(num_classes, kernel_init=init, name=name)


def init_variables(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Fresh variables of a model, without running it on an image.

    Args:
      model: a ``ResNet`` or any module with its call.
      key: a key from ``jax.random.key``.
      image_shape: ``(H, W, C)``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return {'batch_stats': {}} | dict(model.lazy_init(key, images, train=False))  # not every norm has statistics


def variable_shapes(model: ResNet, in_channels: int = 3) -> dict[str, Any]:
    """Shapes and dtypes of a network's variables in the stored form, from a trace that computes nothing.

    Args:
      model: the network; how it is computed does not matter, nor does the size of the images.
      in_channels: of the images.

    Returns:
      ``{'params': …, 'batch_stats': …}`` of ``jax.ShapeDtypeStruct``; calls share it.
    """
    spec = model.spec
    quick = ResNet(spec, implementation='xla', scan_blocks=not spec.blocks.channels)  # the same, traced in less time
    return _traced_shapes(quick, in_channels)


@functools.lru_cache(maxsize=256)
def _traced_shapes(model: ResNet, in_channels: int) -> dict[str, Any]:
    size = (64, 64, in_channels)  # large enough for every stem and stride
    return jax.eval_shape(lambda key: as_stored(init_variables(model, key, size)), jax.random.key(0))
