"""Trains a small residual network on CIFAR-10, on two CPU cores or on a GPU.

python -m experiments.speedrun --dataset=arrays:DIR                       # three seeds in sequence
python -m experiments.speedrun --dataset=arrays:DIR --num_seeds=1 --epochs=2
python -m experiments.speedrun --dataset=arrays:DIR --num_seeds=5 --configuration=gpu
"""

import pathlib
from typing import Any

import jax
from absl import flags
from matplotlib.figure import Figure

from experiments.shared import scripts, training_flags
from experiments.shared.comparison import curves_of, format_mean, spread, write_table
from resnet_jax import RECIPES, make_spec, train_and_evaluate
from resnet_jax.data.datasets import load_dataset
from resnet_jax.text import printable, without_folders
from resnet_jax.training.report import save_figure

GROUP = 'studies'
FLAGS = flags.FLAGS

# Three wide blocks: the most multiply-adds per second on a CPU. The first convolution of each runs at full resolution
# and is average-pooled 2x2, which beats a stride: 0.908 instead of 0.897 after three epochs.
SPEC = make_spec(
    block='basic',
    stage_sizes=(1, 1, 1),
    widths=(64, 256, 384),
    strides=(2, 2, 2),
    stem='cifar',
    stem_width=32,
    shortcut='D',
    antialias='average',
    zero_init_last=True,
    num_classes=10,
)
_CPU = RECIPES['cifar_fast'].replace(
    recipe='speedrun',
    epochs=16,
    batch_size=512,
    learning_rate=0.03,
    warmup_epochs=0.5,
    weight_decay=0.05,
    label_smoothing=0.2,
    crop_padding=2,
    crop_fill='reflect',
    cutout=10,
    test_flip=True,
    test_shift=1,
    eval_every_epochs=8,
)
# The same network and recipe on an accelerator, where a step takes milliseconds: in bfloat16, with each epoch in one
# call and nothing else before the end. Seeds run in sequence: side by side, their convolutions become grouped ones.
_GPU = _CPU.replace(
    recipe='speedrun_gpu',
    compute_dtype='bfloat16',
    steps_per_call=50_000,  # at least the steps of an epoch, for any batch size
    eval_every_epochs=10_000,
    checkpoint_every_epochs=10_000,
)
CONFIGURATIONS = {'cpu': _CPU, 'gpu': _GPU}
# Parts of a run's time; reading the data, checkpoints and drawing the report are not counted.
PARTS = ('compile', 'train', 'evaluation')
_COLUMNS = ('seed', 'test accuracy', 'epochs', *(f'{part}, s' for part in PARTS), 'images/s')


def define_flags() -> None:
    training_flags.define_data_flags(default='cifar10')
    training_flags.define_settings(('epochs',), default='16, about one hour on two cores')
    training_flags.define_settings(('batch_size', 'learning_rate'), default="the configuration's")
    flags.DEFINE_enum(
        'configuration',
        None,
        list(CONFIGURATIONS),
        'cpu: float32, evaluates twice. gpu: the same recipe in bfloat16, each epoch in one call, evaluates at the end.'
        ' Default: gpu if there is an accelerator, otherwise cpu.',
    )
    flags.DEFINE_integer('num_seeds', 3, 'Number of runs, with seeds 0, 1, 2, ….', lower_bound=1)
    flags.DEFINE_string('workdir', None, 'Folder for the runs, the table and the plot. Default: runs/speedrun-DATASET.')


def row_of(name: str, results: list[dict[str, Any]]) -> tuple[str, ...]:
    """Accuracy, epochs, seconds of compilation, training and evaluation, and throughput, averaged over the results."""
    accuracy = format_mean([result['test_accuracy'] for result in results])
    seconds = [spread([result[f'{part}_seconds'] for result in results])[0] for part in PARTS]
    speed, _ = spread([result['examples_per_second'] for result in results])
    return name, accuracy, str(results[0]['epochs']), *(f'{one:.1f}' for one in seconds), f'{speed:.0f}'


def choose_configuration() -> str:
    """``--configuration``, or the one for the default device; prints which."""
    name = FLAGS.configuration or ('cpu' if jax.default_backend() == 'cpu' else 'gpu')
    why = '--configuration' if FLAGS.configuration else f'the default on a {jax.default_backend()}'
    print(f'configuration {name} ({why}), recorded as recipe {CONFIGURATIONS[name].recipe}')
    return name


def draw(path: pathlib.Path, title: str, folders: list[pathlib.Path]) -> None:
    """Plots accuracy over training time for each run: test as points, training as a line."""
    longest = max(curves_of(folder, 'train', 'train_seconds')[-1] for folder in folders)
    unit, seconds = ('minutes', 60) if longest > 300 else ('seconds', 1)
    figure = Figure(figsize=(7.5, 4.5), layout='constrained')
    axes = figure.subplots()
    for index, folder in enumerate(folders):
        for split, style in (('train', '-'), ('test', 'o')):
            times, scores = (curves_of(folder, split, name) for name in ('train_seconds', 'accuracy'))
            label = f'{folder.name}: test {scores[-1]:.4f}' if split == 'test' else None
            axes.plot(times / seconds, scores, style, color=f'C{index}', alpha=0.5 if label is None else 1, label=label)
    axes.set(xlabel=f'{unit} of training', ylabel='accuracy (points: test, lines: training)', title=title)
    axes.legend(loc='lower right')
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    chosen = training_flags.set_flags(('dataset', 'image_size', 'epochs', 'batch_size', 'learning_rate'))
    config = CONFIGURATIONS[choose_configuration()].replace(**chosen)
    training_flags.check_data_dir(config.data.dataset)
    dataset = load_dataset(config.data.dataset, data_dir=FLAGS.data_dir, image_size=config.data.image_size)
    if dataset.image_size is not None:  # photographs, which are read during training
        config = config.replace(steps_per_call=1)
    out = pathlib.Path(FLAGS.workdir or f'runs/speedrun-{scripts.as_file_name(config.data.dataset)}')
    folders = [out / f'seed{seed}' for seed in range(FLAGS.num_seeds)]
    options: dict[str, Any] = {'arch': 'speedrun', 'dataset': dataset}
    results = train_and_evaluate(SPEC, config, out, num_seeds=FLAGS.num_seeds, in_sequence=True, **options)['runs']
    rows = [row_of(str(result['seed']), [result]) for result in results]
    if len(results) > 1:
        rows.append(row_of('mean', results))
    draw(out / 'speedrun.png', f'speedrun on {without_folders(dataset.name)}, {config.epochs} epochs', folders)
    write_table(out, _COLUMNS, rows, dataset=config.data.dataset, results=results)
    print(printable(f'wrote {out / "speedrun.png"}'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
