"""The training loop: the only file that logs, times and writes."""

import dataclasses
import functools
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.augment import training_images
from resnet_jax.data.batches import steps_per_epoch, train_indices
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset
from resnet_jax.data.mixing import mix
from resnet_jax.errors import InputError
from resnet_jax.models.resnet import ResNet, ResNetSpec, init_variables, stack_blocks, unstack_blocks
from resnet_jax.training import checkpoint
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.evaluation import Evaluation, make_evaluator, make_task, target_statistics
from resnet_jax.training.log import Log, divergence
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.sharding import check_batch_size, data_mesh, replicated, split_batch
from resnet_jax.training.step import TrainState, create_train_state, train_step
from resnet_jax.training.tasks import TASKS
from resnet_jax.training.workdir import (
    CHECKPOINTS,
    claim_workdir,
    describe_devices,
    describe_run,
    finished_result,
    read_record,
    write_json,
)
from resnet_jax.weights import Source, open_source, source_variables

# Purposes of random numbers: each has its own key, folded from the run's root key.
_INIT, _AUGMENT, _DROPOUT, _POLICY, _MIXING = range(5)
# Stages of so many blocks are compiled as a loop: resnet110 and deeper.
_SCAN_FROM = 16


def train_and_evaluate(
    spec: ResNetSpec,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    arch: str = 'custom',
    data_dir: str | None = None,
    dataset: Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains a network, evaluates it, and leaves everything in a folder; resumes what was interrupted there.

    Args:
      spec: architecture; its ``num_classes`` gives way to what the dataset and the task need.
      config: everything else that changes the result.
      workdir: where the files go: new, empty, or that of the same run.
      arch: the architecture's name, for the record.
      data_dir: where prepared datasets lie; None is TFDS's own folder.
      dataset: the data themselves, in place of ``config.dataset``, which then only names them.
      devices: to train on; None is all of them.

    Returns:
      The content of ``result.json``.

    Raises:
      InputError: a value that cannot be used; the folder is as it was.
      DivergenceError: the loss is not finite; checkpoints and metrics up to there are kept.
    """
    workdir = pathlib.Path(workdir)
    if result := finished_result(workdir, dataclasses.asdict(spec), config):
        print(f'{workdir} is finished: nothing to do')
        return result
    mesh = data_mesh(devices)
    check_batch_size(config.batch_size, mesh)
    if dataset is None:
        where: dict[str, Any] = {'data_dir': data_dir, 'image_size': config.image_size, 'seed': config.seed}
        dataset = load_dataset(config.dataset, task=config.task, **where)
    dataset, source = _with_source(dataset, config, workdir)
    epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)
    spec = dataclasses.replace(spec, num_classes=TASKS[config.task].num_outputs(dataset.num_classes))
    run = _Run(spec, config, dataset, mesh, epoch_steps)  # raises what is wrong with the network
    initial = None if source is None else run.load(source)
    devices = list(mesh.devices.flat)
    claim_workdir(workdir, describe_run(arch, dataclasses.asdict(spec), config, _describe_data(dataset), devices))

    state = run.initial_state(initial)
    folder = workdir / CHECKPOINTS
    checkpoint.remove_partial_checkpoints(folder)
    saved = checkpoint.checkpoint_steps(folder)
    if saved:
        state = run.restore(folder, saved[-1], state)
    log = Log(workdir, run.task, config, epoch_steps, int(state.step))
    try:
        if saved:
            log.display.message(f'resuming {workdir} after step {saved[-1]}')
        test = _train(run, state, log, folder)
        return _finish(run, test, log, workdir, arch)
    finally:
        log.close()


def _with_source(dataset: Dataset, config: TrainConfig, workdir: pathlib.Path) -> tuple[Dataset, Source | None]:
    """The dataset, normalized as the run needs it, and the weights it starts from, if any."""
    if dataset.task != config.task:
        raise InputError(f'task={config.task} cannot be learned of {dataset.name}, which was loaded for {dataset.task}')
    if checkpoint.checkpoint_steps(workdir / CHECKPOINTS):  # which hold everything that the initial weights brought
        recorded = read_record(workdir)['dataset']
        return dataclasses.replace(dataset, mean=tuple(recorded['mean']), std=tuple(recorded['std'])), None
    source = None if config.init_from is None else open_source(config.init_from)
    return normalized_as(dataset, config, source), source


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


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    target_mean, target_std = target_statistics(dataset)
    return {
        'num_train_examples': len(dataset.train),
        'num_test_examples': len(dataset.test),
        'image_shape': dataset.image_shape,
        'class_names': dataset.class_names,
        'target_mean': target_mean,
        'target_std': target_std,
        'mean': dataset.mean,
        'std': dataset.std,
    }


class _Run:
    """A run's compiled programs and its data on the device."""

    def __init__(self, spec: ResNetSpec, config: TrainConfig, dataset: Dataset, mesh: Any, epoch_steps: int):
        self.config, self.dataset, self.mesh, self.epoch_steps = config, dataset, mesh, epoch_steps
        self.total_steps = config.epochs * epoch_steps
        self.model = make_model(spec, config)
        self.optimizer = make_optimizer(config, epoch_steps)
        self.task = make_task(config, *target_statistics(dataset))
        self.root_key = jax.random.key(config.seed)
        self.compile_seconds = 0.0
        state = jax.eval_shape(self._create, self.root_key)  # raises what is wrong with the network or with freeze
        self.num_parameters = sum(x.size for x in jax.tree.leaves(state.params))

    def _create(self, key: jax.Array) -> TrainState:
        return create_train_state(self._init(key), self.optimizer)

    def _init(self, key: jax.Array) -> dict[str, Any]:
        return init_variables(self.model, key, self.dataset.image_shape)

    def load(self, source: Source) -> dict[str, Any]:
        """Variables for this run's network from a source of weights."""
        key = jax.random.fold_in(self.root_key, _INIT)
        channels = self.dataset.image_shape[-1]
        variables = source_variables(source, str(self.config.init_from), self.model, channels, key)
        if self.config.new_head or not self._wants_head_of(source):
            head = self._init(key)['params']['head']
            variables = variables | {'params': variables['params'] | {'head': head}}
        return variables

    def _wants_head_of(self, source: Source) -> bool:
        """Whether the last layer of one of our runs says what this run is to learn; said aloud where it is doubtful."""
        if source.task not in (None, self.config.task):
            warnings.warn(f'a new head for {self.config.task} in the place of one for {source.task}', stacklevel=2)
            return False
        fits = source.num_classes == self.model.spec.num_classes
        if fits and source.class_names and source.class_names != self.dataset.class_names:
            warnings.warn('the head is kept, though the classes have other names; new_head starts afresh', stacklevel=2)
        return True

    def initial_state(self, variables: dict[str, Any] | None) -> TrainState:
        """The state before the first step, on the devices, from given variables or fresh ones."""
        if variables is not None:
            variables = stack_blocks(variables) if self.model.scan_blocks else variables
            return jax.device_put(create_train_state(variables, self.optimizer), replicated(self.mesh))
        key = jax.random.fold_in(self.root_key, _INIT)
        start = time.perf_counter()
        state = jax.jit(self._create, out_shardings=replicated(self.mesh))(key)
        self.compile_seconds += time.perf_counter() - start
        return state

    def save(self, folder: pathlib.Path, step: int, state: TrainState, score: float | None) -> None:
        """Writes a checkpoint, which is the same whether blocks are scanned or not."""
        if self.model.scan_blocks:
            state = unstack_blocks(jax.device_get(state))
        checkpoint.save_checkpoint(folder, step, state, score)

    def restore(self, folder: pathlib.Path, step: int, like: TrainState) -> TrainState:
        """Reads one."""
        if not self.model.scan_blocks:
            return checkpoint.restore_checkpoint(folder, step, like)
        place = replicated(self.mesh)
        single = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            jax.eval_shape(unstack_blocks, like),
        )
        state = checkpoint.restore_checkpoint(folder, step, single)
        return jax.device_put(stack_blocks(jax.device_get(state)), place)

    def compile_train_step(
        self, state: TrainState
    ) -> Callable[[TrainState, int], tuple[TrainState, dict[str, jax.Array]]]:
        """``(state, step) -> (state, sums)``; the state that goes in is given up."""
        config, train = self.config, self.dataset.train
        images, labels, key = jax.device_put((train.images, train.labels, self.root_key), replicated(self.mesh))

        def program(state: TrainState, images: jax.Array, labels: jax.Array, indices: jax.Array, key: jax.Array) -> Any:
            augment, dropout, mixing = (
                jax.random.fold_in(jax.random.fold_in(key, purpose), state.step)
                for purpose in (_AUGMENT, _DROPOUT, _MIXING)
            )
            # What a policy draws belongs to an example and an epoch, wherever in the batch it lies.
            epoch_key = jax.random.fold_in(jax.random.fold_in(key, _POLICY), state.step // self.epoch_steps)
            image = training_images(
                augment,
                images[indices],
                self.dataset.mean,
                self.dataset.std,
                crop_padding=config.crop_padding,
                crop_fill=config.crop_fill,
                horizontal_flip=config.horizontal_flip,
                policy=config.policy,
                example_keys=jax.vmap(functools.partial(jax.random.fold_in, epoch_key))(indices),
            )
            batch = {'image': image, 'label': labels[indices]}
            if config.mixup or config.cutmix:
                outputs = jnp.zeros((len(indices), self.model.spec.num_classes))  # for its shape alone
                targets = self.task.dense_targets(outputs, batch['label'])
                mixed = mix(mixing, image, targets, config.mixup, config.cutmix)
                batch |= dict(zip(('image', 'target'), mixed, strict=True))
            how: dict[str, Any] = {'model': self.model, 'optimizer': self.optimizer, 'task': self.task}
            return train_step(state, batch, **how, key=dropout)

        def indices_of(step: int) -> jax.Array:
            order = train_indices(config.seed, step, len(train), config.batch_size)
            return jax.device_put(order, split_batch(self.mesh))

        start = time.perf_counter()
        jitted = jax.jit(program, donate_argnums=0, out_shardings=replicated(self.mesh))
        compiled = jitted.lower(state, images, labels, indices_of(0), key).compile()
        self.compile_seconds += time.perf_counter() - start
        return lambda state, step: compiled(state, images, labels, indices_of(step), key)


def make_model(spec: ResNetSpec, config: TrainConfig) -> ResNet:
    """The network as a configuration has it computed."""
    alike = not spec.channels and config.freeze is None
    if config.scan_blocks and not alike:
        raise InputError('scan_blocks=True: pruned or frozen blocks are not alike; leave it out')
    deep = alike and max(spec.stage_sizes) >= _SCAN_FROM
    scan = deep if config.scan_blocks is None else config.scan_blocks
    options: dict[str, Any] = {'frozen': config.freeze, 'scan_blocks': scan}
    return ResNet(spec, jnp.dtype(config.compute_dtype), config.implementation, **options)


def is_due(epoch: int, every: int, last: int) -> bool:
    """Whether something that happens every so many epochs, and after the last, happens after this one (from 1)."""
    return epoch % every == 0 or epoch == last


def _train(run: _Run, state: TrainState, log: Log, folder: pathlib.Path) -> Evaluation:
    """Trains to the end and gives the last evaluation."""
    config, dataset = run.config, run.dataset
    devices = list(run.mesh.devices.flat)
    evaluate = make_evaluator(run.model, dataset.test, dataset.mean, dataset.std, devices, run.task)
    log.display.message(
        f'{config.recipe}: {run.num_parameters:,} parameters, {len(dataset.train):,} training and'
        f' {len(dataset.test):,} test examples, {describe_devices(devices)}; compiling'
    )
    step_fn = run.compile_train_step(state)
    log.start_clock()
    test = None
    for epoch in range(int(state.step) // run.epoch_steps + 1, config.epochs + 1):
        for step in range((epoch - 1) * run.epoch_steps, epoch * run.epoch_steps):
            state, sums = step_fn(state, step)
            log.step(step + 1, sums, last=step + 1 == epoch * run.epoch_steps)
        test = None
        if is_due(epoch, config.eval_every_epochs, config.epochs):
            test = evaluate(state.variables)
            log.test(epoch * run.epoch_steps, test.summary)
        if is_due(epoch, config.checkpoint_every_epochs, config.epochs):
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.variables))):
                raise divergence(f'a weight is not finite after step {epoch * run.epoch_steps}')
            score = None if test is None else test.summary[run.task.headline]
            run.save(folder, epoch * run.epoch_steps, state, score)
            log.start_clock()
    return evaluate(state.variables) if test is None else test


