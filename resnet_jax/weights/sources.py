"""Weights from anywhere: files of PyTorch or BiT, safetensors, the Hugging Face hub, and folders of our own runs.

Whatever the source, it becomes tensors under the names of a code base first (``weights/names.py``); from there one
path checks names and shapes, adapts the head and the first convolution, and gives Flax variables.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from resnet_jax.checkpoints.record import CONFIG, flat_settings
from resnet_jax.data.examples import Dataset
from resnet_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, from_timm_config
from resnet_jax.errors import InputError
from resnet_jax.models.architectures import create_model
from resnet_jax.models.flat import with_changes
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.scanned import as_stored
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.weights.files import read_tensors, write_safetensors
from resnet_jax.weights.hub import HUB, download
from resnet_jax.weights.names import tensors_from_variables, variables_from_tensors
from resnet_jax.weights.runs import open_run, read_variables, run_and_step


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What a path or an id leads to, before a network is built of it.

    Attributes:
      tensors: arrays, or headers alone, under the names of the file.
      arch: the architecture's name, or None where the source does not say.
      spec: that of one of our own runs, else None.
      preprocessing: of photographs, or None where the source does not say.
      test_preprocessing: the same with the larger images that the weights were published with besides, or None.
      mean: of the pixels it was trained on, 1 being white, one a channel; empty where the source does not say.
      std: likewise.
      class_names: of the classes, labels or values of one of our own runs, else empty.
      headless: the source says that it has no linear layer at the end.
      record: ``config.json`` of one of our own runs, else empty.
      workdir: the folder of that run, else None.
      checkpoint: of that run: ``last``, ``best``, or a step, else None.
    """

    tensors: dict[str, Any]
    arch: str | None = None
    spec: ResNetSpec | None = None
    preprocessing: Preprocessing | None = None
    test_preprocessing: Preprocessing | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    headless: bool = False
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    workdir: pathlib.Path | None = None
    checkpoint: str | int | None = None

    @property
    def num_classes(self) -> int | None:
        """K of the last linear layer, or None without one."""
        for name in ('fc.bias', 'head.fc.bias', 'last_linear.bias', 'linear.bias', 'params/head/bias'):
            if name in self.tensors:
                return int(self.tensors[name].shape[0])
        bit = self.tensors.get('resnet/head/conv2d/bias')
        return None if bit is None else int(bit.shape[0])

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration of one of our own runs by the names of its settings, else empty."""
        return flat_settings(self.record.get('config', {}))

    @property
    def task(self) -> str | None:
        """What one of our own runs was trained for, else None."""
        return self.settings.get('task')


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pretrained:
    """A network with its weights.

    Attributes:
      model: the module.
      variables: what ``model.apply`` takes, float32.
      arch: its name.
      preprocessing: what its images must go through, or None where the source does not say.
      source: where it comes from, and what is known of it; without the tensors.
    """

    model: ResNet
    variables: dict[str, Any]
    arch: str = 'custom'
    preprocessing: Preprocessing | None = None
    source: Source = dataclasses.field(default_factory=lambda: Source({}))

    @property
    def test_preprocessing(self) -> Preprocessing | None:
        """``preprocessing`` with the larger images that the weights were published with besides, or None."""
        return self.source.test_preprocessing


def open_source(
    path_or_id: str | os.PathLike, headers_only: bool = False, *, which: str | int = 'last', block: Any = None
) -> Source:
    """The tensors behind a path or an id, and what else is known of them.

    Args:
      path_or_id: a file as in ``weights.files.read_tensors``; the folder of a training run or of one of its
        checkpoints; or ``hf:OWNER/NAME``, with ``@REVISION`` if need be, on the Hugging Face hub.
      headers_only: give names and shapes alone, without reading the values of a file.
      which: checkpoint of a run, where the path is not that of one: ``last``, ``best``, or a step.
      block: of a run, as in ``weights.runs.open_run``.

    Raises:
      InputError: nothing there, or not what it should be.
    """
    if str(path_or_id).startswith(HUB):
        config, weights = download(str(path_or_id))
        return _with_config(read_tensors(weights, headers_only), config)
    path = pathlib.Path(path_or_id)
    if path.is_dir():
        return _open_run_source(path, which, block)
    config, tensors = path.with_name(CONFIG), read_tensors(path, headers_only)
    # Beside a file that came from the hub lies timm's; anything may be called so beside another one.
    return _with_config(tensors, config) if _is_of_timm(config) else Source(tensors)


def _open_run_source(path: pathlib.Path, which: str | int, block: Any) -> Source:
    workdir, step = run_and_step(path)
    which = which if step is None else step
    record, spec = open_run(workdir, block)
    data = record['dataset']
    return Source(
        _by_path(read_variables(workdir, which, record, spec)),
        record['arch'],
        spec,
        mean=tuple(data.get('mean', ())),
        std=tuple(data.get('std', ())),
        class_names=tuple(data.get('class_names', ())),
        record=record,
        workdir=workdir,
        checkpoint=which,
    )


def _by_path(variables: Any) -> dict[str, np.ndarray]:
    """Variables by our own paths, such as ``params/stage1_block1/conv1/kernel``, float32."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x, np.float32) for path, x in leaves}


