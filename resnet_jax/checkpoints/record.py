"""What a run says of itself: ``config.json`` in its working folder, and whether a folder is this run's own."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from resnet_jax.checkpoints.storage import PARTIAL, make_folder, read_json, write_json
from resnet_jax.errors import InputError

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.json'
RESULT = 'result.json'
# Of the files of a run: raised whenever what was written before cannot be read any more.
FORMAT = 2
# The parts of a record that change a result; the others say where it was computed, and by what.
_COMPARED = ('spec', 'config', 'dataset')


def describe_run(
    arch: str, spec: dict[str, Any], config: dict[str, Any], dataset: dict[str, Any], devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Everything needed to know what a run computed, and on what: the content of ``config.json``.

    Args:
      arch: the architecture's name.
      spec: its specification, nested and JSON-able, as are ``config`` and ``dataset``.
      config: how it is trained.
      dataset: what is known of the data.
      devices: that it is trained on.
    """
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
    record = {
        'format': FORMAT,
        'arch': arch,
        'spec': spec,
        'config': config,
        'dataset': dataset,
        'versions': {name: importlib.metadata.version(name) for name in packages}
        | {'python': platform.python_version()},
        'device': describe_devices(devices),
        'git_commit': _git_commit(),
        'command': sys.argv,
    }
    return _as_json(record)


def _as_json(value: Any) -> Any:
    """A value as it is when its file is read again: tuples are lists."""
    return json.loads(json.dumps(value))


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """For instance ``1 x cpu`` or ``8 x TPU v5 lite``."""
    return f'{len(devices)} x {devices[0].device_kind}'


