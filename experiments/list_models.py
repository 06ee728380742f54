"""Lists architectures with parameters, multiply-adds and published accuracy.

python -m experiments.list_models --pattern='resnext*'
python -m experiments.list_models --out=docs/models.md                    # the table of the documentation
"""

from absl import flags

from experiments.shared import outputs, scripts
from resnet_jax import InputError, get_checkpoint, list_checkpoints, list_models
from resnet_jax.checkpoints.storage import write_file
from resnet_jax.models.cost import get_cost
from resnet_jax.text import printable

GROUP = 'tools'
FLAGS = flags.FLAGS

_COLUMNS = ('name', 'parameters (M)', 'multiply-adds (G)', 'image', 'best published weights', 'top-1 (%)', 'test image')


def define_flags() -> None:
    flags.DEFINE_string('pattern', '*', "Shell pattern that names must match, such as 'resnext*'.")
    flags.DEFINE_string('out', None, 'Output file, a Markdown table. Default: print a plain table.')


def row_of(name: str) -> tuple[str, ...]:
    """The row of an architecture; the accuracy is that of its best published weights on ImageNet-1k."""
    cost, weights = get_cost(name), published(name)
    counts = f'{cost.parameters / 1e6:.2f}', f'{cost.multiply_adds / 1e9:.2f}', f'{cost.image_size}²'
    row = (scripts.code(name), *counts)
    if not weights:
        return (*row, '', '', '')
    best = get_checkpoint(weights)
    at_test_size = (best.top1_test or 0) > (best.top1 or 0)
    used = best.test_preprocessing if at_test_size and best.test_preprocessing else best.preprocessing
    return (*row, weights.partition('.')[2], f'{max(best.top1 or 0, best.top1_test or 0):.2f}', f'{used.size}²')


def published(name: str) -> str | None:
    """The most accurate published weights of an architecture, or None."""
    known = [get_checkpoint(each) for each in list_checkpoints(f'{name}.*')]
    known = [each for each in known if each.top1 is not None]
    return max(known, key=lambda each: max(each.top1 or 0, each.top1_test or 0)).name if known else None


def main() -> None:
    path = None if FLAGS.out is None else outputs.output_file()
    names = list_models(FLAGS.pattern)
    if not names:
        raise InputError(f'pattern={FLAGS.pattern} matches none of the {len(list_models())} architectures')
    rows = [row_of(name) for name in names]
    if path is None:
        widths = [max(len(row[column]) for row in (_COLUMNS, *rows)) for column in range(len(_COLUMNS))]
        for row in (_COLUMNS, *rows):
            print('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    head = (
        '# Architectures\n\nWritten by `python -m experiments.list_models --out=docs/models.md`. Multiply-adds are for'
        ' one image\nof the size in the next column. Accuracies are published ones (timm 1.0.31, results on'
        ' ImageNet-1k) for the best\nweights that `hf:timm/NAME.TAG` loads.\n\n'
    )
    write_file(path, (head + scripts.markdown_table(_COLUMNS, rows) + '\n').encode())
    print(printable(f'wrote {path}: {len(rows)} architectures'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
