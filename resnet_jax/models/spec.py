"""Specifications: architectures as data, in frozen dataclasses.

``ResNetSpec`` has groups for the stem, for each stage, for the options of the blocks, and for the head. ``flat.py``
builds it from flat names.
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
      width: number of output channels.
      pool: a key of ``pooling.STEM_POOLS``; must be the default for ``cifar``, which has no pool.

    Raises:
      InputError: a value is invalid.
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
    """A stage: blocks of the same width.

    Attributes:
      block: a key of ``branch_blocks.BLOCKS``, or a subclass of ``Block``.
      size: number of blocks.
      width: ``features`` of the blocks.
      stride: stride of the first block.

    Raises:
      InputError: a value is invalid.
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
        """The class of the blocks."""
        return BLOCKS[self.block] if isinstance(self.block, str) else self.block


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """Options of the blocks of all stages; ``ResNetSpec`` rejects a non-default option that no block has.

    Attributes:
      shortcut: a key of ``layers.SHORTCUTS``.
      cardinality: groups of a bottleneck's 3x3 convolution.
      base_width: channels per group of a bottleneck with 64 features.
      attention: a key of ``attention.ATTENTIONS``.
      zero_init_last: initialize the scale of the last normalization of each residual branch to zero.
      drop_path_rate: rate of stochastic depth in training, which increases from 0 at the first block to this value at
        the last.
      drop_block_rate: rate of DropBlock in training, in the last two of four stages.
      channels: empty, or the output channels of the convolutions of each block of a pruned network.
      options: fields that are specific to the block, such as ``{'stride_in_1x1': True}``; stored as sorted pairs.

    Raises:
      InputError: a value is invalid.
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
        object.__setattr__(
            self, 'channels', tuple(_block_channels(entry) for entry in as_sequence('channels', self.channels))
        )
        object.__setattr__(self, 'options', as_tuple(sorted(dict(self.options).items())))


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The layers after the last block: global average pool, dropout, linear layer.

    Attributes:
      num_classes: K, number of outputs of the linear layer.
      dropout_rate: dropout rate of the pooled features in training.

    Raises:
      InputError: a value is invalid.
    """

    num_classes: int = 1000
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'num_classes', positive_integer('num_classes', self.num_classes))
        check_rate('dropout_rate', self.dropout_rate)


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """A specification: an architecture as data, hashable, comparable and convertible to JSON.

    ``flat.with_changes`` creates variants.

    Attributes:
      stages: the stages, in the order of computation.
      stem: the layers before the stages.
      blocks: the options of the blocks of all stages.
      head: the layers after the stages.
      norm: a key of ``norm.NORMS``.
      antialias: a key of ``pooling.ANTIALIAS``, for the stem and for each block with a stride.
      standardize: None, or the epsilon of weight standardization in all convolutions.
      output_stride: None, or the largest stride of the last feature map: 8, 16 or 32. Strides that would exceed it are
        replaced by dilation.

    Raises:
      InputError: a value is out of range, or the chosen block does not have an option.
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
            raise InputError('stages must not be empty')
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
        """Raises InputError unless every option is a field of a block and has its type."""
        known = fields_of(self.stages)
        options = dict(self.blocks.options)
        common = _common_options(self.blocks, self.antialias)
        chosen = {name: value for name, value in common.items() if value != _COMMON_DEFAULTS[name]}
        for name, value in sorted((chosen | options).items()):
            field = {'drop_block': 'drop_block_rate'}.get(name, name)
            if name not in known or (name in options and name in SET_BY_THE_NETWORK):
                names = sorted({block_name(stage.block) for stage in self.stages})
                raise InputError(f'{field}={value!r}: block {", ".join(map(repr, names))} has no such option')
            if name in options:
                check_like(name, value, known[name])

    @property
    def pre_activation(self) -> bool:
        """Whether the network itself ends in a normalization and a ReLU, as its last block does not."""
        return self.stages[-1].block_class.pre_activation

    def block_options(self, stage: int) -> dict[str, Any]:
        """Returns the options of a stage's blocks, except ``channels``, which differ per block; stages count from 1."""
        chosen = _common_options(self.blocks, self.antialias) | dict(self.blocks.options)
        del chosen['channels']
        if rate := chosen.pop('drop_block'):
            sizes = {3: (5, 0.25), 4: (3, 1.0)}  # as in timm, from the authors' code for ImageNet
            chosen['drop_block'] = (rate, *sizes[stage]) if stage in sizes else None
        fields = self.stages[stage - 1].block_class.__dataclass_fields__
        return {name: value for name, value in chosen.items() if name in fields}

    def strides_and_dilations(self) -> list[tuple[int, int, int]]:
        """Returns stride, dilation and the first block's first dilation per stage, according to ``output_stride``."""
        total, dilation, stages = 1 if self.stem.kind == 'cifar' else 4, 1, []
        for stage in self.stages:
            stride, before = stage.stride, dilation
            if self.output_stride and total * stride > self.output_stride:
                dilation, stride = dilation * stride, 1
            total *= stride
            stages.append((stride, dilation, before))
        return stages

    def to_json(self) -> dict[str, Any]:
        """Converts the specification to nested dicts and lists; a custom block is recorded as ``module:QualName``.

        Raises:
          InputError: JSON does not support the value of a custom block's option.
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
        """Creates a specification from the result of ``to_json``.

        Args:
          record: the result of ``to_json``.
          block: the class or classes of the custom blocks.

        Raises:
          InputError: the record has another format, or the classes are not the recorded ones.
        """
        try:
            groups = {'stem': StemSpec(**record['stem']), 'head': HeadSpec(**record['head'])}
            classes = _classes({stage['block'] for stage in record['stages']}, block)
            stages = tuple(StageSpec(**stage | {'block': classes[stage['block']]}) for stage in record['stages'])
            return cls(**dict(record) | groups | {'stages': stages, 'blocks': BlockSpec(**record['blocks'])})
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f'the record is not a specification of this version: {error}') from error


def _common_options(blocks: BlockSpec, antialias: str) -> dict[str, Any]:
    """Returns the options that are shared by several blocks, by the names of the blocks' fields."""
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