def _finish(run: _Run, test: Evaluation, log: Log, workdir: pathlib.Path, arch: str) -> dict[str, Any]:
    """Writes the picture and the result."""
    from resnet_jax.training.report import draw_report, result_drawing  # Matplotlib takes a third of all import time

    config, dataset, summary, headline = run.config, run.dataset, test.summary, run.task.headline
    evaluations = [record for record in log.file.records if record['split'] == 'test']
    result = {
        **{f'test_{name}': value for name, value in summary.items()},
        f'best_test_{headline}': max((record[headline] for record in evaluations), default=summary[headline]),
        'num_test_examples': len(dataset.test),
        'num_train_examples': len(dataset.train),
        'num_parameters': run.num_parameters,
        'steps': run.total_steps,
        'epochs': config.epochs,
        'train_seconds': log.train_seconds,
        'compile_seconds': run.compile_seconds,
        'examples_per_second': run.total_steps * config.batch_size / log.train_seconds,
        'seed': config.seed,
        'arch': arch,
        'dataset': config.dataset,
        'task': config.task,
        'recipe': config.recipe,
        'device': describe_devices(list(run.mesh.devices.flat)),
    }
    if config.dataset == 'synthetic':
        result['note'] = 'random images and labels, for timing only: the accuracy means nothing'
    title = f'{arch} on {config.dataset}, seed {config.seed}: test {headline} {summary[headline]:.4f}'
    drawing = result_drawing(run.task, test, dataset.test.labels, dataset.class_names)
    draw_report(workdir / 'report.png', title, log.file.records, headline, drawing)
    write_json(workdir / 'result.json', result)
    return result


