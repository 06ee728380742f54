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
from resnet_jax.models.blocks import BLOCKS
from resnet_jax.models.layers import SHORTCUTS, STEMS, Stem, global_avg_pool
from resnet_jax.models.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """An architecture as data: hashable, comparable, JSON-able; variants by ``dataclasses.replace``.

    Attributes:
      block: a key of ``blocks.BLOCKS``.
      stage_sizes: blocks in each stage.
      widths: ``features`` of each stage's blocks.
      strides: stride of each stage's first block.
      stem: a key of ``layers.STEMS``.
      stem_width: channels of the stem.
      shortcut: a key of ``layers.SHORTCUTS``.
      cardinality: groups of a bottleneck's 3x3 convolution.
      base_width: channels of one group of a bottleneck of 64 features.
      stride_in_1x1: a bottleneck's stride in its first 1x1 convolution (v1) instead of its 3x3 (v1.5).
      zero_init_last: the last normalization of each residual branch starts with scale zero.
      num_classes: K.

    Raises:
      InputError: a value out of range, or an option that the chosen block does not have.
    """

    block: str
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: str = 'imagenet'
    stem_width: int = 64
    shortcut: str = 'B'
    cardinality: int = 1
    base_width: int = 64
    stride_in_1x1: bool = False
    zero_init_last: bool = False
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for name, known in (('block', BLOCKS), ('stem', STEMS), ('shortcut', SHORTCUTS)):
            if getattr(self, name) not in known:
                raise InputError(f'unknown {name} {getattr(self, name)!r}; known: {", ".join(known)}')
        for name in ('stage_sizes', 'widths', 'strides'):
            values = getattr(self, name)
            object.__setattr__(self, name, tuple(values))  # JSON gives lists
            if len(values) != len(self.stage_sizes) or not values or min(values) < 1:
                stages = len(self.stage_sizes)
                raise InputError(f'{name}={tuple(values)} must be {stages} positive numbers, one a stage')
        for name in ('stem_width', 'cardinality', 'base_width', 'num_classes'):
            if getattr(self, name) < 1:
                raise InputError(f'{name}={getattr(self, name)} must be at least 1')
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in set(_BLOCK_OPTIONS) - set(self.block_options()):
            if getattr(self, name) != defaults[name]:
                raise InputError(f'{name}={getattr(self, name)!r}: block {self.block!r} has no such option')

    def block_options(self) -> dict[str, Any]:
        """Those of the fields that the block takes."""
        fields = BLOCKS[self.block].__dataclass_fields__
        return {name: getattr(self, name) for name in _BLOCK_OPTIONS if name in fields}


_BLOCK_OPTIONS = ('shortcut', 'cardinality', 'base_width', 'stride_in_1x1', 'zero_init_last')


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
    """

    spec: ResNetSpec
    dtype: Any = jnp.float32
    implementation: str = 'auto'
    statistics: str | int = 'global'
    scan_blocks: bool = False

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
        """
        spec, block = self.spec, BLOCKS[self.spec.block]
        mode: dict[str, Any] = {'train': train, 'update_stats': update_stats}
        how: dict[str, Any] = {
            'dtype': self.dtype,
            'implementation': self.implementation,
            'statistics': self.statistics,
        }
        # A pre-activation network normalizes in front of every convolution but the first, which sees the images.
        # The ImageNet stem of such a network is followed by the first block's normalization as well.
        stem = Stem(spec.stem, spec.stem_width, not block.pre_activation, **how, name='stem')
        x = stem(images.astype(self.dtype), **mode)
        outputs = {'stem': x}
        for stage in range(1, len(spec.stage_sizes) + 1):
            x = outputs[f'stage{stage}'] = self._stage(x, stage, how, mode)
        if block.pre_activation:
            x = BatchNorm(relu=True, **how, name='norm')(x, **mode)
        outputs['pooled'] = global_avg_pool(x)
        if features_only:
            return outputs
        # PyTorch's initialization of a linear layer's kernel: uniform in ±1 / sqrt(C). The bias starts at zero.
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        return nn.Dense(spec.num_classes, kernel_init=init, name='head')(outputs['pooled'])

    def _stage(self, x: jax.Array, stage: int, how: dict[str, Any], mode: dict[str, Any]) -> jax.Array:
        """The blocks of a stage, counted from 1."""
        spec, block = self.spec, BLOCKS[self.spec.block]
        size = spec.stage_sizes[stage - 1]
        make = functools.partial(block, features=spec.widths[stage - 1], **how, **spec.block_options())
        first: dict[str, Any] = {'first': True} if block.pre_activation and stage == 1 else {}
        x = make(stride=spec.strides[stage - 1], **first, name=f'stage{stage}_block1')(x, **mode)
        if not self.scan_blocks or size < _FEWEST_BLOCKS:
            for index in range(2, size + 1):
                x = make(name=f'stage{stage}_block{index}')(x, **mode)
            return x

        def once(block: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, **mode), None

        repeated = nn.scan(
            once,
            variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
            split_rngs={'params': True},
            length=size - 1,
        )
        return repeated(make(name=f'stage{stage}_blocks'), x, None)[0]

    def features(self, images: jax.Array, *, train: bool, update_stats: bool | None = None) -> dict[str, jax.Array]:
        """Feature maps ``{'stem', 'stage1', …, 'pooled'}``: ``[N, H', W', C']`` each, ``pooled`` float32 ``[N, C']``.

        Use as ``model.apply(variables, images, train=False, method=model.features)``.
        """
        return self(images, train=train, update_stats=update_stats, features_only=True)


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
    return dict(model.lazy_init(key, images, train=False))


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
