"""The stacked form of a stage's alike blocks, which ``ResNet(scan_blocks=True)`` computes in a loop.

The blocks 2, 3, … of a stage have arrays of the same shapes. A loop over them wants each array once, with one more axis
in front that counts the blocks: ``stage1_blocks/conv1/kernel`` instead of ``stage1_block2/conv1/kernel``,
``stage1_block3/conv1/kernel``, …. Files always hold the single form. Everything that knows the difference is here:
users go from one form to the other by ``as_computed`` and ``as_stored``, and treat what is stacked block by block with
``block_paths``, ``split_blocks`` and ``map_blocks``.
"""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_FEWEST_BLOCKS = 3  # of a stage that is scanned: one block before the loop and two within
_BLOCK = re.compile(r'(stage\d+)_block\d+')
_BLOCKS = re.compile(r'(?:^|(?<=/))(stage\d+)_blocks(?=/|$)')


def is_scanned(size: int) -> bool:
    """Whether a stage of so many blocks has enough of them for a loop."""
    return size >= _FEWEST_BLOCKS


def apply_scanned(
    call: Callable[[nn.Module, jax.Array, Any], jax.Array],
    make: Callable[..., nn.Module],
    stage: int,
    x: jax.Array,
    rates: Sequence[float],
) -> jax.Array:
    """Applies the blocks 2, 3, … of a stage one after the other, as a loop within the calling module.

    Args:
      call: ``call(block, x, rate)`` applies one block.
      make: makes the block from its ``name``.
      stage: counted from 1.
      x: ``[N, H, W, C]``.
      rates: the drop rate of each block; where all are zero, ``call`` is given a constant 0.

    Returns:
      ``[N, H, W, C]``.
    """

    def once(block: nn.Module, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
        return call(block, x, 0.0 if rate is None else rate), None

    repeated = nn.scan(
        once,
        variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
        split_rngs={'params': True, 'dropout': True},
        length=len(rates),
    )
    return repeated(make(name=f'stage{stage}_blocks'), x, jnp.asarray(rates) if any(rates) else None)[0]


def as_computed(model: Any, tree: Any) -> Any:
    """Variables, or a whole train state, in the form that a model computes with.

    Args:
      model: a ``ResNet``; any other module computes with what is stored.
      tree: any tree that holds dicts with the keys ``stage1_block1``, …, in either form.
    """
    return stack_blocks(tree) if getattr(model, 'scan_blocks', False) else as_stored(tree)


def stack_blocks(tree: Any) -> Any:
    """The tree with ``stage1_block2``, … of every scanned stage as ``stage1_blocks``, each array ``[blocks - 1, …]``.

    Arrays on the host stay there. What is stacked already is left alone.
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
    """Variables, or a whole train state, in the form of files: each block by its own name.

    The inverse of ``stack_blocks``. What is not stacked is left alone.
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
    """Whether the array at a path such as ``stage1_blocks/conv1/kernel`` holds several blocks, along its first axis."""
    return _BLOCKS.search(path) is not None


def block_paths(path: str, leaf: Any) -> list[str]:
    """The paths that an array has in the stored form: one for each block that it holds, or just its own.

    Args:
      path: such as ``stage1_blocks/conv1/kernel``.
      leaf: the array there, or its shape and dtype.
    """
    match = _BLOCKS.search(path)
    if match is None:
        return [path]
    before, after = path[: match.start()], path[match.end() :]
    return [f'{before}{match[1]}_block{index + 2}{after}' for index in range(leaf.shape[0])]


def block_shape(path: str, leaf: Any) -> tuple[int, ...]:
    """The shape that an array has in the stored form: that of one block."""
    return leaf.shape[1:] if is_stacked(path) else leaf.shape


def split_blocks(path: str, leaf: Any) -> dict[str, Any]:
    """The array of each block by its ``block_paths``."""
    if not is_stacked(path):
        return {path: leaf}
    return {name: leaf[index] for index, name in enumerate(block_paths(path, leaf))}


def map_blocks(function: Callable[..., Any], path: str, *leaves: Any) -> Any:
    """A function of one block's array, applied to each block of a stacked one, or to the array of a single block.

    Args:
      function: of as many arrays as there are leaves.
      path: of the leaves.
      *leaves: arrays of like shape, for instance a gradient and its parameter.
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
