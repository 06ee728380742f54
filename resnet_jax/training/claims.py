"""Claims of folders: whether a run starts, resumes, is extended to more epochs, is already finished, or is refused."""

import dataclasses
import datetime
import json
import math
import pathlib
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from resnet_jax.checkpoints.environment import environment_changes
from resnet_jax.checkpoints.record import (
    CONFIG,
    RESULT,
    as_json,
    claim_workdir,
    describe_run,
    differences,
    finished_result,
    read_record,
    result_of,
)
from resnet_jax.checkpoints.storage import write_json
from resnet_jax.data.fingerprint import fingerprint
from resnet_jax.devices import differing_entries, in_main_process, is_main_process
from resnet_jax.errors import InputError
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.text import print_lines, printable
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.plan import Plan, dataset_record
from resnet_jax.training.result import can_be_drawn

# Parts of a run's record that may change when it is resumed: they do not affect what is computed.
_MAY_DIFFER = ('config.reporting',)
# Settings that ``get_config`` scales with the number of epochs.
_IN_EPOCHS = (('schedule', 'warmup', 'warmup_epochs'), ('schedule', 'warmup_epochs'), ('schedule', 'decay_epochs'))
_DECAY = ('averaging', 'ema_decay')
_EXTENDED = tuple('.'.join(('config', *path)) for path in (('epochs',), *_IN_EPOCHS, _DECAY))
# Entry of a record: the extensions of the run.
EXTENSIONS = 'extensions'


def finished_results(
    spec: ResNetSpec, config: TrainConfig, runs: Sequence[tuple[int, pathlib.Path]], extend: bool = False
) -> dict[int, dict[str, Any]]:
    """Returns the results of finished runs by seed, except those whose report has to be drawn again.

    Args:
      spec: architecture; its number of classes is not compared.
      config: the configuration; the seeds come from ``runs``.
      runs: seed and folder of each run.
      extend: whether runs of fewer epochs may be extended.

    Raises:
      InputError: a run of fewer epochs without ``extend``, or nothing to extend with it.
    """
    results, may_differ, extensible = {}, (*_MAY_DIFFER, 'spec.head.num_classes'), False
    started = [run for run in runs if (run[1] / CONFIG).exists()]
    if extend and not started:
        raise InputError(f'extend: workdir={runs[0][1]} holds no run yet; start it without extend')
    for seed, workdir in started:
        parts = {'spec': spec.to_json(), 'config': dataclasses.replace(config, seed=seed).to_json()}
        record = read_record(workdir)
        epochs = _epochs(record, parts, may_differ)
        if epochs is not None and epochs[0] < epochs[1] and not extend:
            finished = result_of(workdir, record) is not None
            count = f'{epochs[0]} epoch{"s" * (epochs[0] != 1)}'
            state = f'finished after {count}' if finished else f'has not finished its {count}'
            raise InputError(
                f'workdir={workdir} {state}; add --extend to train it to {epochs[1]} (extend=True in Python),'
                ' or choose another --workdir'
            )
        if epochs is not None and epochs[0] > epochs[1] and extend:
            raise InputError(f'extend: workdir={workdir} has epochs={epochs[0]}; set epochs to more')
        extensible |= epochs != (config.epochs, config.epochs) or bool(record.get(EXTENSIONS))
        if result := finished_result(workdir, parts, may_differ):
            draws = can_be_drawn(workdir, result)
            if is_main_process():
                why = '; its report.png is missing and is drawn after another evaluation' if draws else ''
                print_lines(f'{workdir} is already finished{why}')
            if not draws:
                results[seed] = result
    if extend and not extensible:
        raise InputError(f'extend: workdir={runs[0][1]} has epochs={config.epochs} already; set epochs to more')
    return results


