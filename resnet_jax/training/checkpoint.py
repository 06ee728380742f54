"""Checkpoints of a train state.

A checkpoint is a folder ``checkpoints/STEP`` with the arrays as Orbax writes them (``state/``) and a manifest: shape
and dtype of each array, size and CRC-32 of each file, and the test accuracy at that step. The folder is written under
another name and renamed when it is whole, so a killed process leaves no half a checkpoint.
"""

import contextlib
import json
import os
import pathlib
import shutil
import zlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from resnet_jax.errors import InputError

_MANIFEST = 'manifest.json'
_PARTIAL = '.partial'


def save_checkpoint(folder: pathlib.Path, step: int, state: Any, score: float | None) -> None:
    """Writes ``folder/STEP`` and removes the steps that are neither the last nor the best of those written.

    Args:
      folder: ``WORKDIR/checkpoints``.
      step: steps taken.
      state: tree of arrays.
      score: the headline metric of the test set, higher being better; None if the step was not evaluated.
    """
    folder = folder.absolute()
    partial = folder / f'{step}{_PARTIAL}'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial / 'state', state)
    manifest = {'step': step, 'score': score, 'arrays': _arrays(state), 'files': _files(partial)}
    with open(partial / _MANIFEST, 'w') as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _remove(folder / str(step))
    partial.rename(folder / str(step))
    for other in set(checkpoint_steps(folder)) - {step, best_step(folder)}:
        _remove(folder / str(other))


def _remove(path: pathlib.Path) -> None:
    """Removes a step; under another name, so that a killed process does not leave half of it as a step."""
    if path.exists():
        doomed = path.with_name(f'{path.name}.removed{_PARTIAL}')
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def checkpoint_steps(folder: pathlib.Path) -> list[int]:
    """Steps in a ``checkpoints`` folder, ascending; empty if there is no folder."""
    return sorted(int(path.name) for path in folder.glob('*') if path.name.isdigit() and path.is_dir())


def best_step(folder: pathlib.Path) -> int | None:
    """The kept step with the highest test accuracy, the later of equals; None if none was evaluated.

    A damaged step counts as not evaluated: the other steps are as good as before.
    """
    scores = {}
    for step in checkpoint_steps(folder):
        with contextlib.suppress(InputError):
            scores[step] = _read_manifest(folder / str(step))['score']
    evaluated = [step for step, score in scores.items() if score is not None]
    return max(evaluated, key=lambda step: (scores[step], step), default=None)


def restore_checkpoint(folder: pathlib.Path, step: int, like: Any) -> Any:
    """The state of a step, after a check of every file.

    Args:
      folder: ``WORKDIR/checkpoints``.
      step: one of ``checkpoint_steps(folder)``.
      like: a tree of the same structure, shapes and dtypes: arrays, or ``jax.ShapeDtypeStruct`` with shardings.

    Raises:
      InputError: no such step, a damaged checkpoint, or one of another network or optimizer.
    """
    path = folder.absolute() / str(step)
    if step not in checkpoint_steps(folder):
        raise InputError(f'{folder} has no step {step}; it has {checkpoint_steps(folder) or "none"}')
    manifest = _read_manifest(path)
    found = _files(path)
    for name, expected in manifest['files'].items():
        if found.get(name) != expected:
            raise _damaged(path, f'{name} is {"missing" if name not in found else "not as it was written"}')
    stored, wanted = manifest['arrays'], _arrays(like)
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise InputError(
                f'{path} is of another network or optimizer: {name} is {stored.get(name, "missing")} there,'
                f' {wanted.get(name, "missing")} here'
            )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / 'state', like)


def remove_partial_checkpoints(folder: pathlib.Path) -> None:
    """Removes what a killed process left half-written."""
    for path in folder.glob(f'*{_PARTIAL}'):
        shutil.rmtree(path)


def _arrays(tree: Any) -> dict[str, str]:
    """``path: dtype[shape]`` of every array."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): f'{x.dtype}{list(x.shape)}' for path, x in leaves}


def _files(path: pathlib.Path) -> dict[str, list[int]]:
    """``name: [bytes, CRC-32]`` of every file of the state."""
    contents = {str(file.relative_to(path)): file for file in sorted((path / 'state').rglob('*')) if file.is_file()}
    return {name: [file.stat().st_size, _crc32(file)] for name, file in contents.items()}


def _crc32(path: pathlib.Path) -> int:
    checksum = 0
    with path.open('rb') as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        # Earlier manifests call the score by the one metric there was.
        score = manifest['score'] if 'score' in manifest else manifest['test_accuracy']
        return {'score': score, 'arrays': manifest['arrays'], 'files': manifest['files']}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f'{_MANIFEST}: {error}') from error


def _damaged(path: pathlib.Path, reason: str) -> InputError:
    others = [step for step in checkpoint_steps(path.parent) if str(step) != path.name]
    advice = f'step {others[-1]}' if others else 'the start'
    return InputError(f'checkpoint {path} is damaged ({reason}); move it away to go on from {advice}')
