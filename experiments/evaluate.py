"""Scores weights on a dataset: every metric of the task, a picture, and what the network says of each example.

python -m experiments.evaluate --workdir=runs/resnet20-digits-seed0       # a run, on the data it was trained for
python -m experiments.evaluate --init_from=RUN --checkpoint=best --dataset=arrays:DIR --workdir=OUT
python -m experiments.evaluate --init_from=resnet20.th --arch=resnet20 --dataset=arrays:DIR --workdir=OUT
"""

import csv
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import common, training_flags
from resnet_jax import InputError, Preprocessing, ResNet, TrainConfig, from_pretrained, load_variables
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset, Split, numbered_as
from resnet_jax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.models.resnet import check_images
from resnet_jax.prediction import imagenet_names, imagenet_wordnet_ids
from resnet_jax.training import metrics
from resnet_jax.training.evaluation import Evaluation, Evaluator, make_task, target_statistics
from resnet_jax.training.feed import Reading
from resnet_jax.training.program import make_model, normalized_as
from resnet_jax.training.report import draw_result_alone, result_drawing
from resnet_jax.training.tasks import TASKS, Task
from resnet_jax.training.workdir import make_folder, write_json
from resnet_jax.weights import HUB, open_run, run_and_step

FLAGS = flags.FLAGS

training_flags.define_data_flags(default="the run's")
training_flags.define_normalization_flags()
flags.DEFINE_enum('task', None, list(TASKS), 'What a file of weights was trained for. Default: multiclass.')
flags.DEFINE_string('init_from', None, training_flags.INIT_FROM + ' Default: --workdir.')
flags.DEFINE_string('arch', None, 'Architecture of a file that does not name it. Default: what the weights say.')
flags.DEFINE_string('workdir', None, 'Folder for the result. Default: evaluation-DATASET-SPLIT-CHECKPOINT in the run.')
flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which checkpoint of a run.')
flags.DEFINE_enum('split', 'test', ['test', 'train'], 'Which part of the dataset.')
flags.DEFINE_bool('test_flip', None, "Score the mean for an image and its mirror. Default: the run's, or no.")
flags.DEFINE_integer(
    'test_shift',
    None,
    "Score the mean also over the image moved by so many pixels. Default: the run's, or 0.",
    lower_bound=0,
)
flags.DEFINE_list('test_sizes', [], 'Score photographs at these sizes, too: 160,224,288.')
flags.DEFINE_bool(
    'published_test_size', False, 'Score photographs at the larger size that weights of the hub name for testing.'
)
training_flags.define_photograph_flags()


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
      target_statistics: mean and deviation of the values it learned, or None.
      preprocessing: of photographs, as the weights say, or for a run on images in memory the largest square in the
        middle at their size; or None.
      class_names: as the run has them, or None.
    """

    model: ResNet
    variables: dict[str, Any]
    arch: str
    folder: pathlib.Path | None = None
    checkpoint: str | int | None = None
    config: TrainConfig | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    target_statistics: tuple[Sequence[float], Sequence[float]] | None = None
    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] | None = None


def subject_of(source: str) -> Subject:
    """Opens a run, one of its checkpoints, a file or an id of the hub."""
    path = pathlib.Path(source)
    if not (path.exists() or source.startswith(HUB)):
        raise InputError(f'{source} does not exist')
    if path.is_dir():
        if FLAGS.arch is not None:
            raise InputError(f'arch={FLAGS.arch}: a run names its network itself; --arch is for a file of weights')
        if FLAGS.published_test_size:
            raise InputError('published_test_size is for weights of the hub; a run names no size for testing')
        path, step = run_and_step(path)
        which = FLAGS.checkpoint if step is None else step
        record, spec, config = open_run(path)
        data = record['dataset']
        in_memory = not data.get('photographs')
        variables = load_variables(path, which)
        model = make_model(spec, config)
        targets = data.get('target_mean', ()), data.get('target_std', ())
        return Subject(
            model,
            variables,
            record['arch'],
            folder=path,
            checkpoint=which,
            config=config,
            mean=data['mean'],
            std=data['std'],
            target_statistics=targets,
            preprocessing=Preprocessing(data['image_shape'][0], 1.0) if in_memory else None,
            class_names=data['class_names'],
        )
    loaded = from_pretrained(source, FLAGS.arch)
    brought = loaded.preprocessing
    if FLAGS.published_test_size:
        brought = loaded.test_preprocessing
        if brought is None:
            raise InputError(f'published_test_size: {source} names no size for testing but that of training')
    mean, std = (brought.mean, brought.std) if brought else (None, None)
    return Subject(loaded.model, loaded.variables, loaded.arch, mean=mean, std=std, preprocessing=brought)


def folder_of(subject: Subject, name: str) -> pathlib.Path:
    """Where the result goes."""
    if FLAGS.init_from and FLAGS.workdir:
        out = pathlib.Path(FLAGS.workdir)
    elif subject.folder is None:
        raise InputError('--workdir must name a folder for the result')
    else:
        out = subject.folder / f'evaluation-{common.as_file_name(name)}-{FLAGS.split}-{subject.checkpoint}'
    if (out / 'config.json').exists():
        raise InputError(f'workdir={out} holds a training run; choose another folder for the result')
    return out


def load_data(subject: Subject, source: str) -> Dataset:
    """The dataset to score on, normalized as in training, whatever its own mean is."""
    config = subject.config or TrainConfig(dataset='', task=FLAGS.task or 'multiclass')
    if FLAGS.task not in (None, config.task):
        raise InputError(f'task={FLAGS.task}: the run was trained for {config.task}')
    name, size = FLAGS.dataset or config.dataset, FLAGS.image_size or config.image_size
    if not name:
        raise InputError(f'{source} does not say what it was trained on: --dataset must')
    dataset = load_dataset(name, task=config.task, data_dir=FLAGS.data_dir, image_size=size, seed=config.seed)
    if dataset.image_size is not None and size is None and subject.preprocessing is not None:
        dataset = dataclasses.replace(dataset, image_size=subject.preprocessing.size)
    needed, there = TASKS[config.task].num_outputs(dataset.num_classes), subject.model.spec.num_classes
    if needed > there or (needed < there and config.task != 'multiclass'):
        what = f'{dataset.num_classes} classes, the network of {source} {there}'
        raise InputError(f'dataset={name} has {what}' if config.task == 'multiclass' else f'task={config.task}: {what}')
    if config.task in ('multiclass', 'binary') and (names := names_of(subject, dataset)) is not None:
        dataset = numbered_as(dataset, names)
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    check_images(image, subject.variables['params']['stem'])  # before anything is written
    if subject.mean is None and dataset.image_size is not None:  # as files of weights for photographs mostly want it
        subject = dataclasses.replace(subject, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    asked = TrainConfig(mean=training_flags.numbers_of('mean'), std=training_flags.numbers_of('std'))
    known = dataclasses.replace(
        dataset, mean=tuple(subject.mean or dataset.mean), std=tuple(subject.std or dataset.std)
    )
    return normalized_as(known, asked)


def names_of(subject: Subject, dataset: Dataset) -> Sequence[str] | None:
    """What the network's classes are called: by the run, or as the dataset calls those of ImageNet; None if unknown."""
    if subject.class_names is not None:
        return subject.class_names
    names, ids = imagenet_names(), imagenet_wordnet_ids()
    if subject.model.spec.num_classes != len(names):
        return None
    if all(map(str.isdecimal, dataset.class_names)):
        return [str(number) for number in range(len(names))]
    return ids if dataset.class_names[0] in ids else names


