"""One seed or many: the only place where that makes a difference."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.checkpoints.record import CONFIG
from resnet_jax.errors import InputError


def runs_of(seed: int, workdir: pathlib.Path, num_seeds: int | None) -> list[tuple[int, pathlib.Path]]:
    """Seed and folder of each run: of the one seed where ``num_seeds`` is None, else of as many, from it on.

    Raises:
      InputError: several seeds in the folder of a single run, or less than one.
    """
    if num_seeds is None:
        return [(seed, workdir)]
    if num_seeds < 1:
        raise InputError(f'num_seeds={num_seeds} must be at least 1')
    if (workdir / CONFIG).exists():
        raise InputError(f'workdir={workdir} holds a single run; choose another folder for num_seeds={num_seeds}')
    return [(number, workdir / f'seed{number}') for number in range(seed, seed + num_seeds)]


@dataclasses.dataclass(frozen=True)
class Seeds:
    """The seeds of the runs that take every step together: mostly one.

    Of several, every array of the state, of a batch and of a step's sums has one more axis in front, ``[seeds, …]``.

    Attributes:
      numbers: one for each run.
    """

    numbers: tuple[int, ...]

    @property
    def are_many(self) -> bool:
        """Whether arrays have the axis of the seeds."""
        return len(self.numbers) > 1

    @property
    def batch_axis(self) -> int:
        """Which axis of a batch counts the examples."""
        return int(self.are_many)

    @property
    def array(self) -> np.ndarray:
        """The numbers, uint32: a scalar of one, ``[seeds]`` of several."""
        return np.asarray(self.numbers if self.are_many else self.numbers[0], np.uint32)

    def stack(self, trees: Sequence[Any]) -> Any:
        """One tree of NumPy arrays of one for each seed."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if self.are_many else trees[0]

    def unstack(self, tree: Any) -> list[Any]:
        """One tree for each seed, the inverse of ``stack``; of arrays anywhere."""
        return [self.select(tree, index) for index in range(len(self.numbers))]

    def select(self, tree: Any, index: int) -> Any:
        """The tree of one seed by its place among ``numbers``; of arrays anywhere."""
        return jax.tree.map(lambda leaf: leaf[index], tree) if self.are_many else tree

    def common_folder(self, workdirs: Sequence[pathlib.Path]) -> pathlib.Path:
        """What messages call the place of all seeds, of the folder of each."""
        return workdirs[0].parent if self.are_many else workdirs[0]

    def prefix(self, workdir: pathlib.Path) -> str:
        """What a message about one seed begins with, where it could be about another."""
        return f'{workdir}: ' if self.are_many else ''

    def summary_line(self, lines: Sequence[str], what: str, scores: Sequence[float]) -> str:
        """The line of the one seed; of several what was scored, with mean and sample standard deviation."""
        return f'{what} {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}' if self.are_many else lines[0]

    def map(self, function: Callable[..., Any], num_mapped: int) -> Callable[..., Any]:
        """A function of one seed's arguments as one of all seeds'.

        Args:
          function: of ``num_mapped`` trees that have the axis of the seeds, and of others that all seeds share.
          num_mapped: how many of its first arguments have it.

        Returns:
          A function of as many arguments. On a CPU it takes the seeds one after the other, in one loop: there is
          nothing to win by side by side, and batched convolutions are those with groups, for which it has no fast form.
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
