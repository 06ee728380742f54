"""The specification of a residual network, and the module that builds it."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.models.attention import ATTENTIONS
from resnet_jax.models.blocks import Block
from resnet_jax.models.branch_blocks import BLOCKS
from resnet_jax.models.layers import SHORTCUTS, STEMS, Stem, check_choice, make_normalization
from resnet_jax.models.norm import NORMS
from resnet_jax.models.pooling import ANTIALIAS, STEM_POOLS, global_avg_pool


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """An architecture as data: hashable, comparable, JSON-able; variants by ``dataclasses.replace``.

    Attributes:
      block: a key of ``branch_blocks.BLOCKS``, or one for each stage.
      stage_sizes: blocks in each stage.
      widths: ``features`` of each stage's blocks.
      strides: stride of each stage's first block.
      stem: a key of ``layers.STEMS``.
      stem_width: channels of the stem.
      shortcut: a key of ``layers.SHORTCUTS``.
      cardinality: groups of a bottleneck's 3x3 convolution.
      base_width: channels of one group of a bottleneck of 64 features.
      stem_pool: a key of ``pooling.STEM_POOLS``.
      attention: a key of ``attention.ATTENTIONS``, in each block.
      antialias: a key of ``pooling.ANTIALIAS``, in the stem and in each block with a stride.
      norm: a key of ``norm.NORMS``.
      standardize: None, or the epsilon of weight standardization in all convolutions.
      output_stride: None, or the stride of the last stage, 8, 16 or 32: what the stages' strides would make more of it
        becomes dilation.
      drop_path_rate: stochastic depth in training, rising from 0 at the first block to this at the last.
      drop_block_rate: DropBlock in training, in the last two of four stages.
      dropout_rate: of the pooled features in training.
      zero_init_last: the last normalization of each residual branch starts with scale zero.
      options: fields that the block alone has, such as ``{'stride_in_1x1': True}``; kept as sorted pairs.
      channels: empty, or for each block of a pruned network the output channels of its convolutions.
      num_classes: K.

    Raises:
      InputError: a value out of range, or an option that the chosen block does not have.
    """

    block: str | tuple[str, ...]
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: str = 'imagenet'
    stem_width: int = 64
    shortcut: str = 'B'
    cardinality: int = 1
    base_width: int = 64
    stem_pool: str = 'max'
    attention: str = 'none'
    antialias: str = 'none'
    norm: str = 'batch'
    standardize: float | None = None
    output_stride: int | None = None
    drop_path_rate: float = 0.0
    drop_block_rate: float = 0.0
    dropout_rate: float = 0.0
    zero_init_last: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    channels: tuple[tuple[int, ...], ...] = ()
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for name in ('block', 'stage_sizes', 'widths', 'strides', 'channels'):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))  # JSON gives lists
        object.__setattr__(self, 'options', _as_tuple(sorted(dict(self.options).items())))
        stages = len(self.stage_sizes)
        for name in ('stage_sizes', 'widths', 'strides'):
            values = getattr(self, name)
            if len(values) != stages or not values or min(values) < 1:
                raise InputError(f'{name}={values} must be {stages} positive numbers, one a stage')
        if len(self.blocks) != stages:
            raise InputError(f'block={self.block} must be one name, or {stages}, one a stage')
        choices = {'stem': STEMS, 'stem_pool': STEM_POOLS, 'shortcut': SHORTCUTS, 'attention': ATTENTIONS}
        for name, known in (choices | {'antialias': ANTIALIAS, 'norm': NORMS}).items():
            check_choice(name, getattr(self, name), known)
        for block in self.blocks:
            check_choice('block', block, BLOCKS)
        for name in ('stem_width', 'cardinality', 'base_width', 'num_classes'):
            if getattr(self, name) < 1:
                raise InputError(f'{name}={getattr(self, name)} must be at least 1')
        for name in ('drop_path_rate', 'drop_block_rate', 'dropout_rate'):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f'{name}={getattr(self, name)} must be at least 0 and less than 1')
        self._check_options()

    def _check_options(self) -> None:
        if self.standardize is not None and not 0 < self.standardize < float('inf'):
            raise InputError(f'standardize={self.standardize} must be above 0')
        if self.output_stride not in (None, 8, 16, 32):
            raise InputError(f'output_stride={self.output_stride} must be 8, 16 or 32')
        if self.stem == 'cifar' and self.stem_pool != 'max':
            raise InputError(f"stem_pool={self.stem_pool!r}: stem 'cifar' has no pool")
        if self.antialias != 'none' and self.stem_pool not in ('max', 'conv'):
            raise InputError(f'stem_pool={self.stem_pool!r} has no anti-aliasing: antialias needs max or conv')
        if self.channels and len(self.channels) != sum(self.stage_sizes):
            raise InputError(f'channels: {len(self.channels)} entries for {sum(self.stage_sizes)} blocks')
        for entry in self.channels:
            if not isinstance(entry, tuple) or len(entry) != 3 or min(entry) < 1:
                raise InputError(f'channels: {entry} must be three positive numbers, one a convolution')
        if self.drop_path_rate and 'plain' in self.blocks:
            raise InputError(f"drop_path_rate={self.drop_path_rate}: block 'plain' has no shortcut that would remain")
        if len({BLOCKS[block].pre_activation for block in self.blocks}) > 1:
            raise InputError(f'block={self.block}: blocks with pre-activation do not go with blocks without')
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        chosen = {name for name in _BLOCK_FIELDS if getattr(self, name) != defaults[name]} | set(dict(self.options))
        chosen |= {'channels'} if self.channels else set()
        chosen |= {'drop_block'} if self.drop_block_rate else set()
        known = set().union(*(set(BLOCKS[block].__dataclass_fields__) for block in self.blocks))
        for name in sorted(chosen):
            if name not in known or (name in _OURS and name in dict(self.options)):
                field = {'drop_block': 'drop_block_rate'}.get(name, name)
                value = dict(self.options).get(name, getattr(self, field, None))
                whose = '' if field in defaults else f'ResNetSpec has no field {field!r}, and '
                raise InputError(f'{field}={value!r}: {whose}block {self.block!r} has no such option')

    @property
    def blocks(self) -> tuple[str, ...]:
        """The block of each stage."""
        return (self.block,) * len(self.stage_sizes) if isinstance(self.block, str) else self.block

    @property
    def pre_activation(self) -> bool:
        """Whether the last ReLU is the network's own."""
        return BLOCKS[self.blocks[-1]].pre_activation

    def block_options(self, stage: int) -> dict[str, Any]:
        """Those of the fields that the blocks of a stage, counted from 1, take."""
        block = BLOCKS[self.blocks[stage - 1]]
        chosen = {name: getattr(self, name) for name in _BLOCK_FIELDS} | dict(self.options)
        if self.drop_block_rate:
            sizes = {3: (5, 0.25), 4: (3, 1.0)}  # as in timm, from the authors' code for ImageNet
            chosen['drop_block'] = (self.drop_block_rate, *sizes[stage]) if stage in sizes else None
        return {name: value for name, value in chosen.items() if name in block.__dataclass_fields__}

    def strides_and_dilations(self) -> list[tuple[int, int, int]]:
        """Stride, dilation and the first block's first dilation of each stage, as ``output_stride`` asks."""
        total, dilation, stages = 1 if self.stem == 'cifar' else 4, 1, []
        for stride in self.strides:
            before = dilation
            if self.output_stride and total * stride > self.output_stride:
                dilation, stride = dilation * stride, 1
            total *= stride
            stages.append((stride, dilation, before))
        return stages


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(part) for part in value) if isinstance(value, list | tuple) else value