def preparation(subject: Subject, dataset: Dataset) -> Preprocessing | None:
    """What is done to photographs: as flags say, or the weights, or the run; None for images in memory."""
    chosen = training_flags.set_flags(('crop_pct', 'interpolation'))
    if dataset.image_size is None:
        for name, value in chosen.items():
            raise InputError(f'{name}={value} is for photographs; {dataset.name} is in memory')
        return None
    if subject.preprocessing is not None:
        return dataclasses.replace(subject.preprocessing, size=dataset.image_size, **chosen)
    known = subject.config or TrainConfig()
    how: dict[str, Any] = {'crop_pct': known.crop_pct, 'interpolation': known.interpolation}
    return Preprocessing(dataset.image_size, **(how | chosen))


def sizes_of_flags(dataset: Dataset) -> list[int]:
    """The sizes to score photographs at besides."""
    try:
        sizes = [int(size) for size in FLAGS.test_sizes]
    except ValueError as error:
        raise InputError(f'test_sizes={",".join(FLAGS.test_sizes)} must be numbers separated by commas') from error
    if sizes and min(sizes) < 1:
        raise InputError(f'test_sizes={",".join(FLAGS.test_sizes)} must be numbers of pixels, at least 1')
    if sizes and dataset.image_size is None:
        raise InputError(f'test_sizes={",".join(FLAGS.test_sizes)} is for photographs; {dataset.name} is in memory')
    return sizes


def views_of(subject: Subject) -> dict[str, Any]:
    """Over which views of an image outputs are averaged: as flags say, or the run."""
    known = subject.config or TrainConfig()
    chosen = training_flags.set_flags(('test_flip', 'test_shift'))
    views = {name: chosen.get(name, getattr(known, name)) for name in ('test_flip', 'test_shift')}
    return {name.removeprefix('test_'): value for name, value in views.items()}


def task_of(subject: Subject, dataset: Dataset) -> Task:
    """The task of a run, with the units of its targets; of a file that of the dataset."""
    config = subject.config or TrainConfig(task=dataset.task)
    return make_task(config, *(subject.target_statistics or target_statistics(dataset)))


