"""Tabulates finished runs, with mean and deviation over their seeds.

python -m experiments.results --runs=runs
python -m experiments.results --runs=runs/a,runs/b --columns=arch,epochs,test_accuracy,minutes --out=results.md
"""

import csv
import io
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.shared import scripts
from experiments.shared.comparison import format_mean, spread
from resnet_jax import InputError
from resnet_jax.checkpoints.record import flat_settings as flat_config
from resnet_jax.checkpoints.storage import write_file
from resnet_jax.errors import nearest
from resnet_jax.models.flat import flat_settings

GROUP = 'tools'
FLAGS = flags.FLAGS

_MEASURED = ('test_', 'best_test_', 'examples_per_second')
# What tells rows apart, first of all; other settings do where these are equal.
FIRST = ('arch', 'dataset', 'task', 'recipe', 'epochs')
SCORES = ('test_accuracy', 'test_average_precision', 'test_r2')


def define_flags() -> None:
    flags.DEFINE_list('runs', ['runs'], 'Folders of runs, or folders with runs somewhere below.')
    flags.DEFINE_list(
        'columns', None, 'What is shown of each: fields of result.json. Default: what tells the runs apart.'
    )
    flags.DEFINE_string('sort', None, 'Column to sort by, the largest first. Default: the first score.')
    flags.DEFINE_enum('format', 'markdown', ['markdown', 'csv'], 'Form of the table.')
    flags.DEFINE_string('out', None, 'File for the table. Default: the terminal.')


def find_results(folders: Sequence[str]) -> list[dict[str, Any]]:
    """Settings and ``result.json`` of every finished run in the folders and below; others are named.

    Raises:
      InputError: a folder that does not exist, or none of them with a finished run.
    """
    found, seen = [], set[pathlib.Path]()
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise InputError(f'runs={folder}: there is no such folder')
        for config in sorted(folder.rglob('config.json')):
            if config.resolve() in seen:
                continue
            seen.add(config.resolve())
            path = config.with_name('result.json')
            try:
                record = json.loads(config.read_text(encoding='utf-8'))
                # Of the network, too; the number of classes is the dataset's.
                network = flat_settings(record['spec'])
                del network['num_classes']
                settings = flat_config(record['config'])
                del settings['seed']
                reporting = flat_config(record['config']['reporting'])
                telling = {name: value for name, value in settings.items() if name not in reporting}
                row = json.dumps([record['arch'], network, telling], sort_keys=True)
                result = json.loads(path.read_text(encoding='utf-8'))
                found.append(network | settings | result | {'run': str(config.parent), 'row': row})
            except FileNotFoundError:
                print(f'{config.parent} is not finished: left out', file=sys.stderr)
            except (OSError, ValueError, KeyError, TypeError):
                print(f'{path} is no result of a run: left out', file=sys.stderr)
    if not found:
        raise InputError(f'runs={",".join(folders)}: no finished run')
    return found


def grouped(results: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Results that differ in their seeds alone, together; one for each seed, others are named."""
    groups: dict[str, dict[Any, dict[str, Any]]] = {}
    for result in results:
        seed = result.get('seed', result['run'])
        first = groups.setdefault(result['row'], {}).setdefault(seed, result)
        if first is not result:
            print(f'{result["run"]} repeats {first["run"]}, its seed and all: left out', file=sys.stderr)
    return [list(group.values()) for group in groups.values()]


def cell(group: Sequence[dict[str, Any]], name: str) -> str:
    """A value of a group: the one that all have, or mean and deviation."""
    if name == 'seeds':
        return str(len(group))
    if name == 'minutes':
        return f'{spread([one["train_seconds"] / 60 for one in group])[0]:.1f}'
    values = [one.get(name) for one in group]
    if None in values:
        return ''
    if not name.startswith(_MEASURED) or not all(isinstance(value, float) for value in values):
        return str(values[0]) if len(set(map(str, values))) == 1 else 'several'
    return format_mean(values)


def columns_of(groups: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """What tells the groups apart, the scores they have, seeds and minutes."""
    rows = [json.loads(group[0]['row']) for group in groups]
    network = {name for _, chosen, _ in rows for name in chosen}
    settings = {name for _, _, chosen in rows for name in chosen}
    ordered = [*FIRST, *sorted((network | settings) - set(FIRST))]
    firsts = [group[0] for group in groups]

    def tells(name: str) -> bool:
        # How a network is built is told by its name, unless two differ that have the same.
        found = {(first['arch'] if name in network else '', str(first.get(name))) for first in firsts}
        return len(found) > (len({first['arch'] for first in firsts}) if name in network else 1)

    telling = [name for name in ordered if tells(name)]
    scores = [name for name in SCORES if any(name in group[0] for group in groups)]
    return [*(telling or ['arch']), *scores, 'seeds', 'minutes']


def main() -> None:
    results = find_results(FLAGS.runs)
    groups = grouped(results)
    columns = FLAGS.columns or columns_of(groups)
    known = {name for result in results for name in result} | {'seeds', 'minutes'}
    for name in (*columns, *([FLAGS.sort] if FLAGS.sort else [])):
        if name not in known:
            raise InputError(f'column {name!r} is in no result; {nearest(name, sorted(known))}')
    by = FLAGS.sort or next((name for name in columns if name in SCORES), None)
    if by is not None:

        def score(group: Sequence[dict[str, Any]]) -> float:
            values = [one[by] for one in group if isinstance(one.get(by), int | float)]
            return -float(spread(values)[0]) if values else float('inf')

        groups.sort(key=score)
    rows = [[cell(group, name) for name in columns] for group in groups]
    if FLAGS.format == 'markdown':
        text = scripts.markdown_table(columns, rows)
    else:
        content = io.StringIO()
        csv.writer(content, lineterminator='\n').writerows([columns, *rows])
        text = content.getvalue().rstrip('\n')
    if FLAGS.out is None:
        print(text)
    else:
        write_file(pathlib.Path(FLAGS.out), (text + '\n').encode())
        print(f'see {FLAGS.out}')


if __name__ == '__main__':
    scripts.run(main, define_flags)
