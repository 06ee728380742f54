"""Architectures as data: what a residual network is made of, in frozen dataclasses.

``ResNetSpec`` has a group for the stem, for each stage, for what the blocks have in common, and for the head.
``flat.py`` has the flat names that people type.
"""

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.given import qualified_name
from resnet_jax.models.attention import ATTENTIONS
from resnet_jax.models.blocks import Block
from resnet_jax.models.branch_blocks import BLOCKS
from resnet_jax.models.checks import (
    as_sequence,
    check_choice,
    check_like,
    check_number,
    check_rate,
    is_integer,
    positive_integer,
)
from resnet_jax.models.layers import SHORTCUTS, STEMS
from resnet_jax.models.norm import NORMS
from resnet_jax.models.pooling import ANTIALIAS, STEM_POOLS
from resnet_jax.settings import as_tuple

BlockType = str | type[Block]


@dataclasses.dataclass(frozen=True)
class StemSpec:
    """The layers before the first block.

    Attributes:
      kind: a key of ``layers.STEMS``.
      width: channels of the result.
      pool: a key of ``pooling.STEM_POOLS``; ``cifar`` has none, and keeps the default.
    """

    kind: str = 'imagenet'
    width: int = 64
    pool: str = 'max'

    def __post_init__(self) -> None:
        check_choice('stem', self.kind, STEMS)
        check_choice('stem_pool', self.pool, STEM_POOLS)
        object.__setattr__(self, 'width', positive_integer('stem_width', self.width))
        if self.kind == 'cifar' and self.pool != 'max':
            raise InputError(f"stem_pool={self.pool!r}: stem 'cifar' has no pool")


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """Blocks of one width.

    Attributes:
      block: a key of ``branch_blocks.BLOCKS``, or a subclass of ``Block``.
      size: number of blocks.
      width: their ``features``.
      stride: of the first of them.
    """

    block: BlockType
    size: int
    width: int
    stride: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, 'block', check_block(self.block))
        for name in ('size', 'width', 'stride'):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))

    @property
    def block_class(self) -> type[Block]:
        """The class behind the name."""
        return BLOCKS[self.block] if isinstance(self.block, str) else self.block


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What the blocks of all stages are told; a block must have an option that is not at its default.

    Attributes:
      shortcut: a key of ``layers.SHORTCUTS``.
      cardinality: groups of a bottleneck's 3x3 convolution.
      base_width: channels of one group of a bottleneck of 64 features.
      attention: a key of ``attention.ATTENTIONS``.
      zero_init_last: the last normalization of each residual branch starts with scale zero.
      drop_path_rate: stochastic depth in training, rising from 0 at the first block to this at the last.
      drop_block_rate: DropBlock in training, in the last two of four stages.
      channels: empty, or for each block of a pruned network the output channels of its convolutions.
      options: fields that the chosen block alone has, such as ``{'stride_in_1x1': True}``; kept as sorted pairs.
    """

    shortcut: str = 'B'
    cardinality: int = 1
    base_width: int = 64
    attention: str = 'none'
    zero_init_last: bool = False
    drop_path_rate: float = 0.0
    drop_block_rate: float = 0.0
    channels: tuple[tuple[int, ...], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_choice('shortcut', self.shortcut, SHORTCUTS)
        check_choice('attention', self.attention, ATTENTIONS)
        for name in ('cardinality', 'base_width'):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        if not isinstance(self.zero_init_last, bool):
            raise InputError(f'zero_init_last={self.zero_init_last!r} must be True or False')
        check_rate('drop_path_rate', self.drop_path_rate)
        check_rate('drop_block_rate', self.drop_block_rate)
        object.__setattr__(self, 'channels', tuple(_entry(entry) for entry in as_sequence('channels', self.channels)))
        object.__setattr__(self, 'options', as_tuple(sorted(dict(self.options).items())))


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The layers after the last block: global average pool, dropout, linear layer.

    Attributes:
      num_classes: K, outputs of the linear layer.
      dropout_rate: of the pooled features in training.
    """

    num_classes: int = 1000
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'num_classes', positive_integer('num_classes', self.num_classes))
        check_rate('dropout_rate', self.dropout_rate)


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """An architecture as data: hashable, comparable, JSON-able; variants by ``flat.with_changes``.

    Attributes:
      stages: from the one with the largest maps to the one with the smallest.
      stem: the layers before.
      blocks: what the blocks of all stages are told.
      head: the layers after.
      norm: a key of ``norm.NORMS``.
      antialias: a key of ``pooling.ANTIALIAS``, in the stem and in each block with a stride.
      standardize: None, or the epsilon of weight standardization in all convolutions.
      output_stride: None, or the stride of the last stage, 8, 16 or 32: what the stages' strides would make more of it
        becomes dilation.

    Raises:
      InputError: a value out of range, or an option that the chosen block does not have.
    """

    stages: tuple[StageSpec, ...]
    stem: StemSpec = StemSpec()
    blocks: BlockSpec = BlockSpec()
    head: HeadSpec = HeadSpec()
    norm: str = 'batch'
    antialias: str = 'none'
    standardize: float | None = None
    output_stride: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'stages', tuple(self.stages))
        if not self.stages:
            raise InputError('stages=() must have at least one stage')
        check_choice('norm', self.norm, NORMS)
        check_choice('antialias', self.antialias, ANTIALIAS)
        if self.standardize is not None:
            check_number('standardize', self.standardize)
            if not 0 < self.standardize < float('inf'):
                raise InputError(f'standardize={self.standardize} must be above 0 and finite')
        if self.output_stride not in (None, 8, 16, 32):
            raise InputError(f'output_stride={self.output_stride!r} must be 8, 16 or 32')
        if self.antialias != 'none' and self.stem.pool not in ('max', 'conv'):
            raise InputError(
                f"antialias={self.antialias!r} is not supported with stem_pool={self.stem.pool!r}; use 'max' or 'conv'"
            )
        channels, blocks = self.blocks.channels, sum(stage.size for stage in self.stages)
        if channels and len(channels) != blocks:
            raise InputError(f'channels must have {blocks} entries (one per block), found {len(channels)}')
        if self.blocks.drop_path_rate and any(stage.block == 'plain' for stage in self.stages):
            rate = self.blocks.drop_path_rate
            raise InputError(f"drop_path_rate={rate} is not supported by block 'plain', which has no shortcut")
        if len({stage.block_class.pre_activation for stage in self.stages}) > 1:
            names = tuple(block_name(stage.block) for stage in self.stages)
            raise InputError(f'block={names}: blocks with and without pre-activation cannot be combined')
        self._check_options()

    def _check_options(self) -> None:
        """Every option must be one of a block's fields, and of its type."""
        known = fields_of(self.stages)
        options = dict(self.blocks.options)
        common = _common_options(self.blocks, self.antialias)
        chosen = {name: value for name, value in common.items() if value != _COMMON[name]}
        for name, value in sorted((chosen | options).items()):
            field = {'drop_block': 'drop_block_rate'}.get(name, name)
            if name not in known or (name in options and name in SET_BY_THE_NETWORK):
                names = sorted({block_name(stage.block) for stage in self.stages})
                raise InputError(f'{field}={value!r}: block {", ".join(map(repr, names))} has no such option')
            if name in options:
                check_like(name, value, known[name])

    @property
    def pre_activation(self) -> bool:
        """Whether the last ReLU is the network's own."""
        return self.stages[-1].block_class.pre_activation

    def block_options(self, stage: int) -> dict[str, Any]:
        """Those of the options that the blocks of a stage, counted from 1, take; each block's channels are apart."""
        chosen = _common_options(self.blocks, self.antialias) | dict(self.blocks.options)
        del chosen['channels']
        if rate := chosen.pop('drop_block'):
            sizes = {3: (5, 0.25), 4: (3, 1.0)}  # as in timm, from the authors' code for ImageNet
            chosen['drop_block'] = (rate, *sizes[stage]) if stage in sizes else None
        fields = self.stages[stage - 1].block_class.__dataclass_fields__
        return {name: value for name, value in chosen.items() if name in fields}

    def strides_and_dilations(self) -> list[tuple[int, int, int]]:
        """Stride, dilation and the first block's first dilation of each stage, as ``output_stride`` asks."""
        total, dilation, stages = 1 if self.stem.kind == 'cifar' else 4, 1, []
        for stage in self.stages:
            stride, before = stage.stride, dilation
            if self.output_stride and total * stride > self.output_stride:
                dilation, stride = dilation * stride, 1
            total *= stride
            stages.append((stride, dilation, before))
        return stages

    def to_json(self) -> dict[str, Any]:
        """Nested dicts and lists for a file; a block's class is recorded by its name, ``module:QualName``.

        Raises:
          InputError: an option of a class from outside that JSON does not know.
        """
        record = dataclasses.asdict(self)
        for stage in record['stages']:
            stage['block'] = block_name(stage['block'])
        record['blocks']['options'] = dict(record['blocks']['options'])
        try:
            return json.loads(json.dumps(record))
        except TypeError as error:
            raise InputError(f'options={record["blocks"]["options"]} cannot be saved as JSON: {error}') from error

    @classmethod
    def from_json(cls, record: Mapping[str, Any], block: BlockType | Sequence[BlockType] | None = None) -> 'ResNetSpec':
        """The inverse of ``to_json``.

        Args:
          record: what ``to_json`` gave.
          block: the class, or the classes, of blocks that are not resnet_jax's own.

        Raises:
          InputError: a record of another form, or other classes than the recorded ones.
        """
        try:
            groups = {'stem': StemSpec(**record['stem']), 'head': HeadSpec(**record['head'])}
            classes = _classes({stage['block'] for stage in record['stages']}, block)
            stages = tuple(StageSpec(**stage | {'block': classes[stage['block']]}) for stage in record['stages'])
            return cls(**dict(record) | groups | {'stages': stages, 'blocks': BlockSpec(**record['blocks'])})
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f'the record is not a specification of this version: {error}') from error


