"""The plan of a run: everything that is fixed before its first step."""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.checkpoints.record import read_record
from resnet_jax.data.batches import steps_per_epoch
from resnet_jax.data.examples import Dataset
from resnet_jax.data.feeds import THREAD_READER, ReaderOptions
from resnet_jax.devices import replicated, split_evenly
from resnet_jax.errors import InputError
from resnet_jax.given import qualified_name
from resnet_jax.models.flat import with_changes
from resnet_jax.models.resnet import ResNet, init_variables
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import get_task, make_task, task_name
from resnet_jax.training.checks import check_shift
from resnet_jax.training.config import TrainConfig, optimizer_of, rate_of
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.step import TrainState, create_train_state
from resnet_jax.training.teacher import Teacher, check_classes, check_outputs, class_difference
from resnet_jax.weights.matching import match_tensors
from resnet_jax.weights.runs import run_and_step
from resnet_jax.weights.sources import Source, given_block, model_of, open_source

# Purposes of random numbers; each folds its own key from the run's root key.
INIT, AUGMENT, DROPOUT, MIXING = range(4)
# Stages of at least this many blocks are compiled as a loop: resnet110 and deeper.
_SCAN_FROM = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The plan of runs that differ only in the seed.

    Attributes:
      config: everything except the seeds and the architecture.
      seeds: the seeds of the runs.
      dataset: the dataset, with the mean and standard deviation that images are normalized with.
      mesh: mesh of the devices.
      reader: how photographs are read.
      model: the network.
      optimizer: transformation of its gradients.
      rate: the learning rate as a jitted function of the step; NaN if the optimizer sets its own.
      task: the task it is trained for.
      teacher: teacher network for distillation, or None.
      epoch_steps: steps per epoch.
      create: creates the initial state of a seed.
      single: shapes and dtypes of one seed's state.
      shardings: shardings of the state of all seeds.
    """

    config: TrainConfig
    seeds: Seeds
    dataset: Dataset
    mesh: Any
    reader: ReaderOptions
    model: ResNet
    optimizer: Any
    rate: Callable[[int], Any]
    task: Task
    teacher: Teacher | None
    epoch_steps: int
    create: Callable[[jax.Array], TrainState]
    single: TrainState
    shardings: TrainState

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole training."""
        return self.config.epochs * self.epoch_steps

    def fits(self, seeds: Seeds, dataset: Dataset) -> bool:
        """Whether ``with_seeds`` is the plan of other seeds, on this plan's data as ``dataset`` normalizes it."""
        same = (self.dataset.mean, self.dataset.std) == (dataset.mean, dataset.std)
        return same and len(self.seeds.numbers) == len(seeds.numbers)

    def with_seeds(self, seeds: Seeds) -> 'Plan':
        """The plan for as many other seeds; its programs are the same."""
        return dataclasses.replace(self, seeds=seeds)

    def differs_only_in_seeds(self, other: 'Plan') -> bool:
        """Whether one of the plans was made from the other by ``with_seeds``."""
        names = [field.name for field in dataclasses.fields(self) if field.name != 'seeds']
        same = all(getattr(self, name) is getattr(other, name) for name in names)
        return same and len(self.seeds.numbers) == len(other.seeds.numbers)

    @property
    def trained_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)`` of the augmented training images."""
        return self.config.augmentation.result_shape(self.dataset.image_shape)


def make_plan(
    spec: ResNetSpec,
    config: TrainConfig,
    seeds: Seeds,
    dataset: Dataset,
    mesh: Any,
    reader: ReaderOptions,
    resumed: bool = False,
) -> Plan:
    """Makes the plan of runs that differ only in the seed.

    Args:
      spec: architecture; its number of classes is replaced by what dataset and task need.
      config: everything else except the seeds.
      seeds: the seeds of the runs.
      dataset: the dataset, with the mean and standard deviation that images are normalized with.
      mesh: mesh of the devices.
      reader: how photographs are read.
      resumed: whether the runs were started before; whether the teacher fits the dataset was checked then.

    Raises:
      InputError: the network, optimizer, augmentation, batch size or teacher is not usable.
    """
    task = objective_task(config, dataset.target_statistics())
    _check_data(config, dataset, task, reader)
    # Without targets and class names, the caller chooses the number of outputs.
    spec = with_changes(spec, num_classes=task.num_outputs(dataset.num_classes) or spec.head.num_classes)
    model, epoch_steps = make_model(spec, config), steps_per_epoch(len(dataset.train), config.batch_size)
    optimizer = optimizer_of(config, epoch_steps)

    @jax.jit  # traced only once, for the shapes here and later for the state
    def create(seed: jax.Array) -> TrainState:
        variables = init_variables(model, init_key(seed), dataset.image_shape)
        return create_train_state(variables, optimizer, average=config.averaging is not None)

    # Raises InputError if the network or freeze is not valid.
    single = jax.eval_shape(create, jax.ShapeDtypeStruct((), jnp.uint32))
    shardings = jax.tree.map(lambda _: replicated(mesh), single)
    if config.execution.shard_optimizer:
        seed_axes = seeds.array.shape
        split = jax.tree.map(lambda leaf: split_evenly(mesh, (*seed_axes, *leaf.shape)), single.opt_state)
        shardings = dataclasses.replace(shardings, opt_state=split)
    teacher = None if config.distillation is None else _make_teacher(spec, config, dataset, task, resumed)
    rate = jax.jit(rate_of(config, epoch_steps))
    return Plan(
        config, seeds, dataset, mesh, reader, model, optimizer, rate, task, teacher,
        epoch_steps, create, single, shardings,
    )  # fmt: skip


def _check_data(config: TrainConfig, dataset: Dataset, task: Task, reader: ReaderOptions) -> None:
    """Raises InputError for an augmentation or options of reading that the images or targets do not allow."""
    augmentation = config.augmentation
    augmentation.result_shape(dataset.image_shape)  # raises InputError if the crop does not fit
    check_shift('test_shift', config.data.test_shift, dataset.image_shape)
    for name in ('mixup', 'cutmix'):
        if config.batch_size == 1 and (value := getattr(augmentation, name)):
            raise InputError(f'{name}={value} mixes the images of a batch, but batch_size is 1')
    steps = config.reporting.steps_per_call
    if dataset.image_size is not None and steps > 1:
        raise InputError(
            f'steps_per_call={steps} applies only to images in memory; {dataset.name} has photographs, which are read'
            ' during training'
        )
    if dataset.image_size is None and reader != THREAD_READER:
        chosen = f'num_workers={reader.workers}' if reader.workers else 'strict_data=True'
        raise InputError(f'{chosen} applies only to photographs; {dataset.name} is in memory')
    if dataset.image_size is not None and augmentation.views > 1 and augmentation.resized_crop is not None:
        raise InputError(
            f'views={augmentation.views} cannot be combined with crop_area for photographs: views would share the crop'
        )
    if dataset.train.labels is None and not task.needs_targets:
        for name in ('mixup', 'cutmix'):
            if value := getattr(augmentation, name):
                raise InputError(f'{name}={value} mixes targets, but dataset {dataset.name} has none')


def _make_teacher(spec: ResNetSpec, config: TrainConfig, dataset: Dataset, task: Task, resumed: bool) -> Teacher:
    settings = config.distillation
    assert settings is not None
    name, source = settings.distill_from, open_weights(settings.distill_from, spec)
    model, _ = model_of(source, name)
    check_outputs(name, source, model.spec.head.num_classes, spec.head.num_classes, task)
    if not resumed:
        check_classes(name, source, dataset, config.data.dataset, settings.distill_classes_match)
    return Teacher(name, source, model, dataset)


def open_weights(path_or_id: str, spec: ResNetSpec, prefix: str | None = None) -> Source:
    """Opens weights like ``open_source``; block classes that a run needs are taken from the specification."""
    path, recorded = pathlib.Path(path_or_id), set[str]()
    if path.is_dir():
        stages = read_record(run_and_step(path)[0]).get('spec', {}).get('stages', ())
        recorded = {stage.get('block') for stage in stages}
    # Only the blocks that the run uses; others would raise an error.
    blocks = [value for value in given_block(spec) or () if qualified_name(value) in recorded]
    return open_source(path_or_id, block=blocks or None, prefix=prefix)


def run_key(seed: Any) -> jax.Array:
    """The root of a run's random keys.

    It does not depend on ``jax_default_prng_impl``: only Threefry draws the same numbers for an image in every batch.
    """
    return jax.random.key(seed, impl='threefry2x32')


def init_key(seed: Any) -> jax.Array:
    """The random key of a run's initial weights."""
    return jax.random.fold_in(run_key(seed), INIT)


