"""Weights from anywhere: files of PyTorch or BiT, safetensors, the Hugging Face hub, and folders of our own runs.

Whatever the source, it becomes tensors under PyTorch's names first (``models/pretrained.py``); from there one path
checks names and shapes, adapts the head and the first convolution, and gives Flax variables.
"""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.models.architectures import create_model, with_changes
from resnet_jax.models.preprocessing import Preprocessing, from_timm_config
from resnet_jax.models.pretrained import tensors_from_variables, variables_from_tensors
from resnet_jax.models.resnet import ResNet, ResNetSpec, init_variables, unstack_blocks
from resnet_jax.models.weight_files import read_tensors, write_safetensors
from resnet_jax.training import checkpoint
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.step import TrainState, create_train_state
from resnet_jax.training.workdir import CHECKPOINTS, read_record

HUB = 'hf:'


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with its weights.

    Attributes:
      model: the module.
      variables: what ``model.apply`` takes, float32.
      preprocessing: what its images must go through, or None where the source does not say.
      arch: its name.
      test_preprocessing: the same with the larger images that the weights were published with besides, or None.
    """

    model: ResNet
    variables: dict[str, Any]
    preprocessing: Preprocessing | None
    arch: str
    test_preprocessing: Preprocessing | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """What a path or an id leads to.

    Attributes:
      tensors: arrays, or headers alone, under the names of the file.
      arch: the architecture's name, or None where the source does not say.
      spec: that of one of our own runs, else None.
      preprocessing: or None.
      mean: of the pixels it was trained on, 1 being white, one a channel; empty where the source does not say.
      std: likewise.
      task: what one of our own runs was trained for, else None.
      class_names: of its classes, labels or values, else empty.
      headless: the source says that it has no linear layer at the end.
      test_preprocessing: as in ``Pretrained``.
    """

    tensors: dict[str, Any]
    arch: str | None = None
    spec: ResNetSpec | None = None
    preprocessing: Preprocessing | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: str | None = None
    class_names: tuple[str, ...] = ()
    headless: bool = False
    test_preprocessing: Preprocessing | None = None

    @property
    def num_classes(self) -> int | None:
        """K of the last linear layer, or None without one."""
        for name in ('fc.bias', 'head.fc.bias', 'last_linear.bias', 'linear.bias', 'params/head/bias'):
            if name in self.tensors:
                return int(self.tensors[name].shape[0])
        bit = self.tensors.get('resnet/head/conv2d/bias')
        return None if bit is None else int(bit.shape[0])


def open_source(path_or_id: str | os.PathLike, headers_only: bool = False) -> Source:
    """The tensors behind a path or an id, and what else is known of them.

    Args:
      path_or_id: a file as in ``models.weight_files.read_tensors``; the folder of a training run or of one of its
        checkpoints; or ``hf:OWNER/NAME``, with ``@REVISION`` if need be, on the Hugging Face hub.
      headers_only: give names and shapes alone, without reading the values of a file.

    Raises:
      InputError: nothing there, or not what it should be.
    """
    if str(path_or_id).startswith(HUB):
        return _open_hub(str(path_or_id).removeprefix(HUB), headers_only)
    path = pathlib.Path(path_or_id)
    if path.is_dir():
        return _open_run_source(path)
    config, tensors = path.with_name('config.json'), read_tensors(path, headers_only)
    # Beside a file that came from the hub lies timm's; anything may be called so beside another one.
    return _with_config(tensors, config) if _is_of_timm(config) else Source(tensors)


def _open_run_source(path: pathlib.Path) -> Source:
    path, step = run_and_step(path)
    record, spec, config = open_run(path)
    tensors = tensors_from_variables(load_variables(path, 'last' if step is None else step), ResNet(spec))
    data = record['dataset']
    names, mean, std = (tuple(data.get(name, ())) for name in ('class_names', 'mean', 'std'))
    return Source(tensors, record['arch'], spec, None, mean, std, config.task, names)


def run_and_step(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """The folder of a run, and the step where the path is that of one of its checkpoints."""
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def _open_hub(repository: str, headers_only: bool) -> Source:
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InputError(f'{HUB}{repository} needs the package huggingface_hub: pip install huggingface_hub') from error
    name, _, revision = repository.partition('@')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        raise InputError(f'{HUB}{repository} must be {HUB}OWNER/NAME, with @REVISION if need be')

    def download(file: str) -> str:
        return huggingface_hub.hf_hub_download(name, file, revision=revision or None)

    try:
        config = download('config.json')
        try:
            weights = download('model.safetensors')
        except (EntryNotFoundError, FileNotFoundError):
            weights = download('pytorch_model.bin')
    except Exception as error:  # of whichever HTTP client it has: they share no class
        message = ' '.join(str(error).split())
        raise InputError(f'{HUB}{repository} cannot be had: {message[:200]}') from error
    return _with_config(read_tensors(weights, headers_only), pathlib.Path(config))


def _is_of_timm(path: pathlib.Path) -> bool:
    try:
        return 'architecture' in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def _with_config(tensors: dict[str, Any], path: pathlib.Path) -> Source:
    """With what timm's ``config.json`` beside the weights says."""
    try:
        config = json.loads(path.read_text())
        arch, details = config['architecture'], config.get('pretrained_cfg', config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path} is no config.json of timm: it must be JSON with an architecture') from error
    if not isinstance(arch, str):
        raise InputError(f'{path} is no config.json of timm: its architecture must be a name')
    try:
        preprocessing, larger = from_timm_config(details), from_timm_config(details, test_size=True)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    mean, std = preprocessing.mean, preprocessing.std
    headless, tested = config.get('num_classes') == 0, None if larger == preprocessing else larger
    return Source(tensors, arch, None, preprocessing, mean, std, headless=headless, test_preprocessing=tested)