def _common_options(blocks: BlockSpec, antialias: str) -> dict[str, Any]:
    """The options that several blocks have, by the names of the blocks' fields."""
    return {
        'shortcut': blocks.shortcut,
        'cardinality': blocks.cardinality,
        'base_width': blocks.base_width,
        'attention': blocks.attention,
        'zero_init_last': blocks.zero_init_last,
        'antialias': antialias,
        'drop_block': blocks.drop_block_rate,
        'channels': blocks.channels,
    }


_COMMON = _common_options(BlockSpec(), 'none')  # at their defaults
# What the network gives its blocks itself, and options cannot.
SET_BY_THE_NETWORK = {*Block.__dataclass_fields__, *_COMMON, 'first'}


def block_name(block: BlockType) -> str:
    """How a block is recorded: by its key in ``BLOCKS``, a class from outside as ``module:QualName``."""
    return block if isinstance(block, str) else qualified_name(block)


def check_block(block: Any) -> BlockType:
    """A known name, or a class that has none."""
    if isinstance(block, str):
        check_choice('block', block, BLOCKS)
        return block
    if not (isinstance(block, type) and issubclass(block, Block)):
        found = textwrap.shorten(repr(block), 80)
        raise InputError(f'block={found} must be a subclass of Block, or one of: {", ".join(BLOCKS)}')
    return {known: name for name, known in BLOCKS.items()}.get(block, block)


