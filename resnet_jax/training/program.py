"""The compiled programs of a run, and its data on the devices."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.augment import Augmentation, augment, example_keys
from resnet_jax.data.batches import copy_numbers, steps_per_epoch
from resnet_jax.data.examples import Dataset
from resnet_jax.data.mixing import mix
from resnet_jax.errors import InputError
from resnet_jax.models.cost import multiply_adds
from resnet_jax.models.resnet import ResNet, ResNetSpec, init_variables, stack_blocks, unstack_blocks
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.cost import Cost
from resnet_jax.training.evaluation import StatisticsEstimator, make_task, target_statistics
from resnet_jax.training.feed import BY_THREADS, ArrayFeed, PhotographFeed, Reading
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.sharding import fetch, place, replicated, split_evenly
from resnet_jax.training.step import StepOptions, TrainState, create_train_state, train_step
from resnet_jax.weights import Source, model_of, open_source, source_variables

# Purposes of random numbers: each has its own key, folded from the run's root key.
_INIT, _AUGMENT, _DROPOUT, _MIXING = range(4)
# Stages of so many blocks are compiled as a loop: resnet110 and deeper.
_SCAN_FROM = 16

StepFunction = Callable[[TrainState, int], tuple[TrainState, dict[str, Any]]]


class Program:
    """A run on the devices, or several that differ in their seeds alone and take every step together.

    The state of several has one more axis in front of every array, ``[seeds, …]``, and so have the sums of a step.

    Args:
      spec: architecture, with the dataset's number of outputs.
      config: everything else but the seeds.
      seeds: one for each run.
      dataset: with the mean and deviation that the run normalizes with.
      mesh: of the devices.
      reading: how photographs are read.

    Raises:
      InputError: what is wrong with the network, the optimizer, the batch size or the teacher.
    """

    def __init__(
        self,
        spec: ResNetSpec,
        config: TrainConfig,
        seeds: Sequence[int],
        dataset: Dataset,
        mesh: Any,
        reading: Reading = BY_THREADS,
    ):
        self.config, self.seeds, self.dataset, self.mesh = config, tuple(seeds), dataset, mesh
        self.epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)
        self.total_steps = config.epochs * self.epoch_steps
        self.model = make_model(spec, config)
        self.optimizer = make_optimizer(config, self.epoch_steps)
        self.task = make_task(config, *target_statistics(dataset))
        self._trained_shape = Augmentation.of(config).result_shape(dataset.image_shape)
        self._reading = reading
        self.feed: ArrayFeed | PhotographFeed | None = None
        self.compile_seconds = 0.0
        self._each = together if len(self.seeds) > 1 else (lambda function: function)
        self._seeds = np.asarray(self.seeds if len(self.seeds) > 1 else self.seeds[0], np.uint32)
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        self._single = jax.eval_shape(self._create, seed)  # raises what is wrong with the network or with freeze
        self._like = jax.eval_shape(self._each(self._create), self._seeds)
        self._shardings = self._place_state()
        self._teacher = None if config.distill_from is None else Teacher(config.distill_from, spec, dataset)

    def _create(self, seed: jax.Array, _: Any = ()) -> TrainState:
        variables = self._init(jax.random.fold_in(jax.random.key(seed), _INIT))
        return self._start(variables)

    def _start(self, variables: dict[str, Any]) -> TrainState:
        return create_train_state(variables, self.optimizer, average=self.config.ema_decay is not None)

    def _init(self, key: jax.Array) -> dict[str, Any]:
        return init_variables(self.model, key, self.dataset.image_shape)

    def _place_state(self) -> TrainState:
        whole = jax.tree.map(lambda _: replicated(self.mesh), self._like)
        if not self.config.shard_optimizer:
            return whole
        split = jax.tree.map(lambda leaf: split_evenly(self.mesh, leaf.shape), self._like.opt_state)
        return dataclasses.replace(whole, opt_state=split)

    def load(self, source: Source) -> list[dict[str, Any]]:
        """Variables for the network of each seed from a source of weights; only a new head depends on the seed."""
        channels, loaded = self.dataset.image_shape[-1], []
        for seed in self.seeds:
            key = jax.random.fold_in(jax.random.key(seed), _INIT)
            variables = source_variables(source, str(self.config.init_from), self.model, channels, key)
            if self.config.new_head or not self._wants_head_of(source):
                head = self._init(key)['params']['head']
                variables = variables | {'params': variables['params'] | {'head': head}}
            loaded.append(variables)
        return loaded

    def _wants_head_of(self, source: Source) -> bool:
        """Whether the last layer of one of our runs says what this run is to learn; said aloud where it is doubtful."""
        if source.task not in (None, self.config.task):
            warnings.warn(f'a new head for {self.config.task} in the place of one for {source.task}', stacklevel=2)
            return False
        fits = source.num_classes == self.model.spec.num_classes
        if fits and source.class_names and source.class_names != self.dataset.class_names:
            warnings.warn('the head is kept, though the classes have other names; new_head starts afresh', stacklevel=2)
        return True

    def initial_state(self, loaded: Sequence[dict[str, Any]] | None) -> TrainState:
        """The state before the first step, on the devices, from given variables of each seed or fresh ones."""
        if loaded is not None:
            return self.state_from([jax.device_get(self._start(variables)) for variables in loaded])
        start = time.perf_counter()
        state = jax.jit(self._each(self._create), out_shardings=self._shardings)(self._seeds)
        self.compile_seconds += time.perf_counter() - start
        return state

    @property
    def saved_like(self) -> TrainState:
        """Shapes and dtypes of what ``saved_states`` gives for each seed."""
        return jax.eval_shape(unstack_blocks, self._single) if self.model.scan_blocks else self._single

    def saved_states(self, state: TrainState) -> list[TrainState]:
        """The state of each seed as NumPy arrays, the same whether blocks are scanned or not."""
        host = fetch(state, self.mesh)
        hosts = [host] if len(self.seeds) == 1 else [take(host, index) for index in range(len(self.seeds))]
        return [unstack_blocks(one) for one in hosts] if self.model.scan_blocks else hosts

    def state_from(self, saved: Sequence[TrainState]) -> TrainState:
        """The inverse of ``saved_states``."""
        hosts = [stack_blocks(one) for one in saved] if self.model.scan_blocks else list(saved)
        host = hosts[0] if len(hosts) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *hosts)
        return place(host, self._shardings)

    def eval_variables(self, state: TrainState) -> list[dict[str, Any]]:
        """What is evaluated of each seed."""
        variables = state.eval_variables
        return [variables] if len(self.seeds) == 1 else [take(variables, i) for i in range(len(self.seeds))]

    def with_statistics(self, state: TrainState, estimate: StatisticsEstimator, poll: Callable[[], None]) -> TrainState:
        """The state whose average has running statistics that were found anew; ``poll`` may raise meanwhile."""
        # From the trained network's own, so that what is found depends on nothing but this state.
        begin = dataclasses.replace(state, average=state.average | {'batch_stats': state.batch_stats})
        found = [fetch(estimate(one, poll)['batch_stats'], self.mesh) for one in self.eval_variables(begin)]
        stats = found[0] if len(found) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *found)
        return dataclasses.replace(state, average=state.average | {'batch_stats': place(stats, replicated(self.mesh))})

    def compile_step(self, state: TrainState) -> StepFunction:
        """``(state, step) -> (state, sums)``; the state that goes in is given up."""
        feed = self.feed = self._make_feed()
        teacher = {} if self._teacher is None else place(self._teacher.variables, replicated(self.mesh))
        shared = feed.shared, teacher
        seeds = place(self._seeds, replicated(self.mesh))
        each = self._each(self._step)

        def program(state: TrainState, seeds: jax.Array, batch: Any, shared: Any) -> Any:
            return each((state, seeds, batch), shared)

        start = time.perf_counter()
        outputs = (self._shardings, replicated(self.mesh))
        jitted = jax.jit(program, donate_argnums=0, out_shardings=outputs)
        first = min(int(np.max(jax.device_get(state.step))), self.total_steps - 1)  # a run may be at its end
        compiled = jitted.lower(state, seeds, feed.peek(first), shared).compile()
        self.compile_seconds += time.perf_counter() - start
        self._step_memory = compiled.memory_analysis()
        return lambda state, step: compiled(state, seeds, feed.batch(step), shared)

    def _make_feed(self) -> ArrayFeed | PhotographFeed:
        how = self.dataset, self.config, self.seeds, self.mesh
        if self.dataset.image_size is None:
            return ArrayFeed(*how)
        return PhotographFeed(*how, self._reading, self.total_steps)

    def close(self) -> None:
        """Ends what reads ahead."""
        if self.feed is not None:
            self.feed.close()

    def _step(self, mapped: tuple[TrainState, jax.Array, Any], shared: Any) -> Any:
        """One step of one seed: gathers its examples, augments, mixes, teaches, trains."""
        (state, seed, given), (stored, teacher) = mapped, shared
        feed, config, key = self.feed, self.config, jax.random.key(seed)
        assert feed is not None
        images, labels, indices = feed.examples(stored, given)
        dropout, mixing = (
            jax.random.fold_in(jax.random.fold_in(key, purpose), state.step) for purpose in (_DROPOUT, _MIXING)
        )
        # What is drawn for an image belongs to its example, epoch and copy, wherever in the batch it lies.
        epoch, copies = state.step // self.epoch_steps, copy_numbers(len(indices), config.augmentation_repeats)
        keys = example_keys(jax.random.fold_in(key, _AUGMENT), epoch, indices, jnp.asarray(copies))
        image = augment(keys, images, self.dataset.mean, self.dataset.std, feed.augmentation)
        batch = {'image': image, 'label': labels}
        if config.mixup or config.cutmix:
            outputs = jnp.zeros((len(indices), self.model.spec.num_classes))  # for its shape alone
            targets = self.task.dense_targets(outputs, batch['label'])
            mixed = mix(mixing, image, targets, config.mixup, config.cutmix)
            batch |= dict(zip(('image', 'target'), mixed, strict=True))
        if self._teacher is not None:
            batch['teacher'] = self._teacher.outputs(teacher, batch['image'])
        how: dict[str, Any] = {'model': self.model, 'optimizer': self.optimizer, 'task': self.task}
        state, sums = train_step(state, batch, **how, key=dropout, options=step_options(config))
        return state, sums | feed.counts(given)

    def cost(self) -> Cost:
        """What the compiled step costs."""
        return Cost(
            num_parameters=sum(leaf.size for leaf in jax.tree.leaves(self._single.params)),
            multiply_adds=multiply_adds(self.model, self._trained_shape),
            step_bytes=getattr(self._step_memory, 'temp_size_in_bytes', 0),
            compile_seconds=self.compile_seconds,
            device_kind=self.mesh.devices.flat[0].device_kind,
            num_devices=self.mesh.size,
        )


class Teacher:
    """A second network, whose outputs the first one learns from.

    Args:
      path_or_id: of its weights, as in ``weights.open_source``.
      spec: of the network that learns.
      dataset: as that network sees it.

    Raises:
      InputError: no such weights, or those of a network for other classes or images.
    """

    def __init__(self, path_or_id: str, spec: ResNetSpec, dataset: Dataset):
        source = open_source(path_or_id)
        if source.task not in (None, dataset.task):
            raise InputError(f'distill_from={path_or_id} was trained for {source.task}, not for {dataset.task}')
        self.model, _ = model_of(source, path_or_id)
        if self.model.spec.num_classes != spec.num_classes:
            raise InputError(
                f'distill_from={path_or_id} has {self.model.spec.num_classes} outputs, not {spec.num_classes}'
            )
        self.variables = source_variables(source, path_or_id, self.model, dataset.image_shape[-1])
        brought = source if len(source.mean) == dataset.image_shape[-1] else dataset
        # From the student's normalization to the teacher's own.
        std = np.asarray(brought.std, np.float32)
        self._scale = np.asarray(dataset.std, np.float32) / std
        self._offset = (np.asarray(dataset.mean, np.float32) - np.asarray(brought.mean, np.float32)) / std

    def outputs(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Outputs ``[N, K]`` for images that are normalized for the student."""
        images = images * self._scale[None, None, None] + self._offset[None, None, None]
        outputs: Any = self.model.apply(variables, images, train=False)
        return outputs


