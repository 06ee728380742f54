"""Compares networks with constant and linear baselines on all four tasks.

python -m experiments.tasks                                               # all four on handwritten digits
python -m experiments.tasks --tasks=binary,regression --num_seeds=1 --epochs=10
"""

import pathlib
from typing import Any

from absl import flags

from experiments.shared import scripts, training_flags
from experiments.shared.baselines import BASELINES, baseline_outputs, scores_of
from experiments.shared.comparison import format_mean, write_table
from resnet_jax import InputError, get_config, get_spec, train_and_evaluate
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset
from resnet_jax.tasks.kinds import TASKS
from resnet_jax.text import printable
from resnet_jax.training.plan import objective_task

GROUP = 'studies'
FLAGS = flags.FLAGS

_COLUMNS = ('task', 'metric', *BASELINES, 'network')


def define_flags() -> None:
    training_flags.define_data_flags(default='digits')
    flags.DEFINE_list('tasks', list(TASKS), 'Tasks to compare.')
    flags.DEFINE_string('arch', 'resnet20', 'Architecture.')
    flags.DEFINE_string('recipe', None, 'Training recipe. Default: digits_quick for digits, otherwise cifar_fast.')
    training_flags.define_settings(('epochs',))
    flags.DEFINE_integer('num_seeds', 3, 'Number of seeds per network.', lower_bound=1)
    flags.DEFINE_string('workdir', None, 'Folder for the runs and the table. Default: runs/tasks-DATASET.')


def compare(name: str, dataset: Dataset, out: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Metrics of the baselines, and of the networks as lists over seeds."""
    recipe = FLAGS.recipe or scripts.default_recipe(dataset.name)
    config = get_config(recipe, dataset=dataset.name, task=name, **training_flags.set_flags(('image_size', 'epochs')))
    task = objective_task(config, dataset.target_statistics())
    found: dict[str, dict[str, Any]] = {
        kind: scores_of(baseline_outputs(kind, task, dataset), task, dataset) for kind in BASELINES
    }
    result = train_and_evaluate(
        get_spec(FLAGS.arch), config, out / name, num_seeds=FLAGS.num_seeds, arch=FLAGS.arch, dataset=dataset
    )
    found['network'] = {
        metric: [run[f'test_{metric}'] for run in result['runs']] for metric in found['linear'] if metric != 'loss'
    }
    return found


def main() -> None:
    if not FLAGS.tasks:
        raise InputError(f'--tasks needs at least one of {", ".join(TASKS)}')
    if unknown := [name for name in FLAGS.tasks if name not in TASKS]:
        raise InputError(f'tasks={",".join(FLAGS.tasks)}: unknown task {unknown[0]!r}; known: {", ".join(TASKS)}')
    dataset_name = FLAGS.dataset or 'digits'
    training_flags.check_data_dir(dataset_name)
    where = {'data_dir': FLAGS.data_dir, 'image_size': FLAGS.image_size}
    datasets = {name: load_dataset(dataset_name, task=name, **where) for name in FLAGS.tasks}
    out = pathlib.Path(FLAGS.workdir or f'runs/tasks-{scripts.as_file_name(dataset_name)}')
    found = {name: compare(name, dataset, out) for name, dataset in datasets.items()}
    rows = []
    for name, scores in found.items():
        for metric in (metric for metric in TASKS[name].shown_metrics if metric in scores['linear']):
            simple = (f'{scores[kind][metric]:.4f}' for kind in BASELINES)
            rows.append((scripts.code(name), metric, *simple, format_mean(scores['network'][metric])))
    write_table(out, _COLUMNS, rows, dataset=dataset_name, arch=FLAGS.arch, scores=found)
    print(printable(f'results in {out}'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