def fields_of(stages: Iterable[StageSpec]) -> dict[str, Any]:
    """The fields that the blocks of some stages have, and their defaults."""
    fields: dict[str, Any] = {}
    for stage in stages:
        fields |= {name: field.default for name, field in stage.block_class.__dataclass_fields__.items()}
    return fields


def _classes(recorded: set[str], given: BlockType | Sequence[BlockType] | None) -> dict[str, BlockType]:
    """The blocks behind recorded names, of which those from outside must be given, and no others."""
    several = () if given is None else (given,) if isinstance(given, str | type) else tuple(given)
    classes = {block_name(block): block for block in map(check_block, several)}
    foreign = {name for name in recorded if ':' in name}
    if classes.keys() - recorded or foreign - classes.keys():
        found = ', '.join(sorted(classes)) or 'none'
        raise InputError(
            f'block: the record has {", ".join(sorted(recorded))}, found {found}; pass the recorded classes'
        )
    return {name: classes.get(name, name) for name in recorded}


def _entry(entry: Any) -> tuple[int, ...]:
    """The channels of one block."""
    values = as_sequence('channels', entry)
    if len(values) != 3 or not all(is_integer(value) and value >= 1 for value in values):
        raise InputError(f'channels: {values} must be 3 positive integers, one per convolution')
    return values
