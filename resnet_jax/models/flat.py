"""Specifications by flat names, such as ``stem_width`` or ``num_classes``, for keyword arguments and flags.

``make_spec`` builds a specification from them, ``with_changes`` replaces some of them, and ``flat_settings`` returns
them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnet_jax.errors import InputError, nearest
from resnet_jax.models.branch_blocks import BLOCKS
from resnet_jax.models.checks import as_sequence, is_integer
from resnet_jax.models.spec import (
    SET_BY_THE_NETWORK,
    BlockSpec,
    BlockType,
    HeadSpec,
    ResNetSpec,
    StageSpec,
    block_name,
    check_block,
    fields_of,
)

# Flat name of each setting of a stage, and its field; its value is a sequence with one entry per stage.
_STAGE_FIELDS = {'block': 'block', 'stage_sizes': 'size', 'widths': 'width', 'strides': 'stride'}
# Every other flat name, with its group (empty for the specification itself) and its field.
_FLAT_FIELDS: dict[str, tuple[str, str]] = {
    'stem': ('stem', 'kind'),
    'stem_width': ('stem', 'width'),
    'stem_pool': ('stem', 'pool'),
    **{field.name: ('blocks', field.name) for field in dataclasses.fields(BlockSpec) if field.name != 'options'},
    **{field.name: ('head', field.name) for field in dataclasses.fields(HeadSpec)},
    **{name: ('', name) for name in ('norm', 'antialias', 'standardize', 'output_stride')},
}
FLAT_NAMES = (*_STAGE_FIELDS, *_FLAT_FIELDS)


def make_spec(
    block: BlockType | Sequence[BlockType],
    stage_sizes: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    strides: Sequence[int] = (1, 2, 2, 2),
    stem: str = 'imagenet',
    stem_width: int = 64,
    shortcut: str = 'B',
    **settings: Any,
) -> ResNetSpec:
    """Builds a specification from flat names.

    Args:
      block: a key of ``branch_blocks.BLOCKS`` or a subclass of ``Block``, or a sequence of them, one per stage.
      stage_sizes: number of blocks in each stage.
      widths: ``features`` of each stage's blocks.
      strides: stride of each stage's first block.
      stem: ``StemSpec.kind``.
      stem_width: ``StemSpec.width``.
      shortcut: ``BlockSpec.shortcut``.
      **settings: ``stem_pool`` for ``StemSpec.pool``; fields of ``BlockSpec``, ``HeadSpec`` and ``ResNetSpec``; and
        fields that are specific to the block.

    Raises:
      InputError: as ``with_changes``.
    """
    stages = _build_stages({'block': block, 'stage_sizes': stage_sizes, 'widths': widths, 'strides': strides})
    return with_changes(ResNetSpec(stages), stem=stem, stem_width=stem_width, shortcut=shortcut, **settings)


def with_changes(spec: ResNetSpec, **settings: Any) -> ResNetSpec:
    """Returns a copy of a specification with some settings replaced.

    Args:
      spec: the original specification.
      **settings: settings to replace, as in ``make_spec``.

    Raises:
      InputError: a setting is unknown, or ``ResNetSpec`` rejects a value.
    """
    stages = spec.stages
    if settings.keys() & _STAGE_FIELDS.keys():
        columns = {name: [getattr(stage, field) for stage in stages] for name, field in _STAGE_FIELDS.items()}
        if len(set(columns['block'])) == 1:
            columns['block'] = columns['block'][0]  # for any number of stages
        stages = _build_stages(columns | {name: settings[name] for name in _STAGE_FIELDS if name in settings})
    block_fields = [name for name in fields_of(stages) if name not in SET_BY_THE_NETWORK]
    other_fields = fields_of(StageSpec(block, 1, 1) for block in BLOCKS).keys() - SET_BY_THE_NETWORK
    changes: dict[str, dict[str, Any]] = {'stem': {}, 'blocks': {}, 'head': {}, '': {}}
    options = dict(spec.blocks.options)
    for name in settings.keys() - _STAGE_FIELDS.keys():
        if name in _FLAT_FIELDS:
            group, field = _FLAT_FIELDS[name]
            changes[group][field] = settings[name]
        elif name in block_fields or name in other_fields:
            options[name] = settings[name]
        else:
            raise InputError(f'unknown architecture setting {name!r}; {nearest(name, (*FLAT_NAMES, *block_fields))}')
    return dataclasses.replace(
        spec,
        stages=stages,
        stem=dataclasses.replace(spec.stem, **changes['stem']),
        blocks=dataclasses.replace(spec.blocks, **changes['blocks'], options=tuple(options.items())),
        head=dataclasses.replace(spec.head, **changes['head']),
        **changes[''],
    )


def flat_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a record of ``ResNetSpec.to_json`` by their flat names.

    If all stages have the same block, it is a single value.
    """
    flat: dict[str, Any] = {
        name: tuple(stage[field] for stage in record['stages']) for name, field in _STAGE_FIELDS.items()
    }
    if len(set(flat['block'])) == 1:
        flat['block'] = flat['block'][0]
    for name, (group, field) in _FLAT_FIELDS.items():
        flat[name] = record[group][field] if group else record[field]
    return flat | dict(record['blocks']['options'])


def _build_stages(columns: Mapping[str, Any]) -> tuple[StageSpec, ...]:
    """Builds the stages from their flat settings."""
    sizes = as_sequence('stage_sizes', columns['stage_sizes'])
    block = columns['block']
    is_single = isinstance(block, str) or not isinstance(block, Iterable)
    blocks = (block,) * len(sizes) if is_single else tuple(block)
    if len(blocks) != len(sizes):
        names = tuple(block_name(check_block(each)) for each in blocks)
        raise InputError(f'block={names} must be one block, or a sequence of {len(sizes)}, one per stage')
    numbers: dict[str, tuple[int, ...]] = {}
    for name in ('stage_sizes', 'widths', 'strides'):
        values = as_sequence(name, columns[name])
        if len(values) != len(sizes) or not values or not all(is_integer(value) and value >= 1 for value in values):
            raise InputError(f'{name}={values} must be {len(sizes)} positive integers, one per stage')
        numbers[name] = values
    return tuple(StageSpec(*columns) for columns in zip(blocks, *numbers.values(), strict=True))
