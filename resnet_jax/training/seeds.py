"""One or several seeds: the only module that distinguishes the two."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.checkpoints.record import CONFIG
from resnet_jax.errors import InputError


def runs_of(seed: int, workdir: pathlib.Path, num_seeds: int | None) -> list[tuple[int, pathlib.Path]]:
    """Seed and folder of each run: ``num_seeds`` runs starting at ``seed``, or a single run if it is None.

    Raises:
      InputError: the folder contains a single run, or ``num_seeds`` is less than 1.
    """
    if num_seeds is None:
        return [(seed, workdir)]
    if num_seeds < 1:
        raise InputError(f'num_seeds={num_seeds} must be at least 1')
    if (workdir / CONFIG).exists():
        raise InputError(f'workdir={workdir} contains a single run; choose another folder for num_seeds={num_seeds}')
    return [(number, workdir / f'seed{number}') for number in range(seed, seed + num_seeds)]


@dataclasses.dataclass(frozen=True)
class Seeds:
    """The seeds of runs that are trained together; usually one.

    With several seeds, all arrays of the state, of batches and of a step's sums have a leading axis, ``[seeds, …]``.

    Attributes:
      numbers: the seed of each run.
    """

    numbers: tuple[int, ...]

    @property
    def are_many(self) -> bool:
        """Whether there are several seeds, so that arrays have the seed axis."""
        return len(self.numbers) > 1

    @property
    def batch_axis(self) -> int:
        """The batch axis of a batch's arrays."""
        return int(self.are_many)

    @property
    def array(self) -> np.ndarray:
        """The seeds as uint32: a scalar for one seed, ``[seeds]`` for several."""
        return np.asarray(self.numbers if self.are_many else self.numbers[0], np.uint32)

    def stack(self, trees: Sequence[Any]) -> Any:
        """Stacks one tree per seed into one tree of NumPy arrays."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if self.are_many else trees[0]

    def unstack(self, tree: Any) -> list[Any]:
        """Splits a tree into one per seed, the inverse of ``stack``; works on arrays on any device."""
        return [self.select(tree, index) for index in range(len(self.numbers))]

    def select(self, tree: Any, index: int) -> Any:
        """The tree of one seed by its index in ``numbers``; works on arrays on any device."""
        return jax.tree.map(lambda leaf: leaf[index], tree) if self.are_many else tree

    def num_steps(self, sums: Any) -> int:
        """The number of steps of a call, from the shapes of its sums, ``[steps, …]`` or ``[seeds, steps, …]``."""
        return jax.tree.leaves(sums)[0].shape[self.batch_axis]

    def common_folder(self, workdirs: Sequence[pathlib.Path]) -> pathlib.Path:
        """The common folder of all seeds, for messages."""
        return workdirs[0].parent if self.are_many else workdirs[0]

    def prefix(self, workdir: pathlib.Path) -> str:
        """Prefix that identifies the seed in messages if there are several."""
        return f'{workdir}: ' if self.are_many else ''

    def summary_line(self, lines: Sequence[str], what: str, scores: Sequence[float]) -> str:
        """The line of the only seed, or mean and sample standard deviation of several."""
        return f'{what} {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}' if self.are_many else lines[0]

    def map(self, function: Callable[..., Any], num_mapped: int) -> Callable[..., Any]:
        """Maps a function of one seed over all seeds.

        Args:
          function: takes ``num_mapped`` trees of one seed, then arguments that all seeds share.
          num_mapped: number of leading arguments that have the seed axis.

        Returns:
          A function with the same number of arguments. On a CPU it loops over the seeds: parallel seeds would not be
          faster, and batched convolutions become grouped ones, for which the CPU has no fast form.
        """
        if not self.are_many:
            return function

        def mapped(*arguments: Any) -> Any:
            many, shared = arguments[:num_mapped], arguments[num_mapped:]

            def one_by_one(many: Any) -> Any:
                return jax.lax.map(lambda one: function(*one, *shared), many)

            def side_by_side(many: Any) -> Any:
                return jax.vmap(lambda one: function(*one, *shared))(many)

            return jax.lax.platform_dependent(many, cpu=one_by_one, default=side_by_side)

        return mapped
