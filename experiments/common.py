"""What the training scripts share: flags, and how a script starts and ends."""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from experiments.environment import compilation_cache
from resnet_jax import (
    DivergenceError,
    InputError,
    ResNetSpec,
    StorageError,
    get_config,
    get_spec,
    list_models,
    train_and_evaluate,
    train_seeds,
)
from resnet_jax.models.conv import IMPLEMENTATIONS
from resnet_jax.models.layers import STEMS
from resnet_jax.training.config import AUGMENT_POLICIES, COMPUTE_DTYPES, OPTIMIZERS
from resnet_jax.training.losses import LOSSES
from resnet_jax.training.recipes import RECIPES
from resnet_jax.training.tasks import TASKS

FLAGS = flags.FLAGS

INIT_FROM = (
    'Weights: a file of PyTorch (.pth, .pt, .bin, .th), safetensors or BiT (.npz); the folder of a run or of one of its'
    ' checkpoints; or hf:OWNER/NAME on the Hugging Face hub.'
)


def define_data_flags(default: str = "the recipe's") -> None:
    """Flags of every script that reads a dataset; ``default`` says whose dataset it reads otherwise."""
    flags.DEFINE_string(
        'dataset',
        None,
        'Data to use: digits, a TFDS name such as cifar10, arrays:DIR with train.npz and test.npz (images uint8,'
        f' labels), or synthetic (random, for timing). Default: {default}.',
    )
    flags.DEFINE_string(
        'data_dir', None, "Folder of prepared TFDS datasets. Default: TFDS's own, ~/tensorflow_datasets."
    )
    flags.DEFINE_integer('image_size', None, 'Resize the images to this many pixels a side. Default: as they are.')


def define_normalization_flags() -> None:
    """Flags of the scripts in which images may be normalized as other weights want it."""
    flags.DEFINE_list(
        'mean',
        None,
        'Mean of the pixels to subtract, 1 being white: a number a channel, separated by commas. Default: that of the'
        " weights in --init_from, if they say, else the dataset's.",
    )
    flags.DEFINE_list('std', None, 'Standard deviation to divide by, likewise.')


def _define_network_flags() -> None:
    """How the network is computed, and parts of it that every family has."""
    flags.DEFINE_enum(
        'compute_dtype', None, COMPUTE_DTYPES, 'Dtype of the layers; parameters stay float32. Default: float32.'
    )
    flags.DEFINE_enum(
        'implementation',
        None,
        IMPLEMENTATIONS,
        'auto computes convolutions and normalizations in the forms that are fast on the platform; xla leaves them to'
        ' the compiler. Default: auto.',
    )
    flags.DEFINE_bool(
        'scan_blocks',
        None,
        'Compile the alike blocks of a stage once instead of one after the other. Default: where a stage has 16 blocks'
        ' or more.',
    )
    flags.DEFINE_bool('zero_init_last', None, "Start residual branches at zero. Default: the architecture's.")
    flags.DEFINE_float('drop_path_rate', None, "Stochastic depth at the last block. Default: the architecture's.")
    flags.DEFINE_float('drop_block_rate', None, "DropBlock in stages 3 and 4 of 4. Default: the architecture's.")
    flags.DEFINE_float('dropout_rate', None, "Dropout in front of the linear layer. Default: the architecture's.")
    flags.DEFINE_enum('stem', None, list(STEMS), "First layers; cifar for small images. Default: the architecture's.")


def _define_augmentation_flags() -> None:
    """What is done to the training images."""
    flags.DEFINE_float('mixup', None, "Alpha of mixup; 0 for none. Default: the recipe's.")
    flags.DEFINE_float('cutmix', None, "Alpha of CutMix; 0 for none. Default: the recipe's.")
    flags.DEFINE_integer(
        'crop_padding', None, "Random crops of images padded by so many pixels. Default: the recipe's; 0 in regression."
    )
    flags.DEFINE_bool('horizontal_flip', None, "Mirror half of the images. Default: the recipe's; not in regression.")
    flags.DEFINE_enum(
        'policy',
        None,
        AUGMENT_POLICIES,
        "Operations drawn for each training image. Default: the recipe's; mostly none.",
    )


