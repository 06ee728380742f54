"""Checkpoints of a train state.

A checkpoint is a folder ``checkpoints/STEP``, in the format of ``checkpoints.files``. It is written under a temporary
name and renamed when all of it is on disk, so a killed process leaves no partial checkpoint. Later damage is detected
by checksums; the run then resumes from the previous checkpoint.
"""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.checkpoints.files import (
    DamageError,
    check_files,
    describe_arrays,
    read_arrays,
    read_manifest,
    write_step,
)
from resnet_jax.checkpoints.storage import PARTIAL, discard, reason, sync
from resnet_jax.errors import InputError, StorageError

DAMAGED = 'damaged'

# Folder, state and score of one of several runs saved at the same step.
Entry = tuple[pathlib.Path, Any, float | None]


def save_checkpoint(folder: pathlib.Path, step: int, state: Any, score: float | None) -> None:
    """Writes ``folder/STEP`` and removes all other steps except the last and the best one.

    Args:
      folder: ``WORKDIR/checkpoints``.
      step: number of steps taken.
      state: pytree of non-empty arrays that are fully addressable by this process.
      score: the primary metric on the test set, higher is better; None if the step was not evaluated.

    Raises:
      StorageError: the checkpoint could not be written; earlier checkpoints are unchanged.
    """
    save_checkpoints(step, [(folder, state, score)])


def save_checkpoints(step: int, entries: Sequence[Entry], keep: int = 1) -> None:
    """``save_checkpoint`` for several runs at the same step: older steps are removed only when all are written.

    There is thus always a step that all runs have, which ``restore_newest_of_all`` finds.

    Args:
      step: number of steps taken.
      entries: ``(folder, state, score)`` of each run, with distinct folders.
      keep: number of the last steps to keep, at least 1. With 1, there may be no older step to resume from if the last
        one is damaged: when the last step is also the best, or when the runs have different best steps.

    Raises:
      ValueError: ``keep`` is below 1, or a folder occurs twice.
      StorageError: as ``save_checkpoint``; a folder that has the new step already keeps its older ones, too.
    """
    entries = [(folder.absolute(), jax.tree.map(np.asarray, state), score) for folder, state, score in entries]
    folders = [folder for folder, _, _ in entries]
    if keep < 1:
        raise ValueError(f'keep={keep} must be at least 1')
    if len(set(folders)) < len(folders):
        raise ValueError(f'folders must be distinct, got {folders}')
    try:
        for folder, state, score in entries:
            with _storage_errors(folder, step):
                discard(_partial(folder, step))
                write_step(_partial(folder, step), step, state, score)
        for folder in folders:
            with _storage_errors(folder, step):
                _commit(folder, step)
    finally:
        for folder in folders:
            discard(_partial(folder, step))
    for folder in folders:
        steps = checkpoint_steps(folder)
        last = [other for other in steps if other <= step][-keep:]
        for other in set(steps) - {*last, best_step(folder)}:
            with contextlib.suppress(OSError):  # what cannot be removed stays until the next step is saved
                _remove(folder / str(other))