def _is_of_timm(path: pathlib.Path) -> bool:
    try:
        return 'architecture' in json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, TypeError):
        return False


def _with_config(tensors: dict[str, Any], path: pathlib.Path) -> Source:
    """With what timm's ``config.json`` beside the weights says."""
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        arch, details = config['architecture'], config.get('pretrained_cfg', config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path} is not a config.json of timm: it must be JSON with an architecture') from error
    if not isinstance(arch, str):
        raise InputError(f'{path} is not a config.json of timm: its architecture must be a name')
    try:
        preprocessing, larger = from_timm_config(details), from_timm_config(details, test_size=True)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    return Source(
        tensors,
        arch,
        preprocessing=preprocessing,
        test_preprocessing=None if larger == preprocessing else larger,
        mean=preprocessing.mean,
        std=preprocessing.std,
        headless=config.get('num_classes') == 0,
    )


def normalization_of(source: Source, dataset: Dataset | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels that a network wants its images normalized with, one a channel.

    Args:
      source: its weights. Where they say nothing, photographs take ImageNet's, as such weights mostly want it, and
        images in memory the dataset's own.
      dataset: of the images; None for photographs.
    """
    if source.mean:
        return source.mean, source.std
    if dataset is not None and dataset.image_size is None:
        return dataset.mean, dataset.std
    return IMAGENET_MEAN, IMAGENET_STD


def load_weights(
    path_or_id: str | os.PathLike, model: ResNet, *, in_channels: int | None = None, key: jax.Array | None = None
) -> dict[str, Any]:
    """Variables for a model from a file, a run or the hub.

    Args:
      path_or_id: as in ``open_source``. A run whose block was given as a value needs a model of the same.
      model: the network; another number of classes than the weights' gets a new head, with a warning.
      in_channels: C of its images; another number than the weights' adapts the first kernel, as timm does it. None
        keeps the weights'.
      key: of a new head.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: as ``open_source``; or tensors that are missing, superfluous or of another shape, all of them.
    """
    source = open_source(path_or_id, block=given_block(model.spec))
    return source_variables(source, str(path_or_id), model, in_channels, key)


def given_block(spec: ResNetSpec) -> Any:
    """The blocks of a specification as ``open_source`` takes them, if they are values and no names; else None."""
    values = [stage.block for stage in spec.stages if not isinstance(stage.block, str)]
    return list(dict.fromkeys(values)) or None


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
    which: str | int = 'last',
    block: Any = None,
    **overrides: Any,
) -> Pretrained:
    """A network with its weights and the preprocessing that belongs to them.

    Args:
      path_or_id: as in ``open_source``.
      arch: one of ``list_models()``; None where the source says it, which a plain file does not.
      num_classes: K; None keeps the weights'.
      in_channels: C of the images; None keeps the weights'.
      key: of a new head.
      which: checkpoint of a run, as in ``open_source``.
      block: of a run the block class that it was given as a value; else for ``create_model``.
      **overrides: for ``create_model``.

    Raises:
      InputError: as ``load_weights``, or an architecture that is not known.
    """
    name = str(path_or_id)
    source = open_source(path_or_id, which=which, block=block)
    if source.spec is None and block is not None:
        overrides['block'] = block
    model, arch = model_of(source, name, arch, num_classes, **overrides)
    variables = source_variables(source, name, model, in_channels, key)
    return Pretrained(
        model=model,
        variables=variables,
        arch=arch,
        preprocessing=source.preprocessing,
        source=dataclasses.replace(source, tensors={}),
    )


def model_of(
    source: Source, name: str, arch: str | None = None, num_classes: int | None = None, **overrides: Any
) -> tuple[ResNet, str]:
    """The network that a source's tensors belong to, and its name; arguments as in ``from_pretrained``."""
    classes = source.num_classes if num_classes is None else num_classes
    if classes is None:
        raise InputError(f'{name} has no head: give num_classes for a new one')
    if arch is None and source.spec is not None:
        return ResNet(with_changes(source.spec, num_classes=classes, **overrides)), str(source.arch)
    arch = arch or source.arch
    if arch is None:
        raise InputError(f'{name} does not name the architecture of its tensors: give arch')
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
        tensors = _by_path(as_stored(dict(variables)))
    else:
        raise InputError(f'layout={layout!r} must be torch or flax')
    write_safetensors(path, tensors, {'format': 'pt' if layout == 'torch' else 'flax'})