def load_weights(
    path_or_id: str | os.PathLike, model: ResNet, *, in_channels: int | None = None, key: jax.Array | None = None
) -> dict[str, Any]:
    """Variables for a model from a file, a run or the hub.

    Args:
      path_or_id: as in ``open_source``.
      model: the network; another number of classes than the weights' gets a new head, with a warning.
      in_channels: C of its images; another number than the weights' adapts the first kernel, as timm does it. None
        keeps the weights'.
      key: of a new head.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: as ``open_source``; or tensors that are missing, superfluous or of another shape, all of them.
    """
    return source_variables(open_source(path_or_id), str(path_or_id), model, in_channels, key)


def source_variables(
    source: Source, name: str, model: ResNet, in_channels: int | None = None, key: jax.Array | None = None
) -> dict[str, Any]:
    """As ``load_weights``, from a source that is open already; ``name`` is what errors call it."""
    try:
        return variables_from_tensors(source.tensors, model, in_channels, key, headless=source.headless)
    except InputError as error:
        raise InputError(f'{name}: {error}') from error


def from_pretrained(
    path_or_id: str | os.PathLike,
    arch: str | None = None,
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    **overrides: Any,
) -> Pretrained:
    """A network with its weights and the preprocessing that belongs to them.

    Args:
      path_or_id: as in ``open_source``.
      arch: one of ``list_models()``; None where the source says it, which a plain file does not.
      num_classes: K; None keeps the weights'.
      in_channels: C of the images; None keeps the weights'.
      key: of a new head.
      **overrides: for ``create_model``.

    Raises:
      InputError: as ``load_weights``, or an architecture that is not known.
    """
    source = open_source(path_or_id)
    model, arch = model_of(source, str(path_or_id), arch, num_classes, **overrides)
    variables = source_variables(source, str(path_or_id), model, in_channels, key)
    return Pretrained(model, variables, source.preprocessing, arch, source.test_preprocessing)


def model_of(
    source: Source, name: str, arch: str | None = None, num_classes: int | None = None, **overrides: Any
) -> tuple[ResNet, str]:
    """The network that a source's tensors belong to, and its name; arguments as in ``from_pretrained``."""
    classes = source.num_classes if num_classes is None else num_classes
    if classes is None:
        raise InputError(f'{name} has no head; num_classes must say how many classes its network is to have')
    if arch is None and source.spec is not None:
        return ResNet(with_changes(source.spec, num_classes=classes, **overrides)), str(source.arch)
    arch = arch or source.arch
    if arch is None:
        raise InputError(f'{name} does not say which network its tensors belong to; arch must')
    return create_model(arch, classes, **overrides), arch


def save_weights(path: str | os.PathLike, model: ResNet, variables: Any, *, layout: str = 'torch') -> None:
    """Writes a safetensors file, whole or not at all.

    Args:
      path: of the file.
      model: the network.
      variables: what ``model.apply`` takes.
      layout: ``torch``: timm's names, which are torchvision's for its networks, and PyTorch's order of axes;
        ``flax``: our paths, such as ``params/stage1_block1/conv1/kernel``, and our order. ``load_weights`` takes both.

    Raises:
      InputError: an unknown layout, or a place that cannot be written to.
    """
    if layout == 'torch':
        tensors = tensors_from_variables(variables, model)
    elif layout == 'flax':
        leaves = jax.tree_util.tree_flatten_with_path(unstack_blocks(dict(variables)))[0]
        tensors = {jax.tree_util.keystr(p, simple=True, separator='/'): np.asarray(x, np.float32) for p, x in leaves}
    else:
        raise InputError(f'layout={layout!r} must be torch or flax')
    write_safetensors(path, tensors, {'format': 'pt' if layout == 'torch' else 'flax'})


def open_run(workdir: str | pathlib.Path) -> tuple[dict[str, Any], ResNetSpec, TrainConfig]:
    """The record, specification and configuration of an earlier run.

    Raises:
      InputError: the folder is not a training run of this version.
    """
    record = read_record(workdir)
    try:
        return record, ResNetSpec(**record['spec']), TrainConfig(**record['config'])
    except (TypeError, KeyError) as error:
        raise InputError(f'{workdir} is not a run of this version: {error}') from error


def load_variables(workdir: str | pathlib.Path, which: str | int = 'last') -> dict[str, Any]:
    """Parameters and running statistics from the checkpoint of a run: their average, where the run keeps one.

    Args:
      workdir: folder of the run.
      which: ``last``, ``best``, or a step.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: no such run or checkpoint, or a damaged one.
    """
    record, spec, config = open_run(workdir)
    folder = pathlib.Path(workdir) / CHECKPOINTS
    steps = checkpoint.checkpoint_steps(folder)
    step = {'last': steps[-1] if steps else None, 'best': checkpoint.best_step(folder)}.get(str(which), which)
    if not isinstance(step, int):
        raise InputError(f'{workdir} has no {which} checkpoint yet')
    model, optimizer = ResNet(spec), make_optimizer(config, 1)

    def create(key: jax.Array) -> TrainState:
        variables = init_variables(model, key, tuple(record['dataset']['image_shape']))
        return create_train_state(variables, optimizer, average=config.ema_decay is not None)

    like = jax.eval_shape(create, jax.random.key(0))
    return jax.device_put(checkpoint.restore_checkpoint(folder, step, like).eval_variables)
