"""The record of a run, ``config.json`` in its workdir, and checks that a folder belongs to a run."""

import json
import pathlib
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from resnet_jax.checkpoints.environment import check_settings, describe_environment
from resnet_jax.checkpoints.storage import PARTIAL, make_folder, read_json, write_json
from resnet_jax.errors import InputError, some

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.json'
RESULT = 'result.json'
# Version of the format of a run's files; incremented when older files can no longer be read.
FORMAT = 2
# Entry of a record: checksums of the examples of each split, and of the teacher.
FINGERPRINTS = 'fingerprints'
# Parts of a record that affect results; the others describe the environment.
_COMPARED = ('spec', 'config', 'dataset')


def describe_run(
    arch: str,
    spec: dict[str, Any],
    config: dict[str, Any],
    dataset: dict[str, Any],
    devices: Sequence[jax.Device],
    fingerprints: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Makes the record of a run, the content of ``config.json``: what it computes, and in which environment.

    Args:
      arch: name of the architecture.
      spec: its specification as nested, JSON-serializable dicts.
      config: the configuration, likewise.
      dataset: metadata of the dataset, likewise.
      devices: the devices that the run trains on.
      fingerprints: checksums of data that the configuration only names.

    Returns:
      The record as JSON data: nested dicts and lists.
    """
    record = {
        'format': FORMAT,
        'arch': arch,
        'spec': spec,
        'config': config,
        'dataset': dataset,
        FINGERPRINTS: fingerprints or {},
        **describe_environment(devices),
        'git_commit': _git_commit(),
        'command': sys.argv,
    }
    return as_json(record)


def as_json(value: Any) -> Any:
    """Converts a value to what is read back from its JSON file: tuples become lists."""
    return json.loads(json.dumps(value))


def _git_commit() -> str | None:
    """The commit of the source tree, with ``+`` for uncommitted changes; None outside a repository."""
    here = pathlib.Path(__file__).parent
    try:
        # Raises, too, if an installed package lies in another project's repository.
        subprocess.run(['git', 'ls-files', '--error-unmatch', __file__], cwd=here, capture_output=True, check=True)
        commit, changes = (
            subprocess.run(['git', *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (['rev-parse', 'HEAD'], ['status', '--porcelain', '--untracked-files=no', '.'])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+' if changes else '')


def claim_workdir(workdir: pathlib.Path, record: dict[str, Any], may_differ: Sequence[str] = ()) -> None:
    """Claims a folder for a run: writes its record, or compares it with the existing one.

    Args:
      workdir: a new or empty folder, or that of an earlier start of the same run.
      record: from ``describe_run``.
      may_differ: as in ``differences``, relative to the record, such as ``config.reporting``.

    Raises:
      InputError: the folder holds another run or other files, or the run was started with other data of the same
        name, or under settings of JAX that change what is computed.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f'workdir={workdir} must be a folder, not a file')
    if not (workdir / CONFIG).exists():
        # A process killed at this point leaves a partial file, which is not a run.
        if workdir.exists() and any(not file.name.endswith(PARTIAL) for file in workdir.iterdir()):
            raise InputError(f'workdir={workdir} is not empty and not a run; choose another folder')
        make_folder(workdir)
        write_json(workdir / CONFIG, record)
        return
    old = read_record(workdir)
    found = differences(_compared_parts(old), _compared_parts(record), may_differ)
    if found:
        raise InputError(
            f'workdir={workdir} holds a run of another configuration: {"; ".join(found)};'
            ' choose another --workdir, or use the same flags to resume'
        )
    check_settings(workdir, old, record)
    _check_content(workdir, old, record)