def objective_task(config: TrainConfig, statistics: dict[str, Any]) -> Task:
    """The task of a configuration, with the ``statistics`` of the training targets."""
    objective = config.objective
    loss = None if callable(objective.loss) else objective.loss
    return make_task(objective.task, loss, objective.label_smoothing, objective.target_threshold, statistics)


def make_model(spec: ResNetSpec, config: TrainConfig) -> ResNet:
    """The network of a specification, computed as the configuration says."""
    execution, freeze = config.execution, config.start.freeze
    equal_shapes = not spec.blocks.channels and freeze is None
    if execution.scan_blocks and not equal_shapes:
        raise InputError('scan_blocks=True is not supported with pruned or frozen blocks')
    deep = equal_shapes and max(stage.size for stage in spec.stages) >= _SCAN_FROM
    scan = deep if execution.scan_blocks is None else execution.scan_blocks
    dtype = jnp.dtype(execution.compute_dtype)
    return ResNet(spec, dtype, execution.implementation, execution.statistics, scan, execution.remat, freeze)


def normalize_for_run(
    dataset: Dataset, config: TrainConfig, source: Source | None, record: dict[str, Any] | None
) -> Dataset:
    """The dataset with the mean and standard deviation that a run normalizes images with.

    They come from the run's record if it was started before, otherwise from the configuration, the source of the
    weights, or the dataset, in this order.

    Raises:
      InputError: the dataset was loaded for another task, or the numbers do not match the channels.
    """
    if task_name(dataset.task) != task_name(config.objective.task):
        asked = get_task(config.objective.task).name
        raise InputError(f'dataset {dataset.name} was loaded for task={dataset.task.name}; got task={asked}')
    if record is not None:
        recorded = record['dataset']
        return dataclasses.replace(dataset, mean=tuple(recorded['mean']), std=tuple(recorded['std']))
    origin = source if source and len(source.mean) == dataset.image_shape[-1] else dataset
    mean, std = config.data.mean, config.data.std
    return normalized(dataset, origin.mean if mean is None else mean, origin.std if std is None else std)