def define_training_flags(arch: str, archs: Sequence[str]) -> None:
    """The flags of a training script.

    Args:
      arch: default of ``--arch``.
      archs: the names it takes.
    """
    define_data_flags()
    define_normalization_flags()
    _define_network_flags()
    _define_augmentation_flags()
    flags.DEFINE_string('arch', arch, f'Architecture: {", ".join(archs)}.')
    flags.DEFINE_string(
        'recipe',
        None,
        f'Training settings to start from: {", ".join(RECIPES)}. Default: digits_quick for digits, else cifar_fast.',
    )
    flags.DEFINE_enum(
        'task',
        'multiclass',
        list(TASKS),
        'What is learned of each image: its class; yes or no; any number of labels; or numbers. Digits have a target'
        ' for each: the digit, its parity, five attributes, the slant of the writing.',
    )
    flags.DEFINE_enum('loss', None, LOSSES, "Loss, one that goes with the task. Default: the task's usual one.")
    flags.DEFINE_enum('optimizer', None, OPTIMIZERS, "Optimizer. Default: the recipe's.")
    flags.DEFINE_string('workdir', None, 'Folder for everything the run writes. Default: runs/ARCH-DATASET-seedS.')
    flags.DEFINE_integer(
        'epochs',
        None,
        "Passes over the training examples; the schedule is stretched to them. Default: the recipe's.",
    )
    flags.DEFINE_integer('batch_size', None, "Examples in a step, over all devices. Default: the recipe's.")
    flags.DEFINE_float(
        'learning_rate',
        None,
        "Peak learning rate. Default: the recipe's, for regression a fifth of it; 1e-3 with Adam.",
    )
    flags.DEFINE_float('head_learning_rate', None, 'That of the last linear layer. Default: the same.')
    flags.DEFINE_float('warmup_epochs', None, "Epochs of linear warmup. Default: the recipe's.")
    flags.DEFINE_float('weight_decay', None, "L2 coefficient. Default: the recipe's.")
    flags.DEFINE_float('label_smoothing', None, "Share of the target spread over all classes. Default: the recipe's.")
    flags.DEFINE_float(
        'target_threshold', None, 'Of sigmoids: targets above it become 1, others 0. Default: as they are.'
    )
    flags.DEFINE_integer('seed', 0, 'Seed of initialization, order and augmentation.')
    flags.DEFINE_integer('num_seeds', None, 'Train this many seeds, from --seed on, and report mean and deviation.')
    flags.DEFINE_string('init_from', None, INIT_FROM + ' Training starts from them.')
    flags.DEFINE_bool(
        'new_head',
        None,
        'Start the last linear layer afresh although that of --init_from would fit: for other classes, as many.',
    )
    flags.DEFINE_string(
        'freeze',
        None,
        'Regular expression on the beginning of the paths of parameters that stay as they are: stem|stage[1-3].'
        ' Default: none.',
    )
    flags.DEFINE_integer('eval_every_epochs', None, "Epochs between test evaluations. Default: the recipe's.")
    flags.DEFINE_integer('checkpoint_every_epochs', None, "Epochs between checkpoints. Default: the recipe's.")
    flags.DEFINE_integer(
        'log_every_steps', None, "Steps between records of the training metrics. Default: the recipe's."
    )


# Flags that are fields of TrainConfig under the same name; one left unset keeps the recipe's value.
_CONFIG_FLAGS = (
    'dataset',
    'image_size',
    'epochs',
    'batch_size',
    'task',
    'loss',
    'optimizer',
    'learning_rate',
    'head_learning_rate',
    'warmup_epochs',
    'weight_decay',
    'label_smoothing',
    'target_threshold',
    'mixup',
    'cutmix',
    'crop_padding',
    'horizontal_flip',
    'policy',
    'seed',
    'compute_dtype',
    'implementation',
    'scan_blocks',
    'init_from',
    'new_head',
    'freeze',
    'eval_every_epochs',
    'checkpoint_every_epochs',
    'log_every_steps',
)


# Flags that are fields of ResNetSpec under the same name.
_SPEC_FLAGS = ('zero_init_last', 'drop_path_rate', 'drop_block_rate', 'dropout_rate', 'stem')


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