def _check_content(workdir: pathlib.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises InputError if the dataset or teacher has changed; records of earlier versions have no checksums."""
    before, now = (record.get(FINGERPRINTS, {}) for record in (old, new))
    if changed := [name for name in before if name in now and before[name] != now[name]]:
        raise InputError(
            f'workdir={workdir} was started with other data, although its name is the same: the content of'
            f' {" and ".join(changed)} has changed; restore it to resume, or choose another --workdir'
        )


def finished_result(
    workdir: pathlib.Path, parts: dict[str, Any], may_differ: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Returns the result of a finished run, without loading its dataset; None if it is another run or not finished.

    Args:
      workdir: folder of the run.
      parts: the known parts of the record: ``spec`` and ``config``.
      may_differ: as in ``claim_workdir``; must include fields that depend on the dataset.

    Raises:
      InputError: the files of the run cannot be read or are of another version.
    """
    if not (workdir / RESULT).exists() or not (workdir / CONFIG).exists():
        return None
    old = read_record(workdir)
    known = {part: old.get(part) for part in parts}
    return None if differences(known, as_json(parts), may_differ) else result_of(workdir, old)


def result_of(workdir: pathlib.Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the result of a run; None if it is not finished.

    Args:
      workdir: folder of the run.
      record: its record. Until an extension is finished, ``result.json`` is that of fewer epochs, and does not count.

    Raises:
      InputError: the file cannot be read.
    """
    if not (workdir / RESULT).exists():
        return None
    result, epochs = read_json(workdir / RESULT), record['config'].get('epochs')
    return result if result.get('epochs', epochs) == epochs else None


def _compared_parts(record: dict[str, Any]) -> dict[str, Any]:
    return {part: record.get(part) for part in _COMPARED}


def differences(old: dict[str, Any], new: dict[str, Any], may_differ: Sequence[str] = ()) -> list[str]:
    """Lists the differences of two nested dicts, each as ``learning_rate=0.1 before, 0.2 now``.

    Args:
      old: recorded JSON data.
      new: JSON data requested now.
      may_differ: dotted paths, such as ``config.reporting``, that are not compared, including everything below them.

    Returns:
      Sorted lines. Values are named by the last part of their path, or by the whole path if two end alike;
      ``optimizer.name`` is named ``optimizer``. Values that one of the dicts does not have are ``absent``, including
      those of a group that is None; but a value that is None or False now is no difference, because an earlier version
      may not have had this setting. Lists of dicts are compared field by field: ``stages.size=[3, 3] before, [5, 5]
      now``.
    """
    found = _find_differences(old, new, (), {tuple(path.split('.')) for path in may_differ})
    # The name of an alternative is the value of its group: optimizer='sgd'.
    paths = [path[:-1] if path[-1] == 'name' and len(path) > 1 else path for path, _, _ in found]
    times = Counter(path[-1] for path in paths)
    names = [path[-1] if times[path[-1]] == 1 else '.'.join(path) for path in paths]
    return sorted(_difference(name, before, now) for name, (_, before, now) in zip(names, found, strict=True))


def flat_settings(nested: dict[str, Any]) -> dict[str, Any]:
    """Flattens a nested configuration to the last parts of the paths; ``optimizer.name`` becomes ``optimizer``."""
    settings: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            below = flat_settings(value)
            settings |= {name if key == 'name' else key: one for key, one in below.items()}
        else:
            settings[name] = value
    return settings


_ABSENT = object()


def _find_differences(
    old: Any, new: Any, path: tuple[str, ...], skipped: set[tuple[str, ...]]
) -> list[tuple[Any, Any, Any]]:
    """The path and both values of every difference."""
    if path in skipped or old == new:
        return []
    if _are_dicts(old) and _are_dicts(new):
        path, last = path[:-1], path[-1]
        old, new = _by_field(last, old), _by_field(last, new)
    elif isinstance(old, dict) and new is None:  # an absent group has no settings
        new = {}
    elif isinstance(new, dict) and old is None:
        old = {}
    if old is _ABSENT and (new is None or new is False):
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [(path, old, new)]
    below = []
    for name in old.keys() | new.keys():
        below += _find_differences(old.get(name, _ABSENT), new.get(name, _ABSENT), (*path, name), skipped)
    return below


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _by_field(name: str, parts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Converts a list of dicts to a dict of lists, with keys such as ``stages.size``."""
    fields = dict.fromkeys(field for part in parts for field in part)
    return {f'{name}.{field}': [part.get(field) for part in parts] for field in fields}


def _difference(name: str, before: Any, now: Any) -> str:
    if before is _ABSENT:
        return f'{name} absent before, {now!r} now'
    if now is _ABSENT:
        return f'{name}={before!r} before, absent now'
    return f'{name}={before!r} before, {now!r} now'


def read_record(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Reads the record of a run, as made by ``describe_run``.

    Args:
      workdir: folder of the run.

    Raises:
      InputError: the folder is not a run of this version of the package.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        below = sorted(config.parent.name for config in path.parent.glob(f'*/{CONFIG}'))
        instead = f'; its subfolders are runs: {some(below)}' if below else ''
        raise InputError(f'{workdir} is not the folder of a run: no {CONFIG} found{instead}')
    record = read_json(path)
    if not isinstance(record.get('spec'), dict) or not isinstance(record.get('config'), dict):
        raise InputError(f'{workdir} is not the folder of a run: its {CONFIG} has no spec and config')
    if (found := record.get('format', 1)) != FORMAT:
        raise InputError(
            f'{workdir} is a run of another version of resnet_jax (format {found}, this version reads {FORMAT});'
            ' train it again or use that version'
        )
    return record