def _epochs(record: dict[str, Any], parts: dict[str, Any], may_differ: Sequence[str]) -> tuple[int, int] | None:
    """The recorded and the requested number of epochs if nothing else differs but what is scaled with it, else None."""
    old, new = {part: record[part] for part in parts}, as_json(parts)
    if differences(old, new, (*may_differ, *_EXTENDED)):
        return None
    before, now = old['config']['epochs'], new['config']['epochs']
    share = now / before
    for path in _IN_EPOCHS:
        first, second = (_values(_at(one['config'], path)) for one in (old, new))
        scaled = [value * share for value in first]
        if first != second and not (len(first) == len(second) and all(map(math.isclose, scaled, second))):
            return None
    first, second = (_values(_at(one['config'], _DECAY)) for one in (old, new))
    if first != second and not (first and second and math.isclose(1 - second[0], min((1 - first[0]) / share, 1))):
        return None
    return before, now


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _values(value: Any) -> list[float]:
    return [] if value is None else value if isinstance(value, list) else [value]


def claim(plan: Plan, workdirs: Sequence[pathlib.Path], arch: str, extend: bool) -> None:
    """Claims the folders of a plan's runs; a changed environment is reported on stderr. Every process calls this.

    Raises:
      InputError: as ``claim_workdir``, or the processes of the job differ in what they compute.
    """
    contents = fingerprint(plan.dataset)
    if plan.teacher is not None:
        contents['teacher'] = plan.teacher.fingerprint()
    devices, data = list(plan.mesh.devices.flat), dataset_record(plan.dataset)
    spec, config = plan.model.spec.to_json(), plan.config.to_json()
    record = describe_run(arch, spec, config, data, devices, contents)
    decisive = {'configuration': [spec, config], 'settings of JAX': record['settings'], **contents}
    checksums = {name: zlib.crc32(json.dumps(value).encode()) for name, value in decisive.items()}
    if differing := differing_entries(checksums):
        raise InputError(
            f'the processes of this job differ in: {", ".join(differing)}; start all of them with the same flags,'
            ' settings of JAX and data'
        )
    in_main_process(lambda: _claim(plan, workdirs, record, extend))


def _claim(plan: Plan, workdirs: Sequence[pathlib.Path], record: dict[str, Any], extend: bool) -> None:
    for index, (seed, workdir) in enumerate(zip(plan.seeds.numbers, workdirs, strict=True)):
        record = record | {'config': record['config'] | {'seed': seed}}
        old = read_record(workdir) if (workdir / CONFIG).exists() else None
        longer = extend and old is not None and _is_longer(old, record)
        claim_workdir(workdir, record, (*_MAY_DIFFER, *(_EXTENDED if longer else ())))
        if old is not None and not index and (changes := environment_changes(old, record)):
            where, what = plan.seeds.common_folder(workdirs), '; '.join(changes)
            line = f'{where} was started in another environment; numbers may differ, usually by rounding: {what}'
            print(printable(line), file=sys.stderr)


def _is_longer(old: dict[str, Any], new: dict[str, Any]) -> bool:
    epochs = _epochs(old, {part: new[part] for part in ('spec', 'config')}, _MAY_DIFFER)
    return epochs is not None and epochs[0] < epochs[1]


def record_extensions(plan: Plan, workdirs: Sequence[pathlib.Path], step: int) -> None:
    """Records that claimed runs of fewer epochs are extended from ``step`` on. Called in the main process.

    An entry of ``extensions`` has the step, both numbers of epochs, the time, the command, the configuration before,
    and the result before, or None if the run was not finished.

    Raises:
      InputError: a finished run has no intact checkpoint; it would start again and lose its metrics.
    """
    for seed, workdir in zip(plan.seeds.numbers, workdirs, strict=True):
        record, config = read_record(workdir), as_json(dataclasses.replace(plan.config, seed=seed).to_json())
        if record['config']['epochs'] == config['epochs']:
            continue
        if not step and (workdir / RESULT).exists():
            raise InputError(f'extend: workdir={workdir} has no intact checkpoint to continue from')
        entry = {
            'from_step': step,
            'from_epochs': record['config']['epochs'],
            'to_epochs': config['epochs'],
            'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'command': sys.argv,
            'config_before': record['config'],
            'result_before': result_of(workdir, record),
        }
        extensions = [*record.get(EXTENSIONS, ()), entry]
        write_json(workdir / CONFIG, record | {'config': config, EXTENSIONS: extensions})
