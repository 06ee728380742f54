"""Checkpoints of a train state.

A checkpoint is a folder ``checkpoints/STEP``, as ``checkpoints.files`` describes it. It is written under another name
and renamed when all of it is on the disk, so a killed process leaves no half a checkpoint. One that was damaged later
is found by its checksums, and a run goes on from the one before it.
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

# Folder, state and score of one of several runs that are saved together.
Entry = tuple[pathlib.Path, Any, float | None]


def save_checkpoint(folder: pathlib.Path, step: int, state: Any, score: float | None) -> None:
    """Writes ``folder/STEP`` and removes the steps that are neither the last nor the best of those written.

    Args:
      folder: ``WORKDIR/checkpoints``.
      step: steps taken.
      state: tree of arrays that this process has whole, none of them empty.
      score: the primary metric of the test set, higher being better; None if the step was not evaluated.

    Raises:
      StorageError: the disk is full or broken; the earlier checkpoints are as they were.
    """
    save_checkpoints(step, [(folder, state, score)])


def save_checkpoints(step: int, entries: Sequence[Entry], keep: int = 1) -> None:
    """``save_checkpoint`` for several runs at the same step: all are written before any loses an older step.

    So there is always a step that all of them have, which ``restore_newest_of_all`` finds.

    Args:
      step: steps taken.
      entries: ``(folder, state, score)`` of each run, the folders all different.
      keep: how many of the last steps are kept, at least 1. With 1, nothing older is left to go on from, should the
        last step be damaged, where it is also the best, or where the runs' best steps are not the same.

    Raises:
      StorageError: as ``save_checkpoint``; where a folder already has the new step, it has its older ones, too.
    """
    entries = [(folder.absolute(), jax.tree.map(np.asarray, state), score) for folder, state, score in entries]
    folders = [folder for folder, _, _ in entries]
    if keep < 1:
        raise ValueError(f'keep={keep} must be at least 1')
    if len(set(folders)) < len(folders):
        raise ValueError(f'folders must all be different: {folders}')
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
            with contextlib.suppress(OSError):  # what cannot be removed stays until a later step is saved
                _remove(folder / str(other))


def _partial(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / f'{step}{PARTIAL}'


def _commit(folder: pathlib.Path, step: int) -> None:
    """Gives a step that is written its name, which an earlier one may have."""
    path = folder / str(step)
    doomed = _make_way(path) if os.path.lexists(path) else None
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


def _make_way(path: pathlib.Path) -> pathlib.Path:
    doomed = path.with_name(f'{path.name}.removed{PARTIAL}')
    discard(doomed)
    return path.rename(doomed)


def _remove(path: pathlib.Path) -> None:
    """Removes a step; under another name, so that a killed process does not leave half of it as a step."""
    discard(_make_way(path))


@contextlib.contextmanager
def _storage_errors(folder: pathlib.Path, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax says in classes of several libraries that a disk is full
        discard(_partial(folder, step))  # to make room for what follows
        last = next((other for other in reversed(checkpoint_steps(folder)) if _is_intact(folder / str(other))), 'none')
        raise StorageError(
            f'cannot write checkpoint {folder / str(step)}: {reason(error)}; the last intact step there is {last}'
        ) from error


def _is_intact(path: pathlib.Path) -> bool:
    try:
        check_files(path, read_manifest(path))
    except (DamageError, StorageError):
        return False
    return True


def checkpoint_steps(folder: pathlib.Path) -> list[int]:
    """Steps in a ``checkpoints`` folder, ascending, without those set aside; empty if there is no folder.

    Raises:
      StorageError: the folder cannot be listed.
    """
    return [step for step in _names(folder) if (folder / str(step)).is_dir()]


def _names(folder: pathlib.Path) -> list[int]:
    """Whatever is called like a step, be it a folder or not, ascending."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f'cannot list {folder}: {reason(error)}') from error
    return sorted(int(name) for name in names if re.fullmatch('0|[1-9][0-9]*', name))


def best_step(folder: pathlib.Path) -> int | None:
    """The kept step with the highest test accuracy, the later of equals; None if none was evaluated.

    A damaged step counts as not evaluated: the other steps are as good as before.
    """
    found = {step: score_of(folder, step) for step in checkpoint_steps(folder)}
    scores = {step: score for step, score in found.items() if score is not None and not math.isnan(score)}
    return max(scores, key=lambda step: (scores[step], step), default=None)


def score_of(folder: pathlib.Path, step: int) -> float | None:
    """The primary metric that a step was saved with; None if it was not evaluated, or is damaged."""
    try:
        return read_manifest(folder / str(step)).score
    except DamageError:
        return None


