"""The flags of the training scripts, made from the settings of ``TrainConfig``, and the settings that they make.

What cannot be made from them stands here: which part of the settings a script takes, the flags of the architecture, and
those of a job. Of what the ecosystem has for flags of nested dataclasses, none has absl's flags under their flat names,
one flag for a setting that several alternatives share, and "what is not set keeps the recipe's value".
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

INIT_FROM = f'Weights: {WEIGHTS}.'


def define_settings(names: Iterable[str], default: str | None = None) -> None:
    """Defines a flag for each of some settings; left unset it is None.

    Args:
      names: of the settings.
      default: whose value counts otherwise; None is the recipe's, or the value that all recipes have.
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
    lowest = None if about.off is not None else about.at_least  # what stands for None may be below it
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
    """In words: the value that all recipes have, or that it is theirs."""
    if name in _set_by_recipes() or isinstance(known.about, Choice):
        return "the recipe's"
    if known.default is None or known.default == ():
        return known.about.none or 'none'
    if isinstance(known.default, bool):
        return 'yes' if known.default else 'no'
    return ','.join(map(str, known.default)) if isinstance(known.default, tuple) else str(known.default)


@functools.cache
def _set_by_recipes() -> frozenset[str]:
    """Settings that recipes do not agree on."""
    values = [values_of(recipe) for recipe in RECIPES.values()]
    names = {name for one in values for name in one}
    return frozenset(name for name in names if len({repr(one.get(name)) for one in values}) > 1)


def define_data_flags(default: str = "the recipe's") -> None:
    """Flags of every script that reads a dataset; ``default`` says whose dataset it reads otherwise."""
    define_settings(('dataset',), default)
    flags.DEFINE_string(
        'data_dir', None, "Folder of prepared TFDS datasets. Default: TFDS's own, ~/tensorflow_datasets."
    )
    define_settings(('image_size',), all_settings(TrainConfig)['image_size'].about.none)  # type: ignore[union-attr]


def define_photograph_flags(default: str | None = None) -> None:
    """How photographs are prepared, and read; ``default`` says whose preparation it is otherwise."""
    define_settings(('crop_pct', 'interpolation'), default)
    flags.DEFINE_bool('strict_data', False, 'Stop at a photograph that cannot be decoded, instead of taking another.')


def define_normalization_flags() -> None:
    """Flags of the scripts in which images may be normalized as other weights want it."""
    define_settings(('mean', 'std'))


def define_augmentation_flags() -> None:
    """What is done to each training image."""
    define_settings(
        name for name in all_settings(type(TrainConfig().augmentation)) if name not in {*OF_BATCHES, *_BY_VALUE_ALONE}
    )


# Settings of the augmentation that are of batches, not of single images.
OF_BATCHES = ('augmentation_repeats', 'views', 'mixup', 'cutmix')
# Settings that only Python can give.
_BY_VALUE_ALONE = ('function', 'views')


def define_training_flags(arch: str, archs: Sequence[str]) -> None:
    """The flags of a training script.

    Args:
      arch: default of ``--arch``.
      archs: the names it takes.
    """
    flags.DEFINE_string('arch', arch, f'Architecture: {", ".join(archs)}.')
    flags.DEFINE_string(
        'recipe',
        None,
        f'Training settings to start from: {", ".join(RECIPES)}. Default: digits_quick for digits, else cifar_fast.',
    )
    define_data_flags()
    define_photograph_flags()
    done = {'dataset', 'image_size', 'crop_pct', 'interpolation', *_BY_VALUE_ALONE}
    define_settings(name for name in all_settings(TrainConfig) if name not in done)
    _define_network_flags()
    _define_run_flags()


def _define_network_flags() -> None:
    """Parts of the network that every family has."""
    flags.DEFINE_bool('zero_init_last', None, "Start residual branches at zero. Default: the architecture's.")
    flags.DEFINE_float('drop_path_rate', None, "Stochastic depth at the last block. Default: the architecture's.")
    flags.DEFINE_float('drop_block_rate', None, "DropBlock in stages 3 and 4 of 4. Default: the architecture's.")
    flags.DEFINE_float('dropout_rate', None, "Dropout in front of the linear layer. Default: the architecture's.")
    flags.DEFINE_enum('stem', None, list(STEMS), "First layers; cifar for small images. Default: the architecture's.")


def _define_run_flags() -> None:
    """Where a run writes, how it reads, and how its processes find each other."""
    flags.DEFINE_string('workdir', None, 'Folder for everything the run writes. Default: runs/ARCH-DATASET-seedS.')
    flags.DEFINE_integer(
        'num_seeds', None, 'Train this many seeds, from --seed on, in one program, and report mean and deviation.'
    )
    flags.DEFINE_integer('profile_steps', 0, 'Trace so many steps into the folder profile of the workdir.')
    flags.DEFINE_integer(
        'num_workers',
        0,
        'Processes that read and decode photographs for training; with 0 threads do. It changes no result.',
        lower_bound=0,
    )
    flags.DEFINE_string(
        'coordinator_address',
        None,
        'HOST:PORT of process 0 of a job of several. On TPU pods, SLURM and Open MPI it is found without flags.',
    )
    flags.DEFINE_integer('num_processes', None, 'How many processes the job has.')
    flags.DEFINE_integer('process_index', None, 'Which of them this is, from 0.')


def chosen_settings(names: Iterable[str] | None = None) -> dict[str, Any]:
    """Settings that flags set: all that the script defines, or some.

    Raises:
      InputError: a flag's text that is no value of its setting.
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
    """Values of those of the flags that are not None."""
    return {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}


def numbers_of(name: str) -> tuple[float, ...] | None:
    """The numbers of a list flag; None where it is not set."""
    values: list[str] | None = FLAGS[name].value
    if values is None:
        return None
    try:
        return tuple(map(float, values))
    except ValueError as error:
        raise InputError(f'{name}={",".join(values)} must be numbers separated by commas') from error
