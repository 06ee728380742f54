"""The results of finished runs."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resnet_jax.checkpoints.checkpoint import checkpoint_steps
from resnet_jax.checkpoints.environment import describe_devices
from resnet_jax.checkpoints.record import CHECKPOINTS, RESULT
from resnet_jax.checkpoints.storage import read_json, reason, write_json
from resnet_jax.data.augment import Augmentation
from resnet_jax.devices import barrier, is_main_process
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.tasks.kinds import get_task
from resnet_jax.text import printable, without_folders
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.cost import Cost
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.journal import Journal
from resnet_jax.training.log import Log
from resnet_jax.training.plan import Plan

REPORT = 'report.png'


def write_results(
    plan: Plan,
    workdirs: Sequence[pathlib.Path],
    arch: str,
    cost: Cost,
    journal: Journal,
    evaluations: Sequence[Evaluation],
) -> dict[int, dict[str, Any]]:
    """Writes ``result.json`` and then ``report.png`` of each seed; returns the results by seed.

    If drawing fails, one line is printed and the result is unaffected. The result of a run that was finished before,
    and is only drawn again, is kept.

    Raises:
      StorageError: a result cannot be written.
    """
    journal.finish()
    results = {}
    for seed, workdir, log, evaluation in zip(plan.seeds.numbers, workdirs, journal.logs, evaluations, strict=True):
        result = results[seed] = _result(plan, seed, arch, cost, log, evaluation)
        if is_main_process():
            if (before := written_result(workdir)) is not None and before.get('steps') == plan.total_steps:
                result = results[seed] = before
            else:
                write_json(workdir / RESULT, result)
            _draw(plan, workdir, result, log, evaluation)
    barrier('end of the run')
    return results


def written_result(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The content of a folder's ``result.json``; None if there is none."""
    return read_json(workdir / RESULT) if (workdir / RESULT).exists() else None


def can_be_drawn(workdir: pathlib.Path, result: dict[str, Any]) -> bool:
    """Whether a finished run has no ``report.png``, but the checkpoint of its last step, which it can be drawn from."""
    last = max(checkpoint_steps(workdir / CHECKPOINTS), default=None)
    return not (workdir / REPORT).exists() and last == result.get('steps')


def _result(plan: Plan, seed: int, arch: str, cost: Cost, log: Log, evaluation: Evaluation) -> dict[str, Any]:
    config = plan.config
    speed = plan.total_steps * config.batch_size / log.train_seconds
    result = {
        **{f'test_{name}': value for name, value in evaluation.summary.items()},
        'num_test_examples': len(evaluation.examples),
        'num_train_examples': len(plan.dataset.train),
        'steps': plan.total_steps,
        'epochs': config.epochs,
        **log.totals(),
        **cost.record(speed, len(plan.seeds.numbers)),
        'seed': seed,
        'arch': arch,
        'dataset': config.data.dataset,
        'task': plan.task.name,
        'recipe': config.recipe,
        'device': describe_devices(list(plan.mesh.devices.flat)),
    }
    if config.data.dataset == 'synthetic':
        result['note'] = 'random images and labels, for timing only; the accuracy is meaningless'
    return result


def _draw(plan: Plan, workdir: pathlib.Path, result: dict[str, Any], log: Log, evaluation: Evaluation) -> None:
    metric, names = plan.task.primary_metric, plan.dataset.class_names
    score = f'{metric} {evaluation.summary[metric]:.4f}'
    # Without folders, which are long and may contain the user's name.
    title = f'{result["arch"]} on {without_folders(result["dataset"])}, seed {result["seed"]}: test {score}'
    path, differences = workdir / REPORT, differences_of_training(plan.config, plan.model.spec)
    with print_drawing_errors(path):
        from resnet_jax.training.report import draw_report  # Matplotlib is slow to import, and may be missing

        draw_report(path, title, log.records, metric, lambda axes: plan.task.draw(axes, evaluation, names), differences)


@contextlib.contextmanager
def print_drawing_errors(path: pathlib.Path) -> Iterator[None]:
    """Prints errors of its body in one line, so that a failed plot does not affect the result."""
    try:
        yield
    except Exception as error:  # Matplotlib may receive arbitrary names and numbers
        line = f'{path} could not be drawn: {reason(error)}; the result is not affected'
        print(printable(line), file=sys.stderr)


def differences_of_training(config: TrainConfig, spec: ResNetSpec) -> tuple[list[str], list[str]]:
    """What makes the loss and the primary metric in training differ from those of a test of the same weights."""
    augmentation, objective = config.augmentation, config.objective
    of_images = dataclasses.replace(augmentation, augmentation_repeats=1, mixup=0.0, cutmix=0.0)
    both = ['augmented'] if of_images != Augmentation() else []
    both += [f'{name} {value:g}' for name in ('mixup', 'cutmix') if (value := getattr(augmentation, name))]
    both += ['dropout'] if spec.head.dropout_rate or spec.blocks.drop_path_rate or spec.blocks.drop_block_rate else []
    loss = ['custom loss'] if callable(objective.loss) else []
    if objective.label_smoothing:
        loss.append(f'label smoothing {objective.label_smoothing:g}')
    if objective.target_threshold is not None:
        loss.append(f'target threshold {objective.target_threshold:g}')
    if config.distillation is not None:
        loss.append(f'distillation {config.distillation.distill_weight:g}')
    return [*loss, *both], both


def summarize_seeds(config: TrainConfig, workdir: pathlib.Path, results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Writes ``result.json`` of several seeds: mean and sample standard deviation, and all single results."""
    metric, seeds = f'test_{get_task(config.objective.task).primary_metric}', sorted(results)
    scores = [results[seed][metric] for seed in seeds]
    result = {
        f'{metric}_mean': float(np.mean(scores)),
        f'{metric}_std': float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0,
        'seeds': seeds,
        'runs': [results[seed] for seed in seeds],
    }
    if is_main_process():
        write_json(workdir / RESULT, result)
    return result