def restore_checkpoint(folder: pathlib.Path, step: int, like: Any, part: bool = False) -> Any:
    """The state of a step, after a check of every file and every array. Reads on its own in a job of many processes.

    Args:
      folder: ``WORKDIR/checkpoints``.
      step: one of ``checkpoint_steps(folder)``.
      like: a tree of the same structure, shapes and dtypes: of ``jax.ShapeDtypeStruct`` or of arrays.
      part: ``like`` is a dict of some of the state's members, such as ``params``; what is in others is not read.

    Returns:
      The tree, of NumPy arrays; of ``jax.Array`` placed likewise where a leaf of ``like`` has a sharding.

    Raises:
      InputError: no such step, a damaged checkpoint (``DamageError``), or one of another network or optimizer.
      StorageError: the machine has no means left to read it.
    """
    return _read_step(folder, step, lambda path: _read(path, like, part))


def arrays_of(folder: pathlib.Path, step: int) -> dict[str, str]:
    """``path: dtype[shape]`` of every array in the state of a step, without reading it.

    Raises:
      InputError: no such step, or its manifest is damaged (``DamageError``).
      StorageError: the machine has no means left to read it.
    """
    return _read_step(folder, step, lambda path: read_manifest(path).arrays)


def _read_step(folder: pathlib.Path, step: int, read: Callable[[pathlib.Path], Any]) -> Any:
    """What a function reads of a step; of a damaged one the error says what a run can go on from."""
    path = folder.absolute() / str(step)
    if step not in checkpoint_steps(folder):
        raise InputError(f'{folder} has no step {step}; it has {checkpoint_steps(folder) or "none"}')
    try:
        return read(path)
    except DamageError as error:
        others = [other for other in checkpoint_steps(folder) if other != step]
        place = f'step {others[-1]}' if others else 'the start'
        raise DamageError(path, error.why, f'move it away to go on from {place}') from error


def _read(path: pathlib.Path, like: Any, part: bool = False) -> Any:
    manifest = read_manifest(path)
    check_files(path, manifest)
    stored, wanted = manifest.arrays, describe_arrays(like)
    if part:
        stored = {name: array for name, array in stored.items() if name.partition('/')[0] in like}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise InputError(
                f'{path} is of another network or optimizer: {name} is {stored.get(name, "missing")} there,'
                f' {wanted.get(name, "missing")} here'
            )
    return read_arrays(path, manifest, like)


def restore_newest(folder: pathlib.Path, like: Any, report: Callable[[str], None]) -> tuple[int, Any] | None:
    """The newest step that is intact; damaged ones on the way there are reported and set aside.

    What is set aside is moved to ``folder/damaged/STEP`` (``STEP-2`` and so on where there is one); nothing is removed.
    In a job of several processes one calls this, and the others read the step that it found.

    Args:
      folder: ``WORKDIR/checkpoints``.
      like: as in ``restore_checkpoint``.
      report: takes a line for every damaged step.

    Returns:
      Step and state, as ``restore_checkpoint`` gives it; None where no step is left.

    Raises:
      InputError: the newest intact step is of another network or optimizer.
      StorageError: the folder cannot be listed, or the machine has no means left to read.
    """
    found = restore_newest_of_all([folder], like, report)
    return None if found is None else (found[0], found[1][0])


def restore_newest_of_all(
    folders: Sequence[pathlib.Path], like: Any, report: Callable[[str], None]
) -> tuple[int, list[Any]] | None:
    """The newest step that is intact in every folder, for runs saved together; else as ``restore_newest``.

    Steps that only some folders have stay where they are.

    Returns:
      The step, and the state of each folder; None where there is no such step.
    """
    common = set.intersection(*(set(_names(folder)) for folder in folders))
    for step in sorted(common, reverse=True):
        states = []
        for folder in folders:
            try:
                states.append(_read(folder.absolute() / str(step), like))
            except DamageError as error:
                report(_set_aside(error))
        if len(states) == len(folders):
            return step, states
    return None


def _set_aside(error: DamageError) -> str:
    """Moves a damaged step away and gives the line that says so."""
    what, place = f'checkpoint {error.path} is damaged ({error.why})', error.path.parent / DAMAGED
    target, number = place / error.path.name, 1
    while os.path.lexists(target):  # an empty folder of this name would be replaced
        number += 1
        target = place / f'{error.path.name}-{number}'
    try:
        place.mkdir(exist_ok=True)
        error.path.rename(target)
        sync(place)
        sync(place.parent)
    except OSError as failure:
        return f'{what}; it is passed over, for it cannot be moved to {place}: {reason(failure)}'
    return f'{what}; it is now {target}'


def remove_partial_checkpoints(folder: pathlib.Path) -> None:
    """Removes what a killed process left half-written.

    Raises:
      StorageError: a step that made room for another one of its name, which did not come, cannot be moved back.
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
