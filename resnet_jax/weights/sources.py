"""Weights from PyTorch or BiT files, safetensors, the Hugging Face hub, and our own runs.

Every source is first read as tensors under the names of its code base. ``weights/matching.py`` then finds the network
among them, checks shapes, adapts the head and the first convolution, and converts the tensors to Flax variables.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from resnet_jax.checkpoints.record import CONFIG, flat_settings
from resnet_jax.data.examples import Dataset
from resnet_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, from_timm_config
from resnet_jax.errors import InputError, some
from resnet_jax.models.architectures import ARCHITECTURES, create_model, name_of
from resnet_jax.models.flat import with_changes
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.spec import ResNetSpec
from resnet_jax.weights.files import read_tensors, write_safetensors
from resnet_jax.weights.hub import HUB, download
from resnet_jax.weights.matching import match_tensors, variables_from_tensors
from resnet_jax.weights.names import stored_leaves, tensors_from_variables
from resnet_jax.weights.runs import open_run, read_variables, run_and_step


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Weights with their metadata, before a network is built from them.

    Attributes:
      tensors: arrays, or only their headers, under the names of the file.
      arch: name of the architecture, or None if unknown.
      spec: the specification, for one of our runs; else None.
      preprocessing: the preprocessing of photographs, or None if unknown.
      test_preprocessing: the same with the larger images that the weights were also evaluated on, or None.
      mean: mean of the training pixels for each channel, where 1 is white; empty if unknown.
      std: standard deviation, likewise.
      class_names: names of the classes, labels or values, for one of our runs; else empty.
      prefix: which of several networks to load, as in ``match_tensors``; None if there is one.
      record: the content of ``config.json``, for one of our runs; else empty.
      workdir: the folder, for one of our runs; else None.
      checkpoint: ``last``, ``best``, or a step, for one of our runs; else None.
    """

    tensors: dict[str, Any]
    arch: str | None = None
    spec: ResNetSpec | None = None
    preprocessing: Preprocessing | None = None
    test_preprocessing: Preprocessing | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    prefix: str | None = None
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    workdir: pathlib.Path | None = None
    checkpoint: str | int | None = None

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration by setting name, for one of our runs; else empty."""
        return flat_settings(self.record.get('config', {}))

    @property
    def task(self) -> str | None:
        """The name of the task, for one of our runs; else None."""
        return self.settings.get('task')


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pretrained:
    """A network with its weights.

    Attributes:
      model: the Flax module.
      variables: what ``model.apply`` takes, float32.
      arch: name of the architecture.
      preprocessing: the preprocessing of its images, or None if unknown.
      source: the source of the weights with its metadata, without the tensors.
    """

    model: ResNet
    variables: dict[str, Any]
    arch: str = 'custom'
    preprocessing: Preprocessing | None = None
    source: Source = dataclasses.field(default_factory=lambda: Source({}))

    @property
    def test_preprocessing(self) -> Preprocessing | None:
        """``preprocessing`` with the larger images that the weights were also evaluated on, or None."""
        return self.source.test_preprocessing


def open_source(
    path_or_id: str | os.PathLike,
    headers_only: bool = False,
    *,
    which: str | int = 'last',
    block: Any = None,
    prefix: str | None = None,
) -> Source:
    """Reads tensors and their metadata from a file, a run or the Hugging Face hub.

    Args:
      path_or_id: a file, see ``weights.files.read_tensors``; the folder of a run, or of one of its checkpoints; or
        ``hf:OWNER/NAME`` on the Hugging Face hub, optionally with ``@REVISION``.
      headers_only: whether to read only the names and shapes of the tensors in a file.
      which: the checkpoint of a run, unless the path is that of a checkpoint: ``last``, ``best``, or a step.
      block: for runs, as in ``weights.runs.open_run``.
      prefix: which network to load from a file with several, as in ``match_tensors``.

    Raises:
      InputError: the source does not exist or is not valid.
    """
    if str(path_or_id).startswith(HUB):
        config, weights = download(str(path_or_id))
        return _with_config(Source(read_tensors(weights, headers_only), prefix=prefix), config)
    path = pathlib.Path(path_or_id)
    if path.is_dir():
        if prefix is not None:
            raise InputError(f'weights_prefix={prefix}: {path} is a run, which has one network')
        return _open_run_source(path, which, block)
    config, source = path.with_name(CONFIG), Source(read_tensors(path, headers_only), prefix=prefix)
    # Next to a file from the hub, config.json is timm's; next to other files, it may be anything.
    return _with_config(source, config) if _is_timm_config(config) else source


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
    """Variables by our paths, such as ``params/stage1_block1/conv1/kernel``, float32."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x, np.float32) for path, x in leaves}


