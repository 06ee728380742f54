"""Tabulates finished runs, with mean and standard deviation over seeds.

python -m experiments.results --runs=runs
python -m experiments.results --runs=runs/a,runs/b --columns=arch,epochs,test_accuracy,minutes --out=results.md
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.shared import outputs, scripts
from experiments.shared.comparison import format_mean, spread
from experiments.shared.paths import define_paths
from resnet_jax import InputError
from resnet_jax.checkpoints.record import flat_settings as flat_config
from resnet_jax.checkpoints.storage import write_file
from resnet_jax.errors import nearest
from resnet_jax.models.flat import flat_settings
from resnet_jax.text import printable, shown

GROUP = 'tools'
FLAGS = flags.FLAGS

_MEASURED = ('test_', 'best_test_', 'examples_per_second')
# Columns of every table.
ALWAYS = ('arch', 'dataset')
# Settings that differ come in this order, before all others.
FIRST = ('task', 'recipe', 'epochs')
SCORES = ('test_accuracy', 'test_average_precision', 'test_r2')


def define_flags() -> None:
    define_paths(__name__, 'runs', ['runs'], 'Folders to search recursively for runs, separated by commas.')
    flags.DEFINE_list(
        'columns',
        None,
        'Columns: settings and fields of result.json. Default: arch, dataset, other settings that differ, and scores.',
    )
    flags.DEFINE_string('sort', None, 'Column to sort by, in descending order. Default: the first score.')
    flags.DEFINE_enum('format', 'markdown', ['markdown', 'csv'], 'Table format.')
    flags.DEFINE_string('out', None, 'Output file. Default: print the table.')


def find_results(folders: Sequence[str]) -> list[dict[str, Any]]:
    """Settings and ``result.json`` of every finished run below the folders; other runs are reported and skipped.

    Raises:
      InputError: a folder does not exist, or there is no finished run.
    """
    found, seen = [], set[pathlib.Path]()
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise InputError(f'runs={folder}: folder not found')
        for config in sorted(folder.rglob('config.json')):
            if config.resolve() in seen:
                continue
            seen.add(config.resolve())
            path = config.with_name('result.json')
            try:
                record = json.loads(config.read_text(encoding='utf-8'))
                # The number of classes follows from the dataset.
                network = flat_settings(record['spec'])
                del network['num_classes']
                settings = flat_config(record['config'])
                del settings['seed']
                if extensions := record.get('extensions'):  # not the same as a run of as many epochs
                    settings['extended_from'] = ', '.join(str(one['from_epochs']) for one in extensions)
                reporting = flat_config(record['config']['reporting'])
                identity = {name: value for name, value in settings.items() if name not in reporting}
                row = json.dumps([record['arch'], network, identity], sort_keys=True)
                result = json.loads(path.read_text(encoding='utf-8'))
                epochs = record['config']['epochs']
                if result.get('epochs', epochs) != epochs:
                    raise FileNotFoundError(path)  # the result before an extension that is not finished
                always = {'arch': record['arch'], 'run': str(config.parent), 'row': row}
                found.append(network | settings | result | always)
            except FileNotFoundError:
                print(printable(f'skipping {config.parent}: not finished'), file=sys.stderr)
            except (OSError, ValueError, KeyError, TypeError):
                print(printable(f'skipping {path}: not the result of a run'), file=sys.stderr)
    if not found:
        raise InputError(f'runs={",".join(folders)}: no finished run found')
    return found


def grouped(results: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups results that differ only in the seed; duplicates of a seed are reported and skipped."""
    groups: dict[str, dict[Any, dict[str, Any]]] = {}
    for result in results:
        seed = result.get('seed', result['run'])
        first = groups.setdefault(result['row'], {}).setdefault(seed, result)
        if first is not result:
            line = f'skipping {result["run"]}: same settings and seed as {first["run"]}'
            print(printable(line), file=sys.stderr)
    return [list(group.values()) for group in groups.values()]


def cell(group: Sequence[dict[str, Any]], name: str) -> str:
    """A cell of a group: the value that all runs share, or mean and standard deviation."""
    if name == 'seeds':
        return str(len(group))
    if name == 'minutes':
        return f'{spread([one["train_seconds"] / 60 for one in group])[0]:.1f}'
    values = [one.get(name) for one in group]
    if None in values:
        return ''
    if not name.startswith(_MEASURED) or not all(isinstance(value, float) for value in values):
        return str(values[0]) if len(set(map(str, values))) == 1 else 'various'
    return format_mean(values)


def columns_of(groups: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Architecture and dataset, the other settings that differ between groups, scores, seeds and minutes."""
    rows = [json.loads(group[0]['row']) for group in groups]
    network = {name for _, chosen, _ in rows for name in chosen}
    settings = {name for _, _, chosen in rows for name in chosen}
    ordered = [*FIRST, *sorted((network | settings) - {*ALWAYS, *FIRST})]
    firsts = [group[0] for group in groups]

    def differs(name: str) -> bool:
        # The architecture's name stands for its settings, unless networks of one name differ.
        found = {(first['arch'] if name in network else '', str(first.get(name))) for first in firsts}
        return len(found) > (len({first['arch'] for first in firsts}) if name in network else 1)

    differing = [name for name in ordered if differs(name)]
    scores = [name for name in SCORES if any(name in group[0] for group in groups)]
    always = [name for name in ALWAYS if any(name in first for first in firsts)]
    return [*always, *differing, *scores, 'seeds', 'minutes']


def main() -> None:
    out = None if FLAGS.out is None else outputs.output_file()
    results = find_results(FLAGS.runs)
    groups = grouped(results)
    columns = FLAGS.columns or columns_of(groups)
    known = {name for result in results for name in result} | {'seeds', 'minutes'}
    for name in (*columns, *([FLAGS.sort] if FLAGS.sort else [])):
        if name not in known:
            raise InputError(f'unknown column {name!r}; {nearest(name, sorted(known))}')
    by = FLAGS.sort or next((name for name in columns if name in SCORES), None)
    if by is not None:

        def score(group: Sequence[dict[str, Any]]) -> float:
            values = [one[by] for one in group if isinstance(one.get(by), int | float)]
            return -float(spread(values)[0]) if values else float('inf')

        groups.sort(key=score)
    rows = [[cell(group, name) for name in columns] for group in groups]
    if FLAGS.format == 'markdown':
        text = scripts.markdown_table(columns, [[*map(shown, row)] for row in rows])
    else:
        text = scripts.csv_table([columns, *rows]).removesuffix('\n')
    if out is None:
        print(text)
    else:
        write_file(out, (text + '\n').encode())
        print(printable(f'wrote {out}'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
