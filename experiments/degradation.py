"""Shows that deeper plain networks train worse, but deeper residual ones do not.

He et al. 2015, arXiv:1512.03385, section 4.2.

python -m experiments.degradation                                         # depths 20 and 56 on handwritten digits
python -m experiments.degradation --dataset=arrays:DIR --train_examples=5000 --epochs=20 --recipe=cifar_sgd
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.shared import scripts, training_flags
from experiments.shared.comparison import curves_of, format_mean, spread, write_table
from resnet_jax import InputError, TrainConfig, get_config, get_spec, list_models, train_and_evaluate
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.tasks.drawing import readable
from resnet_jax.text import printable, without_folders
from resnet_jax.training.report import save_figure

GROUP = 'studies'
FLAGS = flags.FLAGS

KINDS = {'plain': '#c4372c', 'resnet': '#1f5f8b'}
_COLUMNS = ('network', 'training error (%)', 'training loss', 'test error (%)')


def define_flags() -> None:
    training_flags.define_data_flags(default='digits')
    flags.DEFINE_list('depths', ['20', '56'], 'Depths to compare, some of 20, 32, 44, 56, 110.')
    flags.DEFINE_string('recipe', None, 'Training recipe. Default: digits_quick for digits, otherwise cifar_sgd.')
    training_flags.define_settings(('epochs', 'learning_rate', 'warmup_epochs'))
    flags.DEFINE_integer('num_seeds', 3, 'Number of seeds per network.', lower_bound=1)
    flags.DEFINE_integer('train_examples', None, 'Train on only the first N examples. Default: all.', lower_bound=1)
    flags.DEFINE_string(
        'workdir', None, 'Folder for the runs, the table and the plot. Default: runs/degradation-DATASET.'
    )


def first_examples(dataset: Dataset, examples: int | None) -> Dataset:
    """The dataset with only the first training examples."""
    if examples is None:
        return dataset
    if examples > len(dataset.train):
        raise InputError(f'train_examples={examples} must be at most {len(dataset.train)}')
    images, labels = dataset.train.arrays
    train = Split(images[:examples], labels[:examples])
    return dataclasses.replace(dataset, train=train)


def draw(path: pathlib.Path, title: str, runs: dict[str, list[pathlib.Path]]) -> None:
    """Plots training and test error over epochs: mean and standard deviation over seeds."""
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    deepest = max(int(depth) for depth in FLAGS.depths)
    for axes, split in zip(panels, ('train', 'test'), strict=True):
        for arch, folders in runs.items():
            kind = next(kind for kind in KINDS if arch.startswith(kind))
            mean, deviation = spread([100 * (1 - curves_of(folder, split, 'accuracy')) for folder in folders])
            epochs = np.arange(1, len(mean) + 1)
            color = readable(KINDS[kind])
            style = '-' if arch == f'{kind}{deepest}' else '--'
            axes.plot(epochs, mean, style, color=color, label=arch)
            axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)
        name = 'training' if split == 'train' else 'test'
        axes.set(xlabel='epoch', ylabel=f'{name} error (%)', title=f'{name} error')
        axes.tick_params(labelleft=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    save_figure(figure, path)


def rows_of(runs: dict[str, list[pathlib.Path]]) -> list[tuple[str, ...]]:
    """Final errors and loss of each network."""
    rows = []
    for arch, folders in runs.items():
        cells = []
        for split, name, scale in (('train', 'accuracy', 100), ('train', 'loss', None), ('test', 'accuracy', 100)):
            finals = [curves_of(folder, split, name)[-1] for folder in folders]
            finals = [scale * (1 - value) if scale else value for value in finals]
            cells.append(format_mean(finals, digits=2))
        rows.append((arch, *cells))
    return rows


def config_and_options() -> tuple[TrainConfig, dict[str, Any]]:
    """The configuration that all runs share, and keyword arguments for ``train_and_evaluate``."""
    name = FLAGS.dataset or 'digits'
    recipe = FLAGS.recipe or scripts.default_recipe(name, 'cifar_sgd')
    chosen = training_flags.set_flags(('image_size', 'epochs', 'learning_rate', 'warmup_epochs'))
    label = name if FLAGS.train_examples is None else f'{name}[:{FLAGS.train_examples}]'
    config = get_config(recipe, dataset=label, **chosen)
    training_flags.check_data_dir(name)
    dataset = load_dataset(name, data_dir=FLAGS.data_dir, image_size=config.data.image_size)
    return config, {'dataset': first_examples(dataset, FLAGS.train_examples)}


def main() -> None:
    archs = [f'{kind}{depth}' for kind in KINDS for depth in FLAGS.depths]
    if unknown := [arch for arch in archs if arch not in list_models()]:
        raise InputError(
            f'depths={",".join(FLAGS.depths)}: unknown network {unknown[0]!r}; known depths: 20, 32, 44, 56, 110'
        )
    config, options = config_and_options()
    out = pathlib.Path(FLAGS.workdir or f'runs/degradation-{scripts.as_file_name(config.data.dataset)}')
    runs: dict[str, list[pathlib.Path]] = {arch: [] for arch in archs}
    for seed in range(FLAGS.num_seeds):
        for arch in archs:
            folder = out / arch / f'seed{seed}'
            train_and_evaluate(get_spec(arch), config.replace(seed=seed), folder, arch=arch, **options)
            runs[arch].append(folder)
    rows = rows_of(runs)
    what = f'{without_folders(config.data.dataset)}, recipe {config.recipe}, {FLAGS.num_seeds} seeds'
    title = f'{what}: mean ± standard deviation'
    draw(out / 'degradation.png', title, runs)
    write_table(out, _COLUMNS, rows, dataset=config.data.dataset)
    print(printable(f'wrote {out / "degradation.png"}'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
