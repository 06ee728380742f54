"""Cardinality 1x64d to 32x4d at equal cost (Xie et al. 2017, arXiv:1611.05431).

Section 5.1 and Table 3.

python -m experiments.cardinality                                         # a 14-layer bottleneck network on digits
python -m experiments.cardinality --dataset=arrays:DIR --stage_sizes=3,4,6,3 --epochs=5 --recipe=cifar_fast
"""

import pathlib

from absl import flags

from experiments.shared import scripts, training_flags
from experiments.shared.comparison import format_mean, write_table
from resnet_jax import InputError, ResNet, get_config, make_spec, train_and_evaluate, with_changes
from resnet_jax.data.datasets import load_dataset
from resnet_jax.models.cost import count_parameters, multiply_adds
from resnet_jax.text import printable

GROUP = 'studies'
FLAGS = flags.FLAGS

# Cardinality and base width at equal complexity, from Table 2 of the paper.
SETTINGS = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))
_COLUMNS = ('cardinality x width', 'parameters (M)', 'multiply-adds (M)', 'test accuracy', 'training seconds')


def define_flags() -> None:
    training_flags.define_data_flags(default='digits')
    flags.DEFINE_list(
        'stage_sizes',
        ['1', '1', '1', '1'],
        'Number of blocks per stage; the first stage has 64 channels, each later one twice as many as the one before.',
    )
    flags.DEFINE_string('recipe', None, 'Training recipe. Default: digits_quick for digits, otherwise cifar_fast.')
    training_flags.define_settings(('epochs',))
    flags.DEFINE_integer('num_seeds', 3, 'Number of seeds per network.', lower_bound=1)
    flags.DEFINE_string('workdir', None, 'Folder for the runs and the table. Default: runs/cardinality-DATASET.')


def stage_sizes() -> tuple[int, ...]:
    """The numbers of ``--stage_sizes``."""
    try:
        return tuple(int(size) for size in FLAGS.stage_sizes)
    except ValueError as error:
        raise InputError(f'stage_sizes={",".join(FLAGS.stage_sizes)} must be numbers separated by commas') from error


def main() -> None:
    name = FLAGS.dataset or 'digits'
    recipe = FLAGS.recipe or scripts.default_recipe(name)
    config = get_config(recipe, dataset=name, **training_flags.set_flags(('image_size', 'epochs')))
    training_flags.check_data_dir(name)
    dataset = load_dataset(name, data_dir=FLAGS.data_dir, image_size=config.data.image_size)
    sizes = stage_sizes()
    widths, strides = tuple(64 * 2**stage for stage in range(len(sizes))), (1, *(2 for _ in sizes[1:]))
    base = make_spec('bottleneck', sizes, widths, strides, 'cifar', num_classes=dataset.num_classes)
    out = pathlib.Path(FLAGS.workdir or f'runs/cardinality-{scripts.as_file_name(name)}')
    rows = []
    for cardinality, width in SETTINGS:
        spec = with_changes(base, cardinality=cardinality, base_width=width)
        arch = f'{cardinality}x{width}d'
        result = train_and_evaluate(spec, config, out / arch, num_seeds=FLAGS.num_seeds, arch=arch, dataset=dataset)
        model = ResNet(spec)
        rows.append(
            (
                arch,
                f'{count_parameters(model, dataset.image_shape[-1]) / 1e6:.2f}',
                f'{multiply_adds(model, dataset.image_shape) / 1e6:.1f}',
                format_mean([run['test_accuracy'] for run in result['runs']]),
                f'{sum(run["train_seconds"] for run in result["runs"]) / FLAGS.num_seeds:.0f}',
            )
        )
    write_table(out, _COLUMNS, rows, dataset=name)
    print(printable(f'results in {out}'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
