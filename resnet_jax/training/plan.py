"""The plan of a run: everything that is fixed before its first step."""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.checkpoints.record import read_record
from resnet_jax.data.batches import steps_per_epoch
from resnet_jax.data.examples import Dataset
from resnet_jax.data.feeds import ReaderOptions
from resnet_jax.devices import replicated, split_evenly
from resnet_jax.errors import InputError
from resnet_jax.given import qualified_name
from resnet_jax.models.flat import with_changes
from resnet_jax.models.resnet import ResNet, init_variables
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import get_task, make_task, task_name
from resnet_jax.training.config import TrainConfig, optimizer_of
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.step import TrainState, create_train_state
from resnet_jax.weights.runs import run_and_step
from resnet_jax.weights.sources import Source, given_block, model_of, open_source, source_variables

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
    task: Task
    teacher: 'Teacher | None'
    epoch_steps: int
    create: Callable[[jax.Array], TrainState]
    single: TrainState
    shardings: TrainState

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole training."""
        return self.config.epochs * self.epoch_steps

    @property
    def trained_shape(self) -> tuple[int, int, int]:
        """``(H, W, C)`` of the augmented training images."""
        return self.config.augmentation.result_shape(self.dataset.image_shape)


def make_plan(
    spec: ResNetSpec, config: TrainConfig, seeds: Seeds, dataset: Dataset, mesh: Any, reader: ReaderOptions
) -> Plan:
    """Makes the plan of runs that differ only in the seed.

    Args:
      spec: architecture; its number of classes is replaced by what dataset and task need.
      config: everything else except the seeds.
      seeds: the seeds of the runs.
      dataset: the dataset, with the mean and standard deviation that images are normalized with.
      mesh: mesh of the devices.
      reader: how photographs are read.

    Raises:
      InputError: the network, optimizer, augmentation, batch size or teacher is not usable.
    """
    task = objective_task(config, dataset.target_statistics())
    _check_data(config, dataset, task)
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
    teacher = None if config.distillation is None else Teacher(config.distillation.distill_from, spec, dataset, task)
    return Plan(
        config, seeds, dataset, mesh, reader, model, optimizer, task, teacher, epoch_steps, create, single, shardings
    )  # fmt: skip


def _check_data(config: TrainConfig, dataset: Dataset, task: Task) -> None:
    """Raises InputError for an augmentation that the images or targets do not allow."""
    augmentation = config.augmentation
    augmentation.result_shape(dataset.image_shape)  # raises InputError if the crop does not fit
    if dataset.image_size is not None and augmentation.views > 1 and augmentation.resized_crop is not None:
        raise InputError(
            f'views={augmentation.views} cannot be combined with crop_area for photographs: views would share the crop'
        )
    if dataset.train.labels is None and not task.needs_targets:
        for name in ('mixup', 'cutmix'):
            if value := getattr(augmentation, name):
                raise InputError(f'{name}={value} mixes targets, but dataset {dataset.name} has none')


def open_weights(path_or_id: str, spec: ResNetSpec, prefix: str | None = None) -> Source:
    """Opens weights like ``open_source``; block classes that a run needs are taken from the specification."""
    path, recorded = pathlib.Path(path_or_id), set[str]()
    if path.is_dir():
        stages = read_record(run_and_step(path)[0]).get('spec', {}).get('stages', ())
        recorded = {stage.get('block') for stage in stages}
    # Only the blocks that the run uses; others would raise an error.
    blocks = [value for value in given_block(spec) or () if qualified_name(value) in recorded]
    return open_source(path_or_id, block=blocks or None, prefix=prefix)


def init_key(seed: Any) -> jax.Array:
    """The random key of a run's initial weights."""
    return jax.random.fold_in(jax.random.key(seed), INIT)


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


class Teacher:
    """The teacher network for distillation.

    Args:
      path_or_id: its weights, as in ``open_weights``.
      spec: specification of the student.
      dataset: dataset of the student, with its normalization.
      task: task of the student.

    Raises:
      InputError: the weights are not found, or belong to a network for other classes or images.
    """

    def __init__(self, path_or_id: str, spec: ResNetSpec, dataset: Dataset, task: Task):
        source = open_weights(path_or_id, spec)
        if source.task not in (None, task_name(task)):
            raise InputError(f'distill_from={path_or_id} was trained for {source.task}, expected {task.name}')
        self.model, _ = model_of(source, path_or_id)
        outputs, expected = self.model.spec.head.num_classes, spec.head.num_classes
        if outputs != expected:
            raise InputError(f'distill_from={path_or_id} has {outputs} outputs, expected {expected}')
        self.variables = source_variables(source, path_or_id, self.model, dataset.image_shape[-1])
        origin = source if len(source.mean) == dataset.image_shape[-1] else dataset
        # Converts the student's normalization to the teacher's.
        std = np.asarray(origin.std, np.float32)
        self._scale = np.asarray(dataset.std, np.float32) / std
        self._offset = (np.asarray(dataset.mean, np.float32) - np.asarray(origin.mean, np.float32)) / std

    def outputs(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """The teacher's outputs ``[N, K]`` for images normalized for the student."""
        images = images * self._scale[None, None, None] + self._offset[None, None, None]
        outputs: Any = self.model.apply(variables, images, train=False)
        return outputs


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
    """Whether to keep the last layer of the source; warns if it fits another task or other class names."""
    if source.task not in (None, task_name(plan.task)):
        warnings.warn(f'replacing the head: it was trained for {source.task}, not {plan.task.name}', stacklevel=2)
        return False
    fits = source.spec is not None and source.spec.head.num_classes == plan.model.spec.head.num_classes
    if fits and source.class_names and source.class_names != plan.dataset.class_names:
        warnings.warn('keeping the head although class names differ; set new_head to replace it', stacklevel=2)
    return True