def default_recipe(dataset: str | None) -> str:
    """The recipe where none is asked for; None is the default dataset."""
    return 'digits_quick' if dataset in (None, 'digits') else 'cifar_fast'


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a last line feed."""
    lines = ([cell.replace('|', r'\|') for cell in row] for row in (columns, ('---',) * len(columns), *rows))
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def as_file_name(dataset: str) -> str:
    """A dataset's name as part of a folder's."""
    return dataset.replace(':', '_').replace('/', '_').strip('_')


def family(*patterns: str) -> list[str]:
    """Names of architectures that match one of the patterns, regular expressions for the whole name."""
    return [name for name in list_models() if any(re.fullmatch(pattern, name) for pattern in patterns)]


def spec_from_flags(archs: Sequence[str], options: Sequence[str] = ()) -> ResNetSpec:
    """The architecture of ``--arch`` with the script's own flags on top.

    Args:
      archs: names that the script takes.
      options: the script's own flags that are fields of ResNetSpec.
    """
    if FLAGS.arch in list_models() and FLAGS.arch not in archs:
        raise InputError(f'arch={FLAGS.arch} belongs to another script; this one takes: {", ".join(archs)}')
    chosen = set_flags([*_SPEC_FLAGS, *options])
    if chosen.get('stem') == 'cifar':
        chosen['stem_pool'] = 'max'  # what a stem without a pool has there
    return get_spec(FLAGS.arch, **chosen)


def train(spec: ResNetSpec) -> None:
    """Trains as the flags say, and ends with the line that names the accuracy and the folder."""
    recipe = FLAGS.recipe or default_recipe(FLAGS.dataset)
    config = get_config(recipe, **set_flags(_CONFIG_FLAGS), mean=numbers_of('mean'), std=numbers_of('std'))
    data = as_file_name(config.dataset)
    seeds = f'seed{config.seed}' if FLAGS.num_seeds is None else f'seeds{config.seed}+{FLAGS.num_seeds}'
    data += '' if config.task == 'multiclass' else f'-{config.task}'
    workdir = FLAGS.workdir or f'runs/{FLAGS.arch}-{data}-{seeds}'
    options = {'arch': FLAGS.arch, 'data_dir': FLAGS.data_dir}
    headline = TASKS[config.task].headline
    name = f'test_{headline}'
    if FLAGS.num_seeds is None:
        result = train_and_evaluate(spec, config, workdir, **options)
        shown = f'{result[name]:.4f} on {result["num_test_examples"]:,} examples'
    else:
        result = train_seeds(spec, config, workdir, FLAGS.num_seeds, **options)
        shown = f'{result[f"{name}_mean"]:.4f} ± {result[f"{name}_std"]:.4f} over {FLAGS.num_seeds} seeds'
    print(f'test {headline} {shown}; see {workdir}')


def keep_compiled_programs() -> None:
    """Lets JAX find what it compiled in an earlier run, unless the user said where to keep it, or not to."""
    if not FLAGS.compilation_cache:
        jax.config.update('jax_enable_compilation_cache', False)
    elif 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        try:
            jax.config.update('jax_compilation_cache_dir', str(compilation_cache()))
        except (OSError, RuntimeError) as error:  # not writable, or nobody's home
            print(f'compiled programs are not kept: {error}', file=sys.stderr)


def run(main: Callable[[], None]) -> None:
    """Starts a script; a mistake in what the user gave ends with one line and status 2."""
    flags.DEFINE_bool(
        'compilation_cache',
        True,
        'Keep compiled programs in ~/.cache/resnet_jax, or where JAX_COMPILATION_CACHE_DIR says, for the next run.',
    )

    def guarded(argv: Sequence[str]) -> None:
        warnings.showwarning = _show_warning
        try:
            if len(argv) > 1:
                raise InputError(f'unexpected argument {argv[1]!r}: options are given as --name=value')
            keep_compiled_programs()
            main()
        except InputError as error:
            _exit(f'error: {error}', 2)
        except (DivergenceError, StorageError) as error:
            _exit(f'stopped: {error}', 1)
        except KeyboardInterrupt:
            _exit('interrupted; the same command goes on from the last checkpoint, if there is one', 130)
        except BrokenPipeError:  # whoever read our output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """As absl parses them, but a bad flag is one line and status 2, like every other mistake."""
    for flag in FLAGS.get_flags_for_module(__name__):  # absl's --help shows what the main module calls its own
        FLAGS.register_key_flag_for_module(argv[0], flag)
    try:
        if _asks_for_help(argv):
            with contextlib.suppress(SystemExit):  # absl exits with 1 for a question that was answered
                app.parse_flags_with_usage(argv)
            sys.exit(0)
        rest = FLAGS(argv)
        if FLAGS['verbosity'].using_default_value:
            logging.set_verbosity(logging.WARNING)  # JAX reports every platform it does not find as information
        return rest
    except flags.Error as error:
        _exit(f'error: {" ".join(str(error).split())}', 2)


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(arg.lstrip('-').split('=')[0] in ('help', 'helpshort', 'helpfull', 'helpxml') for arg in argv[1:])


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the place in the source."""
    print(f'note: {message}', file=sys.stderr)


def _exit(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)