def normalized(dataset: Dataset, mean: Sequence[float], std: Sequence[float]) -> Dataset:
    """The dataset with another mean and standard deviation.

    Raises:
      InputError: the numbers do not match the channels of the images.
    """
    for name, values in (('mean', mean), ('std', std)):
        if len(values) != dataset.image_shape[-1]:
            channels = dataset.image_shape[-1]
            raise InputError(f'{name}={tuple(values)} must have one number per image channel ({channels})')
    return dataclasses.replace(dataset, mean=tuple(mean), std=tuple(std))


def dataset_record(dataset: Dataset) -> dict[str, Any]:
    """The entries of a dataset in the record of a run."""
    return {
        'num_train_examples': len(dataset.train),
        'num_test_examples': len(dataset.test),
        'image_shape': dataset.image_shape,
        'photographs': dataset.image_size is not None,
        'class_names': dataset.class_names,
        'target_statistics': dataset.target_statistics(),
        'mean': dataset.mean,
        'std': dataset.std,
    }


def keeps_head_of(source: Source, plan: Plan) -> bool:
    """Whether to keep the last layer of the source; warns of another task, or of classes that differ or are unknown."""
    if source.task not in (None, task_name(plan.task)):
        warnings.warn(f'replacing the head: it was trained for {source.task}, not {plan.task.name}', stacklevel=2)
        return False
    num_classes = match_tensors(source.tensors, plan.model, prefix=source.prefix).num_classes
    if num_classes == plan.model.spec.head.num_classes:
        name, last = plan.config.data.dataset, 'set new_head to replace it'
        if reason := class_difference(source, plan.dataset, name):
            warnings.warn(f'keeping the head although {reason}; {last}', stacklevel=2)
        elif not source.class_names:
            warnings.warn(
                f'keeping the head: assuming that its outputs are the {num_classes} classes of {name} in this order;'
                f' {last}',
                stacklevel=2,
            )
    return True
