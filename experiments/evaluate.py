"""Scores the weights of a training run on a dataset: top-1, top-5, loss, accuracy of each class, confusion matrix.

python -m experiments.evaluate --workdir=runs/resnet20-digits-seed0       # on the data it was trained for
python -m experiments.evaluate --init_from=RUN --checkpoint=best --dataset=arrays:DIR --workdir=OUT
"""

import pathlib

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common
from resnet_jax import InputError, ResNet, load_variables
from resnet_jax.data.datasets import load_dataset
from resnet_jax.training import metrics
from resnet_jax.training.loop import make_evaluator
from resnet_jax.training.report import draw_confusion_matrix
from resnet_jax.training.workdir import open_run, write_json

FLAGS = flags.FLAGS

common.define_data_flags(default="the run's")
flags.DEFINE_string('init_from', None, 'Folder of the training run to score. Default: --workdir.')
flags.DEFINE_string('workdir', None, 'Folder for the result. Default: evaluation-SPLIT-CHECKPOINT in the run.')
flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which checkpoint of the run.')
flags.DEFINE_enum('split', 'test', ['test', 'train'], 'Which part of the dataset.')


def main() -> None:
    source = FLAGS.init_from or FLAGS.workdir
    if source is None:
        raise InputError('--init_from or --workdir must name the folder of a training run')
    record, spec, config = open_run(source)
    variables = load_variables(source, which=FLAGS.checkpoint)
    name, size = FLAGS.dataset or config.dataset, FLAGS.image_size or config.image_size
    dataset = load_dataset(name, data_dir=FLAGS.data_dir, image_size=size, seed=config.seed)
    if dataset.num_classes != spec.num_classes:
        raise InputError(
            f'dataset={name} has {dataset.num_classes} classes, the network of {source} {spec.num_classes}'
        )
    if dataset.image_shape[-1] != record['dataset']['image_shape'][-1]:
        channels = record['dataset']['image_shape'][-1]
        raise InputError(f'dataset={name} has {dataset.image_shape[-1]} channels, the network of {source} {channels}')

    split = getattr(dataset, FLAGS.split)
    model = ResNet(spec, jnp.dtype(config.compute_dtype))
    # The images are normalized as in training, whatever their own mean is.
    evaluate = make_evaluator(model, split, record['dataset']['mean'], record['dataset']['std'])
    total = evaluate(variables)
    summary = metrics.summarize(total)
    shares = metrics.per_class_accuracy(total['confusion'])
    # JSON has no NaN: a class without examples has no accuracy.
    class_accuracy = {
        label: None if np.isnan(share) else float(share)
        for label, share in zip(dataset.class_names, shares, strict=True)
    }
    result = {
        'test_accuracy': summary['accuracy'],
        'test_top5_accuracy': summary['top5_accuracy'],
        'test_loss': summary['loss'],
        'num_correct': int(total['correct']),
        'num_test_examples': len(split),
        'class_accuracy': class_accuracy,
        'arch': record['arch'],
        'dataset': name,
        'split': FLAGS.split,
        'init_from': str(source),
        'checkpoint': FLAGS.checkpoint,
    }
    default = pathlib.Path(source) / f'evaluation-{FLAGS.split}-{FLAGS.checkpoint}'
    out = pathlib.Path(FLAGS.workdir) if FLAGS.init_from and FLAGS.workdir else default
    if (out / 'config.json').exists():
        raise InputError(f'workdir={out} holds a training run; choose another folder for the result')
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / 'result.json', result)
    title = f'{record["arch"]} on {name} ({FLAGS.split}): accuracy {summary["accuracy"]:.4f}'
    draw_confusion_matrix(out / 'confusion.png', title, total['confusion'], dataset.class_names)

    for label, share in class_accuracy.items():
        print(f'  {label:>20}  {"no examples" if share is None else f"{share:.4f}"}')
    print(f'top-5 accuracy {summary["top5_accuracy"]:.4f}, loss {summary["loss"]:.4f}')
    print(f'test accuracy {summary["accuracy"]:.4f}: {int(total["correct"]):,} of {len(split):,} correct; see {out}')


if __name__ == '__main__':
    common.run(main)
