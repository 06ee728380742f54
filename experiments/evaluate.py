"""Evaluates a run or weights on any dataset: metrics, a plot, all predictions.

python -m experiments.evaluate --init_from=runs/resnet20-digits-seed0     # a run, on its own test set
python -m experiments.evaluate --init_from=RUN --checkpoint=best --dataset=arrays:DIR --out=OUT
python -m experiments.evaluate --init_from=resnet20.th --arch=resnet20 --dataset=arrays:DIR --out=OUT
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.shared import photographs, scripts, training_flags, weights_flags
from resnet_jax import InputError, Predictor, Preprocessing, TrainConfig
from resnet_jax.checkpoints.storage import make_folder, write_file, write_json
from resnet_jax.data.conversions import Conversions, Counted
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset, Split, numbered_as
from resnet_jax.data.feeds import ReaderOptions
from resnet_jax.data.imagenet_names import imagenet_names, imagenet_wordnet_ids
from resnet_jax.models.resnet import input_channels
from resnet_jax.tasks import metrics
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import DEFAULT_TASK, TASKS, make_task
from resnet_jax.text import distinct, shown, without_folders
from resnet_jax.training.checks import check_shift
from resnet_jax.training.evaluation import Evaluation, Evaluator
from resnet_jax.training.plan import make_model, normalized
from resnet_jax.training.report import draw_result_alone
from resnet_jax.training.result import print_drawing_errors
from resnet_jax.weights.sources import normalization_of

GROUP = 'tools'
FLAGS = flags.FLAGS


def define_flags() -> None:
    training_flags.define_data_flags(default="the run's")
    training_flags.define_normalization_flags()
    flags.DEFINE_enum('task', None, list(TASKS), 'Task that a weights file was trained for. Default: multiclass.')
    weights_flags.define_flags()
    flags.DEFINE_string(
        'out', None, 'Output folder. Default: evaluation-DATASET-SPLIT-CHECKPOINT in the folder of the run.'
    )
    flags.DEFINE_enum('split', 'test', ['test', 'train'], 'Split to evaluate.')
    training_flags.define_settings(('test_flip', 'test_shift'), default="the run's, otherwise none")
    flags.DEFINE_list('test_sizes', [], 'More image sizes to evaluate photographs at: 160,224,288.')
    flags.DEFINE_bool(
        'published_test_size',
        False,
        'Evaluate photographs at the larger test size that weights on the hub may specify.',
    )
    training_flags.define_photograph_flags(default="the run's, otherwise read from the weights")


def network_of_flags(source: str) -> Predictor:
    """The network of ``--init_from``, with the preprocessing of the test size if requested."""
    if FLAGS.published_test_size and pathlib.Path(source).is_dir():
        raise InputError('--published_test_size applies only to weights on the hub, not to a run')
    if FLAGS.published_test_size and FLAGS.image_size is not None:
        raise InputError(f'image_size={FLAGS.image_size} cannot be combined with --published_test_size')
    network = weights_flags.predictor_of_flags()
    network.require_head()
    if not FLAGS.published_test_size:
        return network
    if network.test_preprocessing is None:
        raise InputError(f'--published_test_size: {source} does not specify a test size other than its training size')
    return dataclasses.replace(network, preprocessing=network.test_preprocessing)


def folder_of(network: Predictor, name: str) -> pathlib.Path:
    """The output folder."""
    run = network.source
    if FLAGS.out:
        out = pathlib.Path(FLAGS.out)
    elif run.workdir is None:
        raise InputError('--out is required: the output folder')
    else:
        out = run.workdir / f'evaluation-{scripts.as_file_name(name)}-{FLAGS.split}-{run.checkpoint}'
    if (out / 'config.json').exists():
        raise InputError(f'out={out} contains a training run; choose another output folder')
    return out


def load_data(network: Predictor, source: str) -> Dataset:
    """The dataset to evaluate on, normalized with the mean and standard deviation used in training."""
    known = network.source.settings
    task = known.get('task', FLAGS.task or DEFAULT_TASK)
    if FLAGS.task not in (None, task):
        raise InputError(f'task={FLAGS.task}, but the run was trained for {task}')
    name = FLAGS.dataset or known.get('dataset')
    size = known.get('image_size') if FLAGS.image_size is None else FLAGS.image_size
    if not name:
        raise InputError(f'{source} does not record its dataset; set --dataset')
    training_flags.check_data_dir(name)
    dataset = load_dataset(name, task=task, data_dir=FLAGS.data_dir, image_size=size, seed=known.get('seed', 0))
    if dataset.image_size is not None and size is None:
        dataset = dataclasses.replace(dataset, image_size=network.photograph_preprocessing.size)
    task = dataset.task
    needed, available = task.num_outputs(dataset.num_classes), network.model.spec.head.num_classes
    if needed > available or (needed < available and not task.has_class_outputs):
        what = f'{dataset.num_classes} classes, but the network of {source} has {available}'
        raise InputError(
            f'dataset={name} has {what}'
            if task.has_class_outputs
            else f'task={task.name}: dataset {name} has {what} outputs'
        )
    if task.has_class_targets and (names := names_of(network, dataset)) is not None:
        dataset = numbered_as(dataset, names)
    channels, expected = dataset.image_shape[2], input_channels(network.variables['params']['stem'])
    if channels != expected:
        plural = '' if expected == 1 else 's'
        raise InputError(f'the network of {source} takes {expected} channel{plural}, but {name} has {channels}')
    check_shift('test_shift', views_of(network)['shift'], dataset.image_shape)
    known_mean, known_std = normalization_of(network.source, dataset)
    chosen = TrainConfig().replace(**training_flags.chosen_settings(('mean', 'std'))).data  # validates them
    mean = known_mean if chosen.mean is None else chosen.mean
    return normalized(dataset, mean, known_std if chosen.std is None else chosen.std)


def names_of(network: Predictor, dataset: Dataset) -> Sequence[str] | None:
    """The network's class names: the run's, or ImageNet's in the dataset's form; None if unknown."""
    if network.source.class_names:
        return network.source.class_names
    names, ids = imagenet_names(), imagenet_wordnet_ids()
    if network.model.spec.head.num_classes != len(names):
        return None
    if all(map(str.isdecimal, dataset.class_names)):
        return [str(number) for number in range(len(names))]
    return ids if dataset.class_names[0] in ids else names


def preprocessing_of(network: Predictor, dataset: Dataset) -> Preprocessing | None:
    """Preprocessing of photographs: from the flags, the weights or the run; None for images in memory."""
    chosen = training_flags.set_flags(('crop_pct', 'interpolation'))
    if dataset.image_size is None:
        training_flags.check_no_photograph_flags(dataset.name)
        return None
    return dataclasses.replace(network.photograph_preprocessing, size=dataset.image_size, **chosen)


def counted(split: Split, network: Predictor) -> tuple[Split, Conversions]:
    """The split, and the conversions of its photographs, which are counted as they are read."""
    conversions = photographs.conversions_for(network)
    if isinstance(split.images, np.ndarray):
        return split, conversions
    return dataclasses.replace(split, images=Counted(split.images, conversions)), conversions


def sizes_of_flags() -> list[int]:
    """The additional image sizes of ``--test_sizes``."""
    try:
        sizes = [int(size) for size in FLAGS.test_sizes]
    except ValueError as error:
        raise InputError(f'test_sizes={",".join(FLAGS.test_sizes)} must be numbers separated by commas') from error
    if sizes and min(sizes) < 1:
        raise InputError(f'test_sizes={",".join(FLAGS.test_sizes)} must be at least 1 pixel')
    return sizes


def views_of(network: Predictor) -> dict[str, Any]:
    """The test-time views to average outputs over, from the flags or the run."""
    defaults = {'test_flip': False, 'test_shift': 0}
    chosen = defaults | network.source.settings | training_flags.set_flags(tuple(defaults))
    return {name.removeprefix('test_'): chosen[name] for name in defaults}


def task_of(network: Predictor, dataset: Dataset) -> Task:
    """The task of a run, with its target statistics; for a weights file, the task of the dataset."""
    if network.source.record:
        return network.task
    return make_task(dataset.task, statistics=dataset.target_statistics())


def write_predictions(path: pathlib.Path, task: Task, evaluation: Evaluation, split: Split, names: list[str]) -> None:
    """Writes one CSV row per example: its index or name, its targets, the decision and the decoded outputs.

    A column that would have the name of an earlier one gets a number: the outputs of a class called ``true`` are in the
    column ``true (2)``.
    """
    outputs = task.predictions(np.asarray(evaluation.outputs))
    targets = np.asarray(evaluation.targets).reshape(len(outputs), -1)
    encoded = not isinstance(split.images, np.ndarray)
    target_columns = ['true'] if targets.shape[1] == 1 else [f'true {name}' for name in names]
    decisions = task.decisions(outputs, names)
    decided = list(zip(*decisions.values(), strict=True)) or [()] * len(outputs)
    rows: list[list[Any]] = [distinct(['example', *target_columns, *decisions, *task.prediction_names(names)])]
    examples = zip(evaluation.examples.tolist(), targets.tolist(), decided, outputs, strict=True)
    for index, target, decision, row in examples:
        cells = [names[value] for value in target] if task.has_class_targets else target
        example = split.images.name(index) if encoded else index  # type: ignore[union-attr]
        rows.append([example, *cells, *decision, *(f'{value:.6g}' for value in row)])
    write_file(path, scripts.csv_table(rows).encode())


def report_classes(confusion: np.ndarray, names: list[str]) -> dict[str, float | None]:
    """Prints and returns the accuracy of each class; None for classes without examples, because JSON has no NaN."""
    shares = metrics.per_class_accuracy(confusion)
    found = {name: None if np.isnan(share) else float(share) for name, share in zip(names, shares, strict=True)}
    with_examples = {name: share for name, share in found.items() if share is not None}
    print('accuracy per class:')
    for name, share in with_examples.items():
        print(f'  {shown(name):>20}  {share:.4f}')
    if len(with_examples) < len(found):
        print(f'  classes without examples: {len(found) - len(with_examples):,}')
    return found


def scores_of(evaluation: Evaluation, task: Task, names: list[str]) -> tuple[dict[str, Any], str]:
    """All metrics by their names in ``result.json``, and the summary line."""
    result: dict[str, Any] = {f'{FLAGS.split}_{name}': value for name, value in evaluation.summary.items()}
    summary_line = f'{FLAGS.split} {task.primary_metric} {evaluation.summary[task.primary_metric]:.4f}'
    if task.has_class_outputs:
        if 'confusion' in evaluation.total:
            result['class_accuracy'] = report_classes(evaluation.total['confusion'], names)
        shares, targets = task.predictions(np.asarray(evaluation.outputs)), np.asarray(evaluation.targets)
        result['calibration_error'] = metrics.calibration_error(shares, targets)
        if 'correct' in evaluation.total:
            result['num_correct'] = int(evaluation.total['correct'])
            summary_line += f': {result["num_correct"]:,} of {len(evaluation.examples):,} correct'
    return result, summary_line


def main() -> None:
    source = weights_flags.source_of_flags()
    network = network_of_flags(source)
    dataset = load_data(network, source)
    out, split = folder_of(network, dataset.name), getattr(dataset, FLAGS.split)
    # Deep networks are compiled as a loop, as in training.
    scan_blocks = make_model(network.model.spec, TrainConfig()).scan_blocks
    model = dataclasses.replace(network.model, scan_blocks=scan_blocks)
    preprocessing, sizes = preprocessing_of(network, dataset), sizes_of_flags()
    split, conversions = counted(split, network)
    task, own = task_of(network, dataset), network.source.class_names
    known = own if own and task.has_class_targets else dataset.class_names
    names = distinct([*known, *map(str, range(len(known), model.spec.head.num_classes))])
    views = views_of(network)
    options: dict[str, Any] = {'task': task, 'reader': ReaderOptions(strict=FLAGS.strict_data), **views}
    make_folder(out)

    def evaluate(preprocessing: Preprocessing | None) -> Evaluation:
        chosen: dict[str, Any] = options | {'keep_outputs': True, 'preprocessing': preprocessing}
        return Evaluator(model, split, dataset.mean, dataset.std, **chosen)(network.variables)

    evaluation = evaluate(preprocessing)
    photographs.report(conversions)
    result, summary_line = scores_of(evaluation, task, names)
    result |= {
        f'num_{FLAGS.split}_examples': len(evaluation.examples),
        'arch': network.arch,
        'dataset': dataset.name,
        'task': task.name,
        'split': FLAGS.split,
        'init_from': source,
        'checkpoint': network.source.checkpoint,
        'views': views,
    }
    if preprocessing is not None:
        names_of_values = ('size', 'crop_pct', 'interpolation')
        result['preprocessing'] = {name: getattr(preprocessing, name) for name in names_of_values}
        by_size = {size: evaluate(dataclasses.replace(preprocessing, size=size)).summary for size in sizes}
        result['by_size'] = {str(size): summary for size, summary in by_size.items()}
        if by_size:
            columns = [name for name in (task.primary_metric, 'top5_accuracy') if name in evaluation.summary]
            rows = [(str(size), *(f'{summary[name]:.4f}' for name in columns)) for size, summary in by_size.items()]
            print(scripts.markdown_table(('size', *columns), rows))
    write_json(out / 'result.json', result)
    write_predictions(out / 'predictions.csv', task, evaluation, split, names)
    title = f'{network.arch} on {without_folders(dataset.name)}: {summary_line}'
    plot = out / f'{task.picture or task.name}.png'
    with print_drawing_errors(plot):
        draw_result_alone(plot, title, lambda axes: task.draw(axes, evaluation, names), len(names))

    others = (name for name in evaluation.summary if name != task.primary_metric)
    scores = [f'{name} {evaluation.summary[name]:.4f}' for name in others]
    if 'calibration_error' in result:
        scores.append(f'calibration error {result["calibration_error"]:.4f}')
    print(', '.join(scores))
    print(f'{summary_line}; results in {shown(str(out))}')


if __name__ == '__main__':
    scripts.run(main, define_flags)