def _partial(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f'{step}{PARTIAL}'


def _commit(folder: pathlib.Path, step: int) -> None:
    """Renames a written step to its final name, replacing an earlier step of that name."""
    path = folder / str(step)
    doomed = _move_aside(path) if os.path.lexists(path) else None
    try:
        _partial(folder, step).rename(path)
    except OSError:
        if doomed is not None:
            doomed.rename(path)
        raise
    sync(folder)
    sync(folder.parent)
    if doomed is not None:
        discard(doomed)


def _move_aside(path: pathlib.Path) -> pathlib.Path:
    doomed = path.with_name(f'{path.name}.removed{PARTIAL}')
    discard(doomed)
    return path.rename(doomed)


def _remove(path: pathlib.Path) -> None:
    """Renames and removes a step, so that a killed process leaves no partial step."""
    discard(_move_aside(path))


@contextlib.contextmanager
def _storage_errors(folder: pathlib.Path, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # for a full disk, Orbax raises exceptions of several libraries
        discard(_partial(folder, step))  # to free disk space
        last = next((other for other in reversed(checkpoint_steps(folder)) if _is_intact(folder / str(other))), 'none')
        raise StorageError(
            f'cannot write checkpoint {folder / str(step)}: {reason(error)}; last intact step: {last}'
        ) from error


def _is_intact(path: pathlib.Path) -> bool:
    try:
        check_files(path, read_manifest(path))
    except (DamageError, StorageError):
        return False
    return True


def checkpoint_steps(folder: pathlib.Path) -> list[int]:
    """Lists the steps in a ``checkpoints`` folder in ascending order, without damaged ones that were moved away.

    Args:
      folder: ``WORKDIR/checkpoints``; if it does not exist, the list is empty.

    Raises:
      StorageError: the folder cannot be listed.
    """
    return [step for step in _numbered_entries(folder) if (folder / str(step)).is_dir()]


def _numbered_entries(folder: pathlib.Path) -> list[int]:
    """Numbers of all files and folders named like a step, in ascending order."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f'cannot list {folder}: {reason(error)}') from error
    return sorted(int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name))


def best_step(folder: pathlib.Path) -> int | None:
    """The step with the highest score, the later one of equals; None if no step was evaluated.

    Damaged steps are ignored.

    Args:
      folder: ``WORKDIR/checkpoints``.
    """
    found = {step: score_of(folder, step) for step in checkpoint_steps(folder)}
    scores = {step: score for step, score in found.items() if score is not None and not math.isnan(score)}
    return max(scores, key=lambda step: (scores[step], step), default=None)


def score_of(folder: pathlib.Path, step: int) -> float | None:
    """The score that a step was saved with; None if it was not evaluated or is damaged."""
    try:
        return read_manifest(folder / str(step)).score
    except DamageError:
        return None


def restore_checkpoint(folder: pathlib.Path, step: int, like: Any, part: bool = False) -> Any:
    """Reads the state of a step and verifies every file and array. Does not communicate with other processes.

    Args:
      folder: ``WORKDIR/checkpoints``.
      step: one of ``checkpoint_steps(folder)``.
      like: pytree of arrays or ``jax.ShapeDtypeStruct`` with the structure, shapes and dtypes of the state.
      part: whether ``like`` is a dict of some of the state's fields, such as ``params``; other fields are not read.

    Returns:
      The state, with NumPy arrays, or with ``jax.Array`` of the same sharding where a leaf of ``like`` has one.

    Raises:
      InputError: the step does not exist, is damaged (``DamageError``), or is of another network or optimizer.
      StorageError: the system has too few resources to read it.
    """
    return _read_step(folder, step, lambda path: _read(path, like, part))


def arrays_of(folder: pathlib.Path, step: int) -> dict[str, str]:
    """Describes every array of a step as ``path: dtype[shape]``, without reading it.

    Args:
      folder: ``WORKDIR/checkpoints``.
      step: one of ``checkpoint_steps(folder)``.

    Raises:
      InputError: the step does not exist, or its manifest is damaged (``DamageError``).
      StorageError: the system has too few resources to read it.
    """
    return _read_step(folder, step, lambda path: read_manifest(path).arrays)


def _read_step(folder: pathlib.Path, step: int, read: Callable[[pathlib.Path], Any]) -> Any:
    """Calls ``read`` for a step; if it is damaged, the error says from where a run can resume."""
    path = folder.absolute() / str(step)
    if step not in checkpoint_steps(folder):
        raise InputError(f'{folder} has no step {step}; steps: {checkpoint_steps(folder) or "none"}')
    try:
        return read(path)
    except DamageError as error:
        others = [other for other in checkpoint_steps(folder) if other != step]
        place = f'step {others[-1]}' if others else 'the start'
        raise DamageError(path, error.why, f'move it away to resume from {place}') from error


def _read(path: pathlib.Path, like: Any, part: bool = False) -> Any:
    manifest = read_manifest(path)
    check_files(path, manifest)
    stored, wanted = manifest.arrays, describe_arrays(like)
    if part:
        stored = {name: array for name, array in stored.items() if name.partition('/')[0] in like}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise InputError(
                f'{path} is of another network or optimizer: {name} is {stored.get(name, "missing")} in the file,'
                f' {wanted.get(name, "missing")} now'
            )
    return read_arrays(path, manifest, like)


def restore_newest(folder: pathlib.Path, like: Any, report: Callable[[str], None]) -> tuple[int, Any] | None:
    """Restores the newest intact step; damaged newer ones are reported and moved away.

    Damaged steps are moved to ``folder/damaged/STEP`` (``STEP-2`` and so on if that exists), and never deleted. With
    several processes, only one calls this, and the others read the step that it found.

    Args:
      folder: ``WORKDIR/checkpoints``.
      like: as in ``restore_checkpoint``.
      report: called with one line for every damaged step.

    Returns:
      The step and its state, as from ``restore_checkpoint``; None if there is no intact step.

    Raises:
      InputError: the newest intact step is of another network or optimizer.
      StorageError: the folder cannot be listed, or the system has too few resources to read the step.
    """
    found = restore_newest_of_all([folder], like, report)
    return None if found is None else (found[0], found[1][0])


def restore_newest_of_all(
    folders: Sequence[pathlib.Path], like: Any, report: Callable[[str], None]
) -> tuple[int, list[Any]] | None:
    """Restores the newest step that is intact in every folder, for runs that are saved together.

    Steps that only some folders have are not touched. Otherwise as ``restore_newest``.

    Args:
      folders: ``WORKDIR/checkpoints`` of each run.
      like: as in ``restore_checkpoint``.
      report: as in ``restore_newest``.

    Returns:
      The step and the state of each run; None if there is no such step.

    Raises:
      InputError: as ``restore_newest``.
      StorageError: as ``restore_newest``.
    """
    common = set.intersection(*(set(_numbered_entries(folder)) for folder in folders))
    for step in sorted(common, reverse=True):
        states = []
        for folder in folders:
            try:
                states.append(_read(folder.absolute() / str(step), like))
            except DamageError as error:
                report(_move_to_damaged(error))
        if len(states) == len(folders):
            return step, states
    return None


def _move_to_damaged(error: DamageError) -> str:
    """Moves a damaged step away; returns a line that reports it."""
    what, place = f'checkpoint {error.path} is damaged ({error.why})', error.path.parent / DAMAGED
    target, number = place / error.path.name, 1
    while os.path.lexists(target):  # rename would replace an empty folder of this name
        number += 1
        target = place / f'{error.path.name}-{number}'
    try:
        place.mkdir(exist_ok=True)
        error.path.rename(target)
        sync(place)
        sync(place.parent)
    except OSError as failure:
        return f'{what}; ignored, but could not be moved to {place}: {reason(failure)}'
    return f'{what}; moved to {target}'


def remove_partial_checkpoints(folder: pathlib.Path) -> None:
    """Removes partial checkpoints that a killed process left.

    A step that was about to be replaced by a new one of the same name is restored.

    Args:
      folder: ``WORKDIR/checkpoints``.

    Raises:
      StorageError: such a step could not be restored.
    """
    for path in folder.glob(f'*.removed{PARTIAL}'):
        step = path.with_name(path.name.removesuffix(f'.removed{PARTIAL}'))
        if not os.path.lexists(step):
            try:
                path.rename(step)
            except OSError as error:
                raise StorageError(f'cannot rename {path} to {step}: {reason(error)}') from error
    for path in folder.glob(f'*{PARTIAL}'):
        discard(path)