def prepared(dataset: Dataset, config: TrainConfig, source: Source | None, record: dict[str, Any] | None) -> Dataset:
    """The dataset, normalized as a run needs it: as its record says, where it has begun."""
    if dataset.task != config.task:
        raise InputError(f'task={config.task} cannot be learned of {dataset.name}, which was loaded for {dataset.task}')
    if record is None:
        return normalized_as(dataset, config, source)
    recorded = record['dataset']
    return dataclasses.replace(dataset, mean=tuple(recorded['mean']), std=tuple(recorded['std']))


def described(dataset: Dataset) -> dict[str, Any]:
    """What the record of a run says of a dataset."""
    target_mean, target_std = target_statistics(dataset)
    return {
        'num_train_examples': len(dataset.train),
        'num_test_examples': len(dataset.test),
        'image_shape': dataset.image_shape,
        'photographs': dataset.image_size is not None,
        'class_names': dataset.class_names,
        'target_mean': target_mean,
        'target_std': target_std,
        'mean': dataset.mean,
        'std': dataset.std,
    }


def normalized_as(dataset: Dataset, config: TrainConfig, source: Source | None = None) -> Dataset:
    """The dataset with the mean and deviation that the configuration, or else the source of the weights, asks for.

    Raises:
      InputError: not one number for each channel of the images.
    """
    brought = source if source and len(source.mean) == dataset.image_shape[-1] else dataset
    channels: dict[str, Any] = {}
    for name in ('mean', 'std'):
        asked = getattr(config, name)
        values = tuple(getattr(brought, name) if asked is None else asked)
        if len(values) != dataset.image_shape[-1]:
            raise InputError(f'{name}={values} must be {dataset.image_shape[-1]} numbers, one a channel of the images')
        channels[name] = values
    return dataclasses.replace(dataset, **channels)