def write_predictions(path: pathlib.Path, task: Task, evaluation: Evaluation, split: Split, names: list[str]) -> None:
    """A line for each example: its number, its targets, and what the network says of it."""
    predictions = task.predictions(np.asarray(evaluation.outputs))
    columns = names[1:] if task.name == 'binary' else names
    targets = np.asarray(evaluation.targets).reshape(len(predictions), -1)
    encoded = not isinstance(split.images, np.ndarray)
    target_columns = ['true'] if targets.shape[1] == 1 else [f'true {name}' for name in names]
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['example', *target_columns, *columns])
        for index, target, row in zip(evaluation.examples.tolist(), targets.tolist(), predictions, strict=True):
            shown = [names[value] for value in target] if task.name in ('multiclass', 'binary') else target
            example = split.images.name(index) if encoded else index  # type: ignore[union-attr]
            writer.writerow([example, *shown, *(f'{value:.6g}' for value in row)])


def report_classes(confusion: np.ndarray, names: list[str]) -> dict[str, float | None]:
    """The accuracy of each class, given and, of those with examples, shown; else None, as JSON has no NaN."""
    shares = metrics.per_class_accuracy(confusion)
    found = {name: None if np.isnan(share) else float(share) for name, share in zip(names, shares, strict=True)}
    shown = {name: share for name, share in found.items() if share is not None}
    for name, share in shown.items():
        print(f'  {name:>20}  {share:.4f}')
    if len(shown) < len(found):
        print(f'  no examples of {len(found) - len(shown):,} other classes')
    return found


def scores_of(evaluation: Evaluation, task: Task, names: list[str]) -> tuple[dict[str, Any], str]:
    """Every metric by its name in the result, and the line that sums them up."""
    result: dict[str, Any] = {f'{FLAGS.split}_{name}': value for name, value in evaluation.summary.items()}
    headline = f'{FLAGS.split} {task.headline} {evaluation.summary[task.headline]:.4f}'
    if task.name == 'multiclass':
        result['num_correct'] = int(evaluation.total['correct'])
        result['class_accuracy'] = report_classes(evaluation.total['confusion'], names)
        shares, targets = task.predictions(np.asarray(evaluation.outputs)), np.asarray(evaluation.targets)
        result['calibration_error'] = metrics.calibration_error(shares, targets)
        headline += f': {result["num_correct"]:,} of {len(evaluation.examples):,} correct'
    return result, headline


def main() -> None:
    source = FLAGS.init_from or FLAGS.workdir
    if source is None:
        raise InputError('--init_from or --workdir must name the weights to score')
    subject = subject_of(source)
    dataset = load_data(subject, source)
    out, model, split = folder_of(subject, dataset.name), subject.model, getattr(dataset, FLAGS.split)
    how, sizes = preparation(subject, dataset), sizes_of_flags(dataset)
    make_folder(out)

    task = task_of(subject, dataset)
    known = (
        subject.class_names if subject.class_names and task.name in ('multiclass', 'binary') else dataset.class_names
    )
    names = [*known, *map(str, range(len(known), model.spec.num_classes))]
    views = views_of(subject)
    options: dict[str, Any] = {'task': task, 'reading': Reading(strict=FLAGS.strict_data), **views}

    def score(how: Preprocessing | None) -> Evaluation:
        given: dict[str, Any] = options | {'keep_outputs': True, 'preprocessing': how}
        return Evaluator(model, split, dataset.mean, dataset.std, **given)(subject.variables)

    evaluation = score(how)
    result, headline = scores_of(evaluation, task, names)
    result |= {
        f'num_{FLAGS.split}_examples': len(evaluation.examples),
        'arch': subject.arch,
        'dataset': dataset.name,
        'task': task.name,
        'split': FLAGS.split,
        'init_from': source,
        'checkpoint': subject.checkpoint,
        'views': views,
    }
    if how is not None:
        result['preprocessing'] = {'size': how.size, 'crop_pct': how.crop_pct, 'interpolation': how.interpolation}
        by_size = {size: score(dataclasses.replace(how, size=size)).summary for size in sizes}
        result['by_size'] = {str(size): summary for size, summary in by_size.items()}
        if by_size:
            columns = [name for name in (task.headline, 'top5_accuracy') if name in evaluation.summary]
            rows = [(str(size), *(f'{summary[name]:.4f}' for name in columns)) for size, summary in by_size.items()]
            print(common.markdown_table(('size', *columns), rows))
    write_json(out / 'result.json', result)
    write_predictions(out / 'predictions.csv', task, evaluation, split, names)
    picture = 'confusion.png' if task.name == 'multiclass' else f'{task.name}.png'
    drawing = result_drawing(task, evaluation, names)
    draw_result_alone(out / picture, f'{subject.arch} on {dataset.name}: {headline}', drawing, len(names))

    others = (name for name in evaluation.summary if name != task.headline)
    shown = [f'{name} {evaluation.summary[name]:.4f}' for name in others]
    if 'calibration_error' in result:
        shown.append(f'calibration error {result["calibration_error"]:.4f}')
    print(', '.join(shown))
    print(f'{headline}; see {out}')


if __name__ == '__main__':
    common.run(main)