_COMMON_DEFAULTS = _common_options(BlockSpec(), 'none')
# Fields that the network sets, and that are therefore not allowed in ``BlockSpec.options``.
SET_BY_THE_NETWORK = {*Block.__dataclass_fields__, *_COMMON_DEFAULTS, 'first'}


def block_name(block: BlockType) -> str:
    """Returns the recorded name of a block: its key in ``BLOCKS``, or ``module:QualName`` for a custom block."""
    return block if isinstance(block, str) else qualified_name(block)


def check_block(block: Any) -> BlockType:
    """Returns the name of a known block, or a custom class; raises InputError for anything else."""
    if isinstance(block, str):
        check_choice('block', block, BLOCKS)
        return block
    if not (isinstance(block, type) and issubclass(block, Block)):
        found = textwrap.shorten(repr(block), 80)
        raise InputError(f'block={found} must be a subclass of Block, or one of: {", ".join(BLOCKS)}')
    return {known: name for name, known in BLOCKS.items()}.get(block, block)


def fields_of(stages: Iterable[StageSpec]) -> dict[str, Any]:
    """Returns the fields of the blocks of some stages, with their defaults."""
    fields: dict[str, Any] = {}
    for stage in stages:
        fields |= {name: field.default for name, field in stage.block_class.__dataclass_fields__.items()}
    return fields


def _classes(recorded: set[str], given: BlockType | Sequence[BlockType] | None) -> dict[str, BlockType]:
    """Returns the blocks by recorded name; exactly the custom blocks must be passed in ``given``."""
    passed = () if given is None else (given,) if isinstance(given, str | type) else tuple(given)
    classes = {block_name(block): block for block in map(check_block, passed)}
    custom = {name for name in recorded if ':' in name}
    if classes.keys() - recorded or custom - classes.keys():
        found = ', '.join(sorted(classes)) or 'none'
        raise InputError(
            f'block: the record has {", ".join(sorted(recorded))}, found {found}; pass the recorded classes'
        )
    return {name: classes.get(name, name) for name in recorded}


def _block_channels(entry: Any) -> tuple[int, ...]:
    """Checks and returns the channels of one block."""
    values = as_sequence('channels', entry)
    if len(values) != 3 or not all(is_integer(value) and value >= 1 for value in values):
        raise InputError(f'channels: {values} must be 3 positive integers, one per convolution')
    return values