_BLOCK_FIELDS = ('shortcut', 'cardinality', 'base_width', 'attention', 'antialias', 'zero_init_last')
# What the network gives its blocks itself, and options cannot.
_OURS = {*Block.__dataclass_fields__, *_BLOCK_FIELDS, 'first', 'channels', 'drop_block'}


_FEWEST_BLOCKS = 3  # of a stage that is scanned: one block before the loop and two within


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
        after the other: a deep network then compiles in the time of a shallow one. Their variables are stacked, at
        ``stage1_blocks/…`` with one more axis in front; ``stack_blocks`` and ``unstack_blocks`` convert.
      remat: keep only what goes into each block for the backward pass, and compute its inside again.
      frozen: None, or a regular expression: the stem, the blocks and the last normalization whose names it matches at
        their beginning compute in training what they compute in evaluation.
    """

    spec: ResNetSpec
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    statistics: str | int = 'global'
    scan_blocks: bool = False
    remat: bool = False
    frozen: str | None = None

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
        mode: dict[str, Any] = {'train': train, 'update_stats': update_stats}
        how: dict[str, Any] = {
            'dtype': self.dtype,
            'implementation': self.implementation,
            'statistics': self.statistics,
            'norm': spec.norm,
            'standardize': spec.standardize,
        }
        # A pre-activation network normalizes in front of every convolution but the first, which sees the images.
        # The ImageNet stem of such a network is followed by the first block's normalization as well.
        pool = spec.stem_pool, spec.antialias
        stem = Stem(spec.stem, spec.stem_width, not spec.pre_activation, *pool, **how, name='stem')
        x = stem(images.astype(self.dtype), **self._mode('stem', mode))
        outputs = {'stem': x}
        for stage in range(1, len(spec.stage_sizes) + 1):
            x = outputs[f'stage{stage}'] = self._stage(x, stage, how, mode)
        if spec.pre_activation:
            x = make_normalization(how, 'norm', self._mode('norm', mode), relu=True)(x)
        self.sow('intermediates', 'last_map', x)  # what the pool averages: class activation maps are made of it
        outputs['pooled'] = global_avg_pool(x)
        if features_only:
            return outputs
        x = nn.Dropout(spec.dropout_rate)(outputs['pooled'], deterministic=not train)
        return new_head(spec.num_classes, name='head')(x)

    def _stage(self, x: jax.Array, stage: int, how: dict[str, Any], mode: dict[str, Any]) -> jax.Array:
        """The blocks of a stage, counted from 1."""
        spec, block = self.spec, BLOCKS[self.spec.blocks[stage - 1]]
        size, before = spec.stage_sizes[stage - 1], sum(spec.stage_sizes[: stage - 1])
        stride, dilation, first_dilation = spec.strides_and_dilations()[stage - 1]
        options = spec.block_options(stage)
        make = functools.partial(block, features=spec.widths[stage - 1], dilation=dilation, **how, **options)
        pruned: list[dict[str, Any]] = [
            {'channels': channels} for channels in spec.channels[before : before + size]
        ] or [{}] * size
        # The linear decay rule of Huang et al. 2016 (arXiv:1603.09382, Eq. 4), from 0 at the network's first block.
        last = max(sum(spec.stage_sizes) - 1, 1)
        rates = [spec.drop_path_rate * index / last for index in range(before, before + size)]
        first: dict[str, Any] = {'first': True} if block.pre_activation and stage == 1 else {}
        first |= {'stride': stride, 'first_dilation': first_dilation}
        names = [f'stage{stage}_block{index}' for index in range(1, size + 1)]
        x = self._call(make(**first, **pruned[0], name=names[0]), x, self._mode(names[0], mode), rates[0])
        if self.scan_blocks and (spec.channels or self.frozen):
            raise InputError('scan_blocks=True: pruned or frozen blocks are not alike')
        if not self.scan_blocks or size < _FEWEST_BLOCKS:
            for name, channels, rate in zip(names[1:], pruned[1:], rates[1:], strict=True):
                x = self._call(make(**channels, name=name), x, self._mode(name, mode), rate)
            return x

        def once(block: nn.Module, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
            return self._call(block, x, mode, 0.0 if rate is None else rate), None

        repeated = nn.scan(
            once,
            variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
            split_rngs={'params': True, 'dropout': True},
            length=size - 1,
        )
        scanned = jnp.asarray(rates[1:]) if spec.drop_path_rate else None
        return repeated(make(name=f'stage{stage}_blocks'), x, scanned)[0]

    def _call(self, block: nn.Module, x: jax.Array, mode: dict[str, Any], rate: float | jax.Array) -> jax.Array:
        """A block applied, whose inside is kept for the backward pass or not."""

        def call(block: nn.Module, x: jax.Array) -> jax.Array:
            return block(x, **mode, drop_rate=rate)

        return (nn.remat(call) if self.remat else call)(block, x)

    def _mode(self, name: str, mode: dict[str, Any]) -> dict[str, Any]:
        """The mode of a part by its name."""
        frozen = self.frozen is not None and re.match(self.frozen, name) is not None
        return {'train': False, 'update_stats': None} if frozen else mode

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
        advice = ': images[None] makes a batch of one' if images.ndim == 3 else ''
        raise InputError(f'images must be [N, H, W, C], found {shape}{advice}')
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f'images must be floats, normalized as in training, found {images.dtype}')
    channels = [layer['kernel'].shape[2] for name, layer in stem.items() if name in ('conv', 'conv1')]
    if channels and shape[3] != channels[0]:
        if shape[1] == channels[0]:
            advice = ': jnp.moveaxis(images, 1, -1) turns [N, C, H, W] around'
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


def stack_blocks(tree: Any) -> Any:
    """Variables, or a whole train state, of a ``ResNet`` as ``scan_blocks=True`` takes them.

    Args:
      tree: any tree that holds dicts with the keys ``stage1_block1``, ``stage1_block2``, …

    Returns:
      The tree with ``stage1_block2``, … of every scanned stage as ``stage1_blocks``, each array ``[blocks - 1, …]``.
    """

    def convert(blocks: dict[str, Any]) -> dict[str, Any]:
        out = dict(blocks)
        counts = collections.Counter(match[1] for name in blocks if (match := _BLOCK.fullmatch(name)))
        for stage, count in counts.items():
            if count >= _FEWEST_BLOCKS:
                parts = [out.pop(f'{stage}_block{index}') for index in range(2, count + 1)]
                out[f'{stage}_blocks'] = jax.tree.map(_stack, *parts)
        return out

    return _convert_networks(convert, tree)


def unstack_blocks(tree: Any) -> Any:
    """The inverse of ``stack_blocks``; leaves alone what is not stacked."""

    def convert(blocks: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for name, variables in blocks.items():
            if match := _BLOCKS.fullmatch(name):
                for index in range(len(jax.tree.leaves(variables)[0])):
                    out[f'{match[1]}_block{index + 2}'] = jax.tree.map(lambda leaf, index=index: leaf[index], variables)
            else:
                out[name] = variables
        return out

    return _convert_networks(convert, tree)


def _stack(*leaves: Any) -> Any:
    on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.stack(leaves) if on_host else jnp.stack(leaves)


_BLOCK = re.compile(r'(stage\d+)_block\d+')
_BLOCKS = re.compile(r'(stage\d+)_blocks')


def _convert_networks(convert: Callable[[dict[str, Any]], dict[str, Any]], tree: Any) -> Any:
    """Applies ``convert`` to the dicts in a tree that hold a network's blocks by name."""

    def holds_blocks(node: Any) -> bool:
        return isinstance(node, dict) and 'stage1_block1' in node

    return jax.tree.map(lambda node: convert(node) if holds_blocks(node) else node, tree, is_leaf=holds_blocks)
