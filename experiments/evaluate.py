"""Scores the weights of a training run on a dataset: top-1, top-5, loss, accuracy of each class, confusion matrix.

python -m experiments.evaluate --workdir=runs/resnet20-digits-seed0       # on the data it was trained for
python -m experiments.evaluate --init_from=RUN --checkpoint=best --dataset=arrays:DIR --workdir=OUT
"""

import pathlib

import numpy as np
from absl import flags

from experiments import common
from resnet_jax import InputError, load_variables
from resnet_jax.data.datasets import load_dataset
from resnet_jax.training import metrics
from resnet_jax.training.loop import make_evaluator, make_model, open_run
from resnet_jax.training.report import draw_confusion_matrix
from resnet_jax.training.workdir import CHECKPOINTS, make_folder, write_json

FLAGS = flags.FLAGS

common.define_data_flags(default="the run's")
flags.DEFINE_string(
    'init_from', None, 'Folder of the training run to score, or of one of its checkpoints. Default: --workdir.'
)
flags.DEFINE_string('workdir', None, 'Folder for the result. Default: evaluation-DATASET-SPLIT-CHECKPOINT in the run.')
flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which checkpoint of the run.')
flags.DEFINE_enum('split', 'test', ['test', 'train'], 'Which part of the dataset.')


def main() -> None:
    source = FLAGS.init_from or FLAGS.workdir
    if source is None:
        raise InputError('--init_from or --workdir must name the folder of a training run, or one of its checkpoints')
    source, which = pathlib.Path(source), FLAGS.checkpoint
    if source.parent.name == CHECKPOINTS and source.name.isdigit():
        source, which = source.parent.parent, int(source.name)
    record, spec, config = open_run(source)
    name, size = FLAGS.dataset or config.dataset, FLAGS.image_size or config.image_size
    out = source / f'evaluation-{common.as_file_name(name)}-{FLAGS.split}-{which}'
    if FLAGS.init_from and FLAGS.workdir:
        out = pathlib.Path(FLAGS.workdir)
    if (out / 'config.json').exists():
        raise InputError(f'workdir={out} holds a training run; choose another folder for the result')
    dataset = load_dataset(name, data_dir=FLAGS.data_dir, image_size=size, seed=config.seed)
    if dataset.num_classes > spec.num_classes:
        raise InputError(
            f'dataset={name} has {dataset.num_classes} classes, the network of {source} {spec.num_classes}'
        )
    class_names = [*dataset.class_names, *map(str, range(dataset.num_classes, spec.num_classes))]
    variables = load_variables(source, which=which, image_shape=dataset.image_shape)
    make_folder(out)

    split = getattr(dataset, FLAGS.split)
    model = make_model(spec, config)
    # The images are normalized as in training, whatever their own mean is.
    evaluate = make_evaluator(model, split, record['dataset']['mean'], record['dataset']['std'])
    total = evaluate(variables)
    summary = metrics.summarize(total)
    shares = metrics.per_class_accuracy(total['confusion'])
    # JSON has no NaN: a class without examples has no accuracy.
    class_accuracy = {
        label: None if np.isnan(share) else float(share) for label, share in zip(class_names, shares, strict=True)
    }
    result = {
        f'{FLAGS.split}_accuracy': summary['accuracy'],
        f'{FLAGS.split}_top5_accuracy': summary['top5_accuracy'],
        f'{FLAGS.split}_loss': summary['loss'],
        'num_correct': int(total['correct']),
        f'num_{FLAGS.split}_examples': len(split),
        'class_accuracy': class_accuracy,
        'arch': record['arch'],
        'dataset': name,
        'split': FLAGS.split,
        'init_from': str(source),
        'checkpoint': which,
    }
    write_json(out / 'result.json', result)
    title = f'{record["arch"]} on {name} ({FLAGS.split}): accuracy {summary["accuracy"]:.4f}'
    draw_confusion_matrix(out / 'confusion.png', title, total['confusion'], class_names)

    for label, share in class_accuracy.items():
        print(f'  {label:>20}  {"no examples" if share is None else f"{share:.4f}"}')
    print(f'top-5 accuracy {summary["top5_accuracy"]:.4f}, loss {summary["loss"]:.4f}')
    correct = f'{int(total["correct"]):,} of {len(split):,} correct'
    print(f'{FLAGS.split} accuracy {summary["accuracy"]:.4f}: {correct}; see {out}')


if __name__ == '__main__':
    common.run(main)
