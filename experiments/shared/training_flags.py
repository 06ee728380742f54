"""Flags generated from the settings of ``TrainConfig``, and the settings that parsed flags give.

Flags that are not settings are defined here by hand: those of the architecture, of the run and of multi-process jobs.
No library for flags of nested dataclasses offers absl flags with flat names, one flag for a setting that several
alternatives share, and unset flags that keep the recipe's value.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from resnet_jax import InputError, TrainConfig
from resnet_jax.models.layers import STEMS
from resnet_jax.settings import Choice, Known, all_settings, values_of
from resnet_jax.training.config import WEIGHTS
from resnet_jax.training.recipes import RECIPES

FLAGS = flags.FLAGS

INIT_FROM = f'Weights to load: {WEIGHTS}.'


def define_weights_flags(more: str = '') -> None:
    """Flags of scripts that load weights; ``more`` is added to the help of ``--init_from``."""
    flags.DEFINE_string('init_from', None, INIT_FROM + more)
    flags.DEFINE_string(
        'arch', None, 'Architecture of a weights file that does not record it. Default: read from the weights.'
    )
    define_settings(['weights_prefix'])


def define_settings(names: Iterable[str], default: str | None = None) -> None:
    """Defines a flag for each setting; its value is None if it is not set.

    Args:
      names: names of the settings.
      default: the default as shown in ``--help``; None shows the recipe's, or the value that all recipes share.
    """
    for name in names:
        _define(name, all_settings(TrainConfig)[name], default)


def _define(name: str, known: Known, default: str | None) -> None:
    about = known.about
    text = default or _default_of(name, known)
    if isinstance(about, Choice):
        text = f'{about.help.rstrip(".")}: {", ".join(about.alternatives)}. Default: {text}.'
        flags.DEFINE_string(name, None, text)
        return
    unit = f' [{about.unit}]' if about.unit else ''
    text = f'{about.help.rstrip(".")}{unit}. Default: {text}.'
    lowest = None if about.off is not None else about.at_least  # the value that means None may be lower
    if about.choices:
        flags.DEFINE_enum(name, None, [*([about.off] if about.off else []), *about.choices], text)
    elif about.parse is not None or known.type in (str, object):
        flags.DEFINE_string(name, None, text)
    elif known.type is bool:
        flags.DEFINE_bool(name, None, text)
    elif known.type is int:
        flags.DEFINE_integer(name, None, text, lower_bound=None if lowest is None else int(lowest))
    elif known.type is float:
        flags.DEFINE_float(name, None, text, lower_bound=lowest)
    else:
        flags.DEFINE_list(name, None, text)


def _default_of(name: str, known: Known) -> str:
    """The default as shown in ``--help``: the value that all recipes share, or "the recipe's"."""
    if name in _set_by_recipes() or isinstance(known.about, Choice):
        return "the recipe's"
    if known.default is None or known.default == ():
        return known.about.none or 'none'
    if isinstance(known.default, bool):
        return 'yes' if known.default else 'no'
    return ','.join(map(str, known.default)) if isinstance(known.default, tuple) else str(known.default)


@functools.cache
def _set_by_recipes() -> frozenset[str]:
    """Names of the settings that differ between recipes."""
    values = [values_of(recipe) for recipe in RECIPES.values()]
    names = {name for one in values for name in one}
    return frozenset(name for name in names if len({repr(one.get(name)) for one in values}) > 1)


def define_data_flags(default: str = "the recipe's") -> None:
    """Flags of scripts that read a dataset; ``default`` is the default dataset as shown in ``--help``."""
    define_settings(('dataset',), default)
    flags.DEFINE_string(
        'data_dir', None, "Folder of prepared TFDS datasets. Default: TFDS's default, ~/tensorflow_datasets."
    )
    define_settings(('image_size',), all_settings(TrainConfig)['image_size'].about.none)  # type: ignore[union-attr]


def define_photograph_flags(default: str | None = None) -> None:
    """Flags for preprocessing and reading photographs; ``default`` is shown in ``--help``."""
    define_settings(('crop_pct', 'interpolation'), default)
    flags.DEFINE_bool('strict_data', False, 'Stop at a photograph that cannot be decoded instead of replacing it.')


def define_normalization_flags() -> None:
    """Flags for the mean and standard deviation that images are normalized with."""
    define_settings(('mean', 'std'))


def define_augmentation_flags() -> None:
    """Flags for the augmentation of single images."""
    define_settings(
        name for name in all_settings(type(TrainConfig().augmentation)) if name not in {*BATCH_SETTINGS, *_PYTHON_ONLY}
    )


# Augmentation settings that apply to batches, not to single images.
BATCH_SETTINGS = ('augmentation_repeats', 'views', 'mixup', 'cutmix')
# Settings without a flag: their values are Python objects.
_PYTHON_ONLY = ('function', 'views')


def define_training_flags(arch: str, archs: Sequence[str]) -> None:
    """The flags of a training script.

    Args:
      arch: default of ``--arch``.
      archs: names that the script accepts.
    """
    flags.DEFINE_string('arch', arch, f'Architecture: {", ".join(archs)}.')
    flags.DEFINE_string(
        'recipe',
        None,
        f'Recipe to start from: {", ".join(RECIPES)}. Default: digits_quick for digits, otherwise cifar_fast.',
    )
    define_data_flags()
    define_photograph_flags()
    done = {'dataset', 'image_size', 'crop_pct', 'interpolation', *_PYTHON_ONLY}
    define_settings(name for name in all_settings(TrainConfig) if name not in done)
    _define_network_flags()
    _define_run_flags()


def _define_network_flags() -> None:
    """Flags for parts of the network that every family has."""
    flags.DEFINE_bool('zero_init_last', None, "Initialize residual branches to zero. Default: the architecture's.")
    flags.DEFINE_float(
        'drop_path_rate', None, "Stochastic depth: drop rate of the last block. Default: the architecture's."
    )
    flags.DEFINE_float('drop_block_rate', None, "DropBlock rate in stages 3 and 4 of 4. Default: the architecture's.")
    flags.DEFINE_float('dropout_rate', None, "Dropout rate before the last linear layer. Default: the architecture's.")
    flags.DEFINE_enum('stem', None, list(STEMS), "Stem; cifar is for small images. Default: the architecture's.")


def _define_run_flags() -> None:
    """Flags for the output folder, seeds, reading and multi-process jobs."""
    flags.DEFINE_string('workdir', None, 'Output folder of the run. Default: runs/ARCH-DATASET-seedS.')
    flags.DEFINE_integer(
        'num_seeds',
        None,
        'Train this many seeds, starting at --seed, in one program; report mean and standard deviation.',
    )
    flags.DEFINE_integer('profile_steps', 0, 'Number of steps to profile; the trace goes to WORKDIR/profile.')
    flags.DEFINE_integer(
        'num_workers',
        0,
        'Processes that read and decode training photographs; 0 uses threads. Does not change results.',
        lower_bound=0,
    )
    flags.DEFINE_string(
        'coordinator_address',
        None,
        'HOST:PORT of process 0 in a multi-process job. Detected automatically on TPU pods, SLURM and Open MPI.',
    )
    flags.DEFINE_integer('num_processes', None, 'Number of processes in the job.')
    flags.DEFINE_integer('process_index', None, 'Index of this process, from 0.')


def chosen_settings(names: Iterable[str] | None = None) -> dict[str, Any]:
    """The settings whose flags are set, among all flags of the script or among ``names``.

    Raises:
      InputError: a value that cannot be parsed.
    """
    known = all_settings(TrainConfig)
    chosen = [name for name in known if name in FLAGS] if names is None else names
    return {name: _value_of(name, known[name]) for name in chosen if FLAGS[name].value is not None}


def _value_of(name: str, known: Known) -> Any:
    value: Any = FLAGS[name].value
    about = known.about
    if isinstance(about, Choice):
        return value
    if about.off is not None and str(value) in (about.off, f'{about.off}.0', ''):
        return None
    if about.parse is not None:
        return about.parse(value)
    return numbers_of(name) if known.type is tuple else value


def set_flags(names: Sequence[str]) -> dict[str, Any]:
    """The values of those flags that are set."""
    return {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}


def numbers_of(name: str) -> tuple[float, ...] | None:
    """The numbers of a list flag; None if it is not set."""
    values: list[str] | None = FLAGS[name].value
    if values is None:
        return None
    try:
        return tuple(map(float, values))
    except ValueError as error:
        raise InputError(f'{name}={",".join(values)} must be numbers separated by commas') from error
