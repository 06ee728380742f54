"""The stacked form of a stage's identical blocks, which ``ResNet(scan_blocks=True)`` computes in a loop.

The blocks 2, 3, … of a stage have arrays of the same shapes. A loop over them needs these arrays stacked along a new
leading axis: ``stage1_blocks/conv1/kernel`` instead of ``stage1_block2/conv1/kernel``, ``stage1_block3/conv1/kernel``,
…. Files always contain the stored form, with one entry per block. Only this file depends on the difference: other code
converts with ``as_computed`` and ``as_stored``, and processes stacked arrays block by block with ``block_paths``,
``split_blocks`` and ``map_blocks``.
"""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_FEWEST_BLOCKS = 3  # of a scanned stage: one block before the loop and two inside
_BLOCK = re.compile(r'(stage\d+)_block\d+')
_BLOCKS = re.compile(r'(?:^|(?<=/))(stage\d+)_blocks(?=/|$)')


def is_scanned(size: int) -> bool:
    """Whether a stage with this many blocks is computed in a loop."""
    return size >= _FEWEST_BLOCKS


def apply_scanned(
    call: Callable[[nn.Module, jax.Array, Any], jax.Array],
    make: Callable[..., nn.Module],
    stage: int,
    x: jax.Array,
    rates: Sequence[float],
) -> jax.Array:
    """Applies the blocks 2, 3, … of a stage in a loop, as a submodule of the calling module.

    Args:
      call: ``call(block, x, rate)`` applies one block.
      make: ``make(name=…)`` creates the block.
      stage: number of the stage, from 1.
      x: ``[N, H, W, C]``.
      rates: the drop rate of each block; if all are zero, ``call`` gets the constant 0.

    Returns:
      ``[N, H, W, C]``.
    """

    def body(block: nn.Module, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
        return call(block, x, 0.0 if rate is None else rate), None

    repeated = nn.scan(
        body,
        variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
        split_rngs={'params': True, 'dropout': True},
        length=len(rates),
    )
    return repeated(make(name=f'stage{stage}_blocks'), x, jnp.asarray(rates) if any(rates) else None)[0]


def as_computed(model: Any, tree: Any) -> Any:
    """Converts variables, or a whole train state, to the form that a model computes with.

    Args:
      model: a ``ResNet``; any other module computes with the stored form.
      tree: any tree that contains dicts with the keys ``stage1_block1``, …, in either form.

    Returns:
      The tree in the stacked form if ``model.scan_blocks`` is set, otherwise in the stored form.
    """
    return stack_blocks(tree) if getattr(model, 'scan_blocks', False) else as_stored(tree)


def stack_blocks(tree: Any) -> Any:
    """Replaces ``stage1_block2``, … of every scanned stage by ``stage1_blocks``, with arrays ``[blocks - 1, …]``.

    Arrays on the host stay there. Blocks that are already stacked are not changed.
    """

    def convert(blocks: dict[str, Any]) -> dict[str, Any]:
        out = dict(blocks)
        counts = collections.Counter(match[1] for name in blocks if (match := _BLOCK.fullmatch(name)))
        for stage, count in counts.items():
            if is_scanned(count):
                parts = [out.pop(f'{stage}_block{index}') for index in range(2, count + 1)]
                out[f'{stage}_blocks'] = jax.tree.map(_stack, *parts)
        return out

    return _convert_networks(convert, tree)


def as_stored(tree: Any) -> Any:
    """Converts variables, or a whole train state, to the stored form: each block under its own name.

    The inverse of ``stack_blocks``. Blocks that are not stacked are not changed.

    Args:
      tree: any tree that contains dicts with the keys ``stage1_block1``, …, in either form.
    """

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


def is_stacked(path: str) -> bool:
    """Whether the array at a path such as ``stage1_blocks/conv1/kernel`` is stacked along its first axis."""
    return _BLOCKS.search(path) is not None


def block_paths(path: str, leaf: Any) -> list[str]:
    """Returns the paths of an array in the stored form: one per block if it is stacked, otherwise its own path.

    Args:
      path: a path such as ``stage1_blocks/conv1/kernel``.
      leaf: the array at this path, or its ``jax.ShapeDtypeStruct``.
    """
    match = _BLOCKS.search(path)
    if match is None:
        return [path]
    before, after = path[: match.start()], path[match.end() :]
    return [f'{before}{match[1]}_block{index + 2}{after}' for index in range(leaf.shape[0])]


def block_shape(path: str, leaf: Any) -> tuple[int, ...]:
    """Returns the shape of an array in the stored form, for one block."""
    return leaf.shape[1:] if is_stacked(path) else leaf.shape


def split_blocks(path: str, leaf: Any) -> dict[str, Any]:
    """Returns the arrays of the individual blocks, by their ``block_paths``."""
    if not is_stacked(path):
        return {path: leaf}
    return {name: leaf[index] for index, name in enumerate(block_paths(path, leaf))}


def map_blocks(function: Callable[..., Any], path: str, *leaves: Any) -> Any:
    """Applies a function to each block of stacked arrays, or directly to arrays that are not stacked.

    Args:
      function: a function of as many arrays as there are leaves.
      path: path of the leaves.
      *leaves: arrays of the same shape, such as a gradient and its parameter.
    """
    return (jax.vmap(function) if is_stacked(path) else function)(*leaves)


def _stack(*leaves: Any) -> Any:
    on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.stack(leaves) if on_host else jnp.stack(leaves)


def _convert_networks(convert: Callable[[dict[str, Any]], dict[str, Any]], tree: Any) -> Any:
    """Applies ``convert`` to the dicts in a tree that hold a network's blocks by name."""

    def holds_blocks(node: Any) -> bool:
        return isinstance(node, dict) and 'stage1_block1' in node

    return jax.tree.map(lambda node: convert(node) if holds_blocks(node) else node, tree, is_leaf=holds_blocks)