def _is_timm_config(path: pathlib.Path) -> bool:
    try:
        return 'architecture' in json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, TypeError):
        return False


def _with_config(source: Source, path: pathlib.Path) -> Source:
    """The source with the metadata in timm's ``config.json``."""
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        arch, details = config['architecture'], config.get('pretrained_cfg', config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path} is not a timm config.json: expected JSON with the field architecture') from error
    if not isinstance(arch, str):
        raise InputError(f'{path} is not a timm config.json: architecture must be a string')
    try:
        preprocessing, larger = from_timm_config(details), from_timm_config(details, test_size=True)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    return dataclasses.replace(
        source,
        arch=arch,
        preprocessing=preprocessing,
        test_preprocessing=None if larger == preprocessing else larger,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def normalization_of(source: Source, dataset: Dataset | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation with which a network's input is normalized.

    Args:
      source: the weights. If their normalization is unknown, photographs use ImageNet's mean and deviation, which most
        such weights expect, and images in memory those of the dataset.
      dataset: the dataset of the images; None for photographs.

    Returns:
      Mean and standard deviation for each channel, where 1 is white.
    """
    if source.mean:
        return source.mean, source.std
    if dataset is not None and dataset.image_size is None:
        return dataset.mean, dataset.std
    return IMAGENET_MEAN, IMAGENET_STD


def load_weights(
    path_or_id: str | os.PathLike,
    model: ResNet,
    *,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    prefix: str | None = None,
) -> dict[str, Any]:
    """Loads the variables of a model from a file, a run or the Hugging Face hub.

    What is left out, replaced or adapted gives a warning.

    Args:
      path_or_id: a file (safetensors, PyTorch or ``.npz``); the folder of a run, or of one of its checkpoints; or
        ``hf:OWNER/NAME``, optionally with ``@REVISION``. If a run has a user-supplied block, the model must have it,
        too.
      model: the network. If its number of classes differs from the weights', or they have no linear head, the head is
        initialized.
      in_channels: C of its images. If it differs from the weights', the first kernel is adapted as in timm. None keeps
        the weights' C.
      key: random key of a new head; defaults to ``jax.random.key(0)``.
      prefix: which network to load from a file with several: the prefix of its names, or a part of it, such as
        ``teacher``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: the source does not exist or is not valid, several networks are found, or tensors are missing, have
        other shapes, or belong to further blocks; the message names the first few of them.
    """
    source = open_source(path_or_id, block=given_block(model.spec), prefix=prefix)
    return source_variables(source, str(path_or_id), model, in_channels, key)


def given_block(spec: ResNetSpec) -> Any:
    """The user-supplied blocks of a specification, for ``open_source``; None if there are none."""
    values = [stage.block for stage in spec.stages if not isinstance(stage.block, str)]
    return list(dict.fromkeys(values)) or None


def source_variables(
    source: Source,
    name: str,
    model: ResNet,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    headless: bool = False,
) -> dict[str, Any]:
    """As ``load_weights``, from a source that has been read already.

    Args:
      source: from ``open_source``.
      name: name of the source in messages.
      model: as in ``load_weights``.
      in_channels: as in ``load_weights``.
      key: as in ``load_weights``.
      headless: whether to return no head if the weights have none.

    Raises:
      InputError: as ``load_weights``.
    """
    with _named(source, name, model.spec):
        return variables_from_tensors(source.tensors, model, in_channels, key, headless, source.prefix)


@contextlib.contextmanager
def _named(source: Source, name: str, spec: ResNetSpec) -> Iterator[None]:
    """Adds the name of a source to errors, and the architectures if they differ."""
    try:
        yield
    except InputError as error:
        theirs, ours, differ = source.arch, name_of(spec), ''
        known = source.spec or ARCHITECTURES.get(str(theirs))
        if known is not None and name_of(known) != ours:
            what = 'that run is a' if source.record else 'these are weights of a'
            differ = f'{what} {theirs}, the network is a {ours or "custom one"}: '
        raise InputError(f'{name}: {differ}{error}') from error


def from_pretrained(
    path_or_id: str | os.PathLike,
    arch: str | None = None,
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    which: str | int = 'last',
    block: Any = None,
    prefix: str | None = None,
    headless: bool = False,
    **overrides: Any,
) -> Pretrained:
    """Loads a network with its weights and their preprocessing.

    Args:
      path_or_id: as in ``load_weights``.
      arch: one of ``list_models()``; may be None if the source names it, which plain files do not.
      num_classes: K; None keeps the weights' K. Another head, of any shape, is replaced.
      in_channels: C of the images; None keeps the weights' C.
      key: random key of a new head; defaults to ``jax.random.key(0)``.
      which: the checkpoint of a run: ``last``, ``best``, or a step.
      block: the user-supplied block class of a run; for other sources, passed to ``create_model``.
      prefix: as in ``load_weights``.
      headless: whether weights without a linear head are accepted if ``num_classes`` is None. The variables then have
        no head, and only ``model.features`` can be computed.
      **overrides: passed to ``create_model``.

    Returns:
      The network.

    Raises:
      InputError: as ``load_weights``, an unknown architecture, or there is no head and no number of classes.
    """
    name = str(path_or_id)
    source = open_source(path_or_id, which=which, block=block, prefix=prefix)
    if source.spec is None and block is not None:
        overrides['block'] = block
    model, arch = model_of(source, name, arch, num_classes, headless, **overrides)
    variables = source_variables(source, name, model, in_channels, key, headless and num_classes is None)
    return Pretrained(
        model=model,
        variables=variables,
        arch=arch,
        preprocessing=source.preprocessing,
        source=dataclasses.replace(source, tensors={}),
    )


def model_of(
    source: Source,
    name: str,
    arch: str | None = None,
    num_classes: int | None = None,
    headless: bool = False,
    **overrides: Any,
) -> tuple[ResNet, str]:
    """Builds the network of a source.

    Args:
      source: from ``open_source``.
      name: name of the source in messages.
      arch: as in ``from_pretrained``.
      num_classes: as in ``from_pretrained``.
      headless: as in ``from_pretrained``; the network then has one class.
      **overrides: passed to ``create_model``.

    Returns:
      The network, and the name of its architecture.

    Raises:
      InputError: the architecture or the number of classes is unknown, or the tensors do not fit.
    """
    if arch is None and source.spec is not None:
        classes = source.spec.head.num_classes if num_classes is None else num_classes
        return ResNet(with_changes(source.spec, num_classes=classes, **overrides)), str(source.arch)
    arch = arch or source.arch
    if arch is None:
        raise InputError(f'{name} does not name its architecture: pass arch')
    if num_classes is None:
        model = create_model(arch, 1, **overrides)
        with _named(source, name, model.spec):
            match = match_tensors(source.tensors, model, prefix=source.prefix)
        if match.num_classes is None and not headless:
            old = f'no linear head, but {some(match.old_head)}' if match.old_head else 'no head'
            raise InputError(f'{name} has {old}: pass num_classes for a new one')
        num_classes = match.num_classes or 1
    return create_model(arch, num_classes, **overrides), arch


def save_weights(path: str | os.PathLike, model: ResNet, variables: Any, *, layout: str = 'torch') -> None:
    """Writes the variables of a network to a safetensors file, atomically.

    Args:
      path: path of the file.
      model: the network.
      variables: what ``model.apply`` takes, as nested mappings of arrays of JAX or NumPy. Collections that the network
        does not have are left out, with a warning. The head may be missing.
      layout: ``torch`` for timm's names, which equal torchvision's for its networks, and PyTorch's order of axes;
        ``flax`` for our paths, such as ``params/stage1_block1/conv1/kernel``, and our order of axes. ``load_weights``
        reads both.

    Raises:
      InputError: an unknown layout, the variables of another network, or the file cannot be written.
    """
    if layout == 'torch':
        tensors = tensors_from_variables(variables, model)
    elif layout == 'flax':
        tensors = {path: np.asarray(leaf, np.float32) for path, leaf in stored_leaves(variables, model).items()}
    else:
        raise InputError(f'layout={layout!r} must be torch or flax')
    write_safetensors(path, tensors, {'format': 'pt' if layout == 'torch' else 'flax'})