def _git_commit() -> str | None:
    """The commit of the source tree, with ``+`` for uncommitted changes; None outside a repository."""
    here = pathlib.Path(__file__).parent
    try:
        # An installed package may lie inside another project's repository: then this raises, too.
        subprocess.run(['git', 'ls-files', '--error-unmatch', __file__], cwd=here, capture_output=True, check=True)
        commit, changes = (
            subprocess.run(['git', *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (['rev-parse', 'HEAD'], ['status', '--porcelain', '--untracked-files=no', '.'])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ('+' if changes else '')


def claim_workdir(workdir: pathlib.Path, record: dict[str, Any], may_differ: Sequence[str] = ()) -> None:
    """Makes a folder this run's own.

    Args:
      workdir: new, empty, or of an earlier start of the same run.
      record: from ``describe_run``.
      may_differ: as in ``differences``, of ``spec``, ``config`` and ``dataset``: ``config.reporting``.

    Raises:
      InputError: the folder holds another run, or something else.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f'workdir={workdir} is a file, not a folder')
    if not (workdir / CONFIG).exists():
        # A process killed at this point leaves a partial file of ours, which is nobody's run.
        if workdir.exists() and any(not file.name.endswith(PARTIAL) for file in workdir.iterdir()):
            raise InputError(f'workdir={workdir} is not empty and holds no run; choose another folder')
        make_folder(workdir)
        write_json(workdir / CONFIG, record)
        return
    found = differences(_compared(read_record(workdir)), _compared(record), may_differ)
    if found:
        raise InputError(
            f'workdir={workdir} holds a run of another configuration: {"; ".join(found)};'
            ' choose another --workdir, or give the same flags to resume'
        )


def finished_result(
    workdir: pathlib.Path, parts: dict[str, Any], may_differ: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The result of a run that is finished, known without its data; None if it is another run or not finished.

    Args:
      workdir: of the run.
      parts: of its record those that are known: ``spec`` and ``config``.
      may_differ: as in ``claim_workdir``; what only the data tell belongs to it.

    Raises:
      InputError: the files of a run that cannot be read, or of another version.
    """
    if not (workdir / RESULT).exists() or not (workdir / CONFIG).exists():
        return None
    old = read_record(workdir)
    known = {part: old.get(part) for part in parts}
    return None if differences(known, _as_json(parts), may_differ) else read_json(workdir / RESULT)


def _compared(record: dict[str, Any]) -> dict[str, Any]:
    return {part: record.get(part) for part in _COMPARED}


def differences(old: dict[str, Any], new: dict[str, Any], may_differ: Sequence[str] = ()) -> list[str]:
    """What is not the same in two nested dicts, each as ``learning_rate=0.1 there, 0.2 now``.

    Args:
      old: JSON-able, what is there.
      new: likewise, what is asked for now.
      may_differ: dotted paths, such as ``config.reporting``: neither what they name nor what is below it is compared.

    Returns:
      Sorted; values by the last part of their path, or by all of it where two end alike, and ``optimizer.name`` as
      ``optimizer``. A value that only one of the dicts has is ``absent`` from the other, and so are those of a group
      that is None. Lists of dicts are compared value by value: ``stages.size=[3, 3] there, [5, 5] now``.
    """
    found = _unequal(old, new, (), {tuple(path.split('.')) for path in may_differ})
    # The name of an alternative is that of its group: optimizer='sgd'.
    paths = [path[:-1] if path[-1] == 'name' and len(path) > 1 else path for path, _, _ in found]
    times = Counter(path[-1] for path in paths)
    names = [path[-1] if times[path[-1]] == 1 else '.'.join(path) for path in paths]
    return sorted(_difference(name, there, now) for name, (_, there, now) in zip(names, found, strict=True))


def flat_settings(nested: dict[str, Any]) -> dict[str, Any]:
    """Every value of a nested configuration by the last part of its path, and ``optimizer.name`` as ``optimizer``."""
    settings: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            below = flat_settings(value)
            settings |= {name if key == 'name' else key: one for key, one in below.items()}
        else:
            settings[name] = value
    return settings


_ABSENT = object()


def _unequal(old: Any, new: Any, path: tuple[str, ...], skipped: set[tuple[str, ...]]) -> list[tuple[Any, Any, Any]]:
    """Path and both values of every difference."""
    if path in skipped or old == new:
        return []
    if _are_dicts(old) and _are_dicts(new):
        path, last = path[:-1], path[-1]
        old, new = _by_field(last, old), _by_field(last, new)
    elif isinstance(old, dict) and new is None:  # a group that is absent has none of its settings
        new = {}
    elif isinstance(new, dict) and old is None:
        old = {}
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [(path, old, new)]
    below = []
    for name in old.keys() | new.keys():
        below += _unequal(old.get(name, _ABSENT), new.get(name, _ABSENT), (*path, name), skipped)
    return below


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _by_field(name: str, parts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A list of dicts by its name as a dict of lists, of what each has: ``stages.size`` and the like."""
    fields = dict.fromkeys(field for part in parts for field in part)
    return {f'{name}.{field}': [part.get(field) for part in parts] for field in fields}


def _difference(name: str, there: Any, now: Any) -> str:
    if there is _ABSENT:
        return f'{name} absent there, {now!r} now'
    if now is _ABSENT:
        return f'{name}={there!r} there, absent now'
    return f'{name}={there!r} there, {now!r} now'


def read_record(workdir: str | pathlib.Path) -> dict[str, Any]:
    """What an earlier run recorded of itself, as ``describe_run`` made it.

    Raises:
      InputError: the folder is not a training run of this version of the project.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        below = sorted(config.parent.name for config in path.parent.glob(f'*/{CONFIG}'))
        instead = f', but folders of runs: {", ".join(below)}' if below else ''
        raise InputError(f'{workdir} is not the folder of a training run: it has no {CONFIG}{instead}')
    record = read_json(path)
    if not isinstance(record.get('spec'), dict) or not isinstance(record.get('config'), dict):
        raise InputError(f'{workdir} is not the folder of a training run: its {CONFIG} has no spec and config')
    if (found := record.get('format', 1)) != FORMAT:
        raise InputError(
            f'{workdir} holds a run of another version of resnet_jax (format {found}, this one reads {FORMAT}):'
            ' train it again or use that version'
        )
    return record
