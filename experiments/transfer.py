"""Transfers a pretrained network to new classes with few images, by four methods.

The runs use subsets of a dataset, which have no name that loads them again; ``load_predictor`` still opens the runs.

python -m experiments.transfer                                            # digits 0-6, then five images each of 7-9
python -m experiments.transfer --dataset=arrays:DIR --epochs=30 --pretraining_epochs=5 --examples_per_class=20
"""

import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.shared import scripts, training_flags
from experiments.shared.comparison import curves_of, format_mean, spread, write_table
from resnet_jax import InputError, TrainConfig, get_config, get_spec, train_and_evaluate
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset, classes_of
from resnet_jax.tasks.drawing import readable
from resnet_jax.text import printable, without_folders
from resnet_jax.training.report import save_figure

GROUP = 'studies'
FLAGS = flags.FLAGS

COLORS = {'from scratch': '#7a8fa6', 'frozen features': '#d08c00', 'frozen stem': '#1f5f8b', 'fine-tuned': '#c4372c'}
_COLUMNS = ('method', 'flags', 'test accuracy')


def define_flags() -> None:
    training_flags.define_data_flags(default='digits')
    flags.DEFINE_string('arch', 'resnet20', 'Architecture.')
    flags.DEFINE_string('recipe', None, 'Training recipe. Default: digits_quick for digits, otherwise cifar_sgd.')
    flags.DEFINE_integer(
        'source_classes', None, 'Number of classes to pretrain on, the first ones. Default: 70 % of them.'
    )
    flags.DEFINE_integer('pretraining_epochs', None, "Epochs of pretraining. Default: the recipe's.")
    flags.DEFINE_integer('epochs', 40, 'Epochs on the new classes, for every method.')
    flags.DEFINE_integer('examples_per_class', 5, 'Training images per new class.', lower_bound=1)
    flags.DEFINE_integer(
        'batch_size', 16, 'Largest batch size on the new classes; limited by the number of examples.', lower_bound=1
    )
    flags.DEFINE_float('learning_rate', 0.05, 'Peak learning rate of pretrained layers.')
    flags.DEFINE_float(
        'head_learning_rate', 0.1, 'Peak learning rate of new layers: the head, or all layers from scratch.'
    )
    flags.DEFINE_integer('num_seeds', 5, 'Number of seeds per method.', lower_bound=1)
    flags.DEFINE_string('workdir', None, 'Folder for the runs, the table and the plot. Default: runs/transfer-DATASET.')


def batch_size_for(wanted: int, examples: int) -> int:
    """The largest batch size up to ``wanted`` and ``examples`` that the devices divide evenly."""
    devices = jax.device_count()
    return max(min(wanted, examples) // devices, 1) * devices


def settings_by_method(pretrained: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Settings of each method on the new classes."""
    start = {'init_from': str(pretrained), 'new_head': True, 'learning_rate': FLAGS.learning_rate}
    start['head_learning_rate'] = FLAGS.head_learning_rate
    return {
        'from scratch': {'learning_rate': FLAGS.head_learning_rate},
        'frozen features': start | {'freeze': 'stem|stage'},
        'frozen stem': start | {'freeze': 'stem|stage1'},
        'fine-tuned': start,
    }


def as_flags(fields: dict[str, Any]) -> str:
    """The settings as flags, with RUN for the pretrained run's folder."""
    shown = {name: 'RUN' if name == 'init_from' else value for name, value in fields.items()}
    return ' '.join(f'--{name}' if value is True else f"--{name}='{value}'" for name, value in shown.items()) or '-'


def draw(path: pathlib.Path, title: str, runs: dict[str, list[pathlib.Path]]) -> None:
    """Plots test accuracy over epochs: mean and standard deviation over seeds."""
    figure = Figure(figsize=(7.5, 4.8), layout='constrained')
    axes = figure.subplots()
    for method, folders in runs.items():
        mean, deviation = spread([curves_of(folder, 'test', 'accuracy') for folder in folders])
        epochs, color = np.arange(1, len(mean) + 1), readable(COLORS[method])
        axes.plot(epochs, mean, color=color, label=method)
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel='epoch', ylabel='test accuracy', title=title)
    axes.legend(loc='lower right')
    save_figure(figure, path)


def train_all(
    config: TrainConfig, tuning: TrainConfig, source: Dataset, target: Dataset, out: pathlib.Path
) -> dict[str, list[pathlib.Path]]:
    """Trains every method with every seed and returns the folders of the runs."""
    spec = get_spec(FLAGS.arch)
    runs: dict[str, list[pathlib.Path]] = {}
    for seed in range(FLAGS.num_seeds):
        pretrained = out / 'pretrained' / f'seed{seed}'
        train_and_evaluate(spec, config.replace(seed=seed), pretrained, arch=FLAGS.arch, dataset=source)
        for method, fields in settings_by_method(pretrained).items():
            folder = out / method.replace(' ', '_') / f'seed{seed}'
            settings = tuning.replace(seed=seed, **fields)
            train_and_evaluate(spec, settings, folder, arch=FLAGS.arch, dataset=target)
            runs.setdefault(method, []).append(folder)
    return runs


def main() -> None:
    name = FLAGS.dataset or 'digits'
    recipe = FLAGS.recipe or scripts.default_recipe(name, 'cifar_sgd')
    training_flags.check_data_dir(name)
    whole = load_dataset(name, data_dir=FLAGS.data_dir, image_size=FLAGS.image_size)
    first = round(0.7 * whole.num_classes) if FLAGS.source_classes is None else FLAGS.source_classes
    if not 2 <= first <= whole.num_classes - 2:
        raise InputError(
            f'source_classes={first} must be from 2 to {whole.num_classes - 2}; {name} has {whole.num_classes} classes'
        )
    source = classes_of(whole, range(first))
    target = classes_of(whole, range(first, whole.num_classes), FLAGS.examples_per_class)
    common_fields = training_flags.set_flags(('image_size',))
    epochs = {} if FLAGS.pretraining_epochs is None else {'epochs': FLAGS.pretraining_epochs}
    config = get_config(recipe, dataset=f'{name}, {first} classes', **epochs, **common_fields)
    config = config.replace(batch_size=batch_size_for(config.batch_size, len(source.train)))
    batch_size = batch_size_for(FLAGS.batch_size, len(target.train))
    few = f'{name}, {FLAGS.examples_per_class} of each other class'  # recorded by the runs: resuming compares it
    tuning = get_config(recipe, dataset=few, epochs=FLAGS.epochs, batch_size=batch_size, **common_fields)
    out = pathlib.Path(FLAGS.workdir or f'runs/transfer-{scripts.as_file_name(name)}')
    runs = train_all(config, tuning, source, target, out)

    rows = []
    for method, fields in settings_by_method(pathlib.Path('RUN')).items():
        accuracy = format_mean([curves_of(folder, 'test', 'accuracy')[-1] for folder in runs[method]])
        rows.append((method, scripts.code(as_flags(fields)), accuracy))
    classes = f'{len(target.train)} images of {target.num_classes} classes of {without_folders(name)}'
    draw(out / 'transfer.png', f'{classes}, pretrained on {source.num_classes} others', runs)
    write_table(out, _COLUMNS, rows, dataset=name, seeds=FLAGS.num_seeds)
    print(printable(f'wrote {out / "transfer.png"}'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