def make_model(spec: ResNetSpec, config: TrainConfig) -> ResNet:
    """The network as a configuration has it computed."""
    alike = not spec.channels and config.freeze is None
    if config.scan_blocks and not alike:
        raise InputError('scan_blocks=True: pruned or frozen blocks are not alike; leave it out')
    deep = alike and max(spec.stage_sizes) >= _SCAN_FROM
    scan = deep if config.scan_blocks is None else config.scan_blocks
    options: dict[str, Any] = {'frozen': config.freeze, 'scan_blocks': scan, 'remat': config.remat}
    return ResNet(spec, jnp.dtype(config.compute_dtype), config.implementation, config.statistics, **options)


def step_options(config: TrainConfig) -> StepOptions:
    """The options of a step that a configuration names."""
    names = {field.name for field in dataclasses.fields(StepOptions)} - {'average_statistics'}
    chosen = {name: getattr(config, name) for name in names}
    return StepOptions(**chosen, average_statistics=not config.reestimate_examples)


def together(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(one, shared)`` as a function of many at once, with one more axis in front of ``one`` and the result.

    On a CPU one after the other, in one loop: there is nothing to win by side by side, and batched convolutions are
    those with groups, for which it has no fast form.
    """

    def apply(many: Any, shared: Any = ()) -> Any:
        def of_one(one: Any) -> Any:
            return function(one, shared)

        return jax.lax.platform_dependent(
            many, cpu=lambda many: jax.lax.map(of_one, many), default=lambda many: jax.vmap(of_one)(many)
        )

    return apply


def take(tree: Any, index: int) -> Any:
    """One run's part of what several share."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
