"""Scores weights on a dataset: top-1, top-5, loss, accuracy of each class, confusion matrix.

python -m experiments.evaluate --workdir=runs/resnet20-digits-seed0       # a run, on the data it was trained for
python -m experiments.evaluate --init_from=RUN --checkpoint=best --dataset=arrays:DIR --workdir=OUT
python -m experiments.evaluate --init_from=resnet20.th --arch=resnet20 --dataset=arrays:DIR --workdir=OUT
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import common
from resnet_jax import InputError, ResNet, TrainConfig, from_pretrained, load_variables
from resnet_jax.data.datasets import Dataset, load_dataset
from resnet_jax.training import metrics
from resnet_jax.training.loop import make_evaluator, make_model, normalized_as
from resnet_jax.training.report import draw_confusion_matrix
from resnet_jax.training.workdir import make_folder, write_json
from resnet_jax.weights import HUB, open_run, run_and_step

FLAGS = flags.FLAGS

common.define_data_flags(default="the run's")
flags.DEFINE_string('init_from', None, common.INIT_FROM + ' Default: --workdir.')
flags.DEFINE_string('arch', None, 'Architecture of a file that does not name it. Default: what the weights say.')
flags.DEFINE_string('workdir', None, 'Folder for the result. Default: evaluation-DATASET-SPLIT-CHECKPOINT in the run.')
flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which checkpoint of a run.')
flags.DEFINE_enum('split', 'test', ['test', 'train'], 'Which part of the dataset.')


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is scored, and what it was trained on as far as that is known.

    Attributes:
      model: the network.
      variables: its weights.
      arch: its name.
      folder: of the run, or None.
      checkpoint: ``last``, ``best``, or a step, of a run; else None.
      config: of the run, or None.
      mean: of its training images, one for each channel, or None.
      std: likewise.
    """

    model: ResNet
    variables: dict[str, Any]
    arch: str
    folder: pathlib.Path | None = None
    checkpoint: str | int | None = None
    config: TrainConfig | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def subject_of(source: str) -> Subject:
    """Opens a run, one of its checkpoints, a file or an id of the hub."""
    path = pathlib.Path(source)
    if not (path.exists() or source.startswith(HUB)):
        raise InputError(f'{source} does not exist')
    if path.is_dir():
        if FLAGS.arch is not None:
            raise InputError(f'arch={FLAGS.arch}: a run names its network itself; --arch is for a file of weights')
        path, step = run_and_step(path)
        which = FLAGS.checkpoint if step is None else step
        record, spec, config = open_run(path)
        data = record['dataset']
        variables = load_variables(path, which)
        model = make_model(spec, config)
        return Subject(model, variables, record['arch'], path, which, config, data['mean'], data['std'])
    loaded = from_pretrained(source, FLAGS.arch)
    brought = loaded.preprocessing
    mean_std = (brought.mean, brought.std) if brought else (None, None)
    return Subject(loaded.model, loaded.variables, loaded.arch, None, None, None, *mean_std)


def check_channels(subject: Subject, dataset: Dataset, source: str) -> None:
    """Raises InputError for images that the network does not take."""
    stem = subject.variables['params']['stem']
    kernel = stem['conv' if 'conv' in stem else 'conv1']['kernel']
    if kernel.shape[2] != dataset.image_shape[-1]:
        raise InputError(
            f'the images have {dataset.image_shape[-1]} channels, the network of {source} takes {kernel.shape[2]}'
        )


def main() -> None:
    source = FLAGS.init_from or FLAGS.workdir
    if source is None:
        raise InputError('--init_from or --workdir must name the weights to score')
    subject = subject_of(source)
    config, which = subject.config, subject.checkpoint
    name, size = FLAGS.dataset, FLAGS.image_size
    if config is not None:
        name, size = name or config.dataset, size or config.image_size
    if name is None:
        raise InputError(f'{source} does not say what it was trained on: --dataset must')
    if FLAGS.init_from and FLAGS.workdir:
        out = pathlib.Path(FLAGS.workdir)
    elif subject.folder is None:
        raise InputError('--workdir must name a folder for the result')
    else:
        out = subject.folder / f'evaluation-{common.as_file_name(name)}-{FLAGS.split}-{which}'
    if (out / 'config.json').exists():
        raise InputError(f'workdir={out} holds a training run; choose another folder for the result')
    dataset = load_dataset(name, data_dir=FLAGS.data_dir, image_size=size, seed=config.seed if config else 0)
    model, spec = subject.model, subject.model.spec
    if dataset.num_classes > spec.num_classes:
        raise InputError(
            f'dataset={name} has {dataset.num_classes} classes, the network of {source} {spec.num_classes}'
        )
    check_channels(subject, dataset, source)
    class_names = [*dataset.class_names, *map(str, range(dataset.num_classes, spec.num_classes))]
    # The images are normalized as in training, whatever their own mean is.
    asked = TrainConfig(mean=common.numbers_of('mean'), std=common.numbers_of('std'))
    known = dataclasses.replace(
        dataset, mean=tuple(subject.mean or dataset.mean), std=tuple(subject.std or dataset.std)
    )
    normalized = normalized_as(known, asked)
    make_folder(out)

    split, mean, std = getattr(dataset, FLAGS.split), normalized.mean, normalized.std
    total = make_evaluator(model, split, mean, std)(subject.variables)
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
        'arch': subject.arch,
        'dataset': name,
        'split': FLAGS.split,
        'init_from': source,
        'checkpoint': which,
    }
    write_json(out / 'result.json', result)
    title = f'{subject.arch} on {name} ({FLAGS.split}): accuracy {summary["accuracy"]:.4f}'
    draw_confusion_matrix(out / 'confusion.png', title, total['confusion'], class_names)

    for label, share in class_accuracy.items():
        print(f'  {label:>20}  {"no examples" if share is None else f"{share:.4f}"}')
    print(f'top-5 accuracy {summary["top5_accuracy"]:.4f}, loss {summary["loss"]:.4f}')
    correct = f'{int(total["correct"]):,} of {len(split):,} correct'
    print(f'{FLAGS.split} accuracy {summary["accuracy"]:.4f}: {correct}; see {out}')


if __name__ == '__main__':
    common.run(main)