def train_seeds(
    spec: ResNetSpec, config: TrainConfig, workdir: str | pathlib.Path, num_seeds: int, **kwargs: Any
) -> dict[str, Any]:
    """``train_and_evaluate`` with the seeds ``config.seed``, ``config.seed + 1``, …, one after the other.

    Args:
      spec: architecture.
      config: its seed is the first one.
      workdir: gets a folder ``seedS`` for each, and a ``result.json`` of all.
      num_seeds: how many, at least 1.
      **kwargs: for ``train_and_evaluate``.

    Returns:
      The results of the single runs, and mean and sample standard deviation of the task's headline metric.
    """
    if num_seeds < 1:
        raise InputError(f'num_seeds={num_seeds} must be at least 1')
    workdir = pathlib.Path(workdir)
    if (workdir / 'config.json').exists():
        raise InputError(f'workdir={workdir} holds a single run; choose another folder for num_seeds={num_seeds}')
    seeds = range(config.seed, config.seed + num_seeds)
    runs = []
    for seed in seeds:
        seeded = dataclasses.replace(config, seed=seed)
        runs.append(train_and_evaluate(spec, seeded, workdir / f'seed{seed}', **kwargs))
    headline = TASKS[config.task].headline
    scores = [run[f'test_{headline}'] for run in runs]
    result = {
        f'test_{headline}_mean': float(np.mean(scores)),
        f'test_{headline}_std': float(np.std(scores, ddof=1)) if num_seeds > 1 else 0.0,
        'seeds': list(seeds),
        'runs': runs,
    }
    write_json(workdir / 'result.json', result)
    return result
