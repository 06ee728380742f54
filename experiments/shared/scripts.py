"""What the training scripts share: flags, and how a script starts and ends."""

import contextlib
import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

import jax
from absl import app, flags, logging

from experiments.shared import training_flags
from experiments.shared.environment import compilation_cache
from experiments.shared.training_flags import chosen_settings, set_flags
from resnet_jax import (
    DivergenceError,
    InputError,
    Interrupted,
    ResNetSpec,
    StorageError,
    get_config,
    get_spec,
    list_models,
    train_and_evaluate,
)
from resnet_jax.data.feeds import ReaderOptions
from resnet_jax.devices import is_main_process, join_processes
from resnet_jax.tasks.kinds import DEFAULT_TASK, get_task

FLAGS = flags.FLAGS

# Flags that are fields of ResNetSpec under the same name.
_SPEC_FLAGS = ('zero_init_last', 'drop_path_rate', 'drop_block_rate', 'dropout_rate', 'stem')


def default_recipe(dataset: str | None, other: str = 'cifar_fast') -> str:
    """The recipe where none is asked for; ``other`` is that of all but the default dataset, which None stands for."""
    return 'digits_quick' if dataset in (None, 'digits') else other


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a last line feed."""
    lines = ([cell.replace('|', r'\|') for cell in row] for row in (columns, ('---',) * len(columns), *rows))
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def as_file_name(dataset: str) -> str:
    """A dataset's name as part of a folder's."""
    return re.sub(r'[:/\\]', '_', dataset).strip('_')


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
    join_processes(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_index)
    recipe = FLAGS.recipe or default_recipe(FLAGS.dataset)
    settings = chosen_settings()
    config = get_config(recipe, **settings)
    dataset = config.data.dataset
    for name in ('crop_pct', 'interpolation'):
        if name in settings and (dataset in ('digits', 'synthetic') or dataset.startswith('arrays:')):
            raise InputError(f'{name}={settings[name]} is for photographs; {dataset} is in memory')
    task, data = get_task(config.objective.task), as_file_name(dataset)
    seeds = f'seed{config.seed}' if FLAGS.num_seeds is None else f'seeds{config.seed}+{FLAGS.num_seeds}'
    data += '' if task.name == DEFAULT_TASK else f'-{task.name}'
    workdir = FLAGS.workdir or f'runs/{FLAGS.arch}-{data}-{seeds}'
    result = train_and_evaluate(
        spec,
        config,
        workdir,
        num_seeds=FLAGS.num_seeds,
        arch=FLAGS.arch,
        data_dir=FLAGS.data_dir,
        profile_steps=FLAGS.profile_steps,
        reader=ReaderOptions(FLAGS.num_workers, FLAGS.strict_data),
    )
    metric = f'test_{task.primary_metric}'
    if FLAGS.num_seeds is None:
        shown = f'{result[metric]:.4f} on {result["num_test_examples"]:,} examples'
    else:
        shown = f'{result[f"{metric}_mean"]:.4f} ± {result[f"{metric}_std"]:.4f} over {FLAGS.num_seeds} seeds'
    if is_main_process():
        print(f'test {task.primary_metric} {shown}; see {workdir}')


def keep_compiled_programs() -> None:
    """Lets JAX find what it compiled in an earlier run, unless the user said where to keep it, or not to."""
    if not FLAGS.compilation_cache:
        jax.config.update('jax_enable_compilation_cache', False)
    elif 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        try:
            jax.config.update('jax_compilation_cache_dir', str(compilation_cache()))
        except (OSError, RuntimeError) as error:  # not writable, or nobody's home
            print(f'compiled programs are not kept: {error}', file=sys.stderr)


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> None:
    """Starts a script; a mistake in what the user gave ends with one line and status 2.

    Args:
      main: what the script does once its flags are parsed.
      define_flags: defines them.
    """
    define_flags()
    flags.DEFINE_bool(
        'compilation_cache',
        True,
        'Keep compiled programs in ~/.cache/resnet_jax, or where JAX_COMPILATION_CACHE_DIR says, for the next run.',
    )
    app.run(functools.partial(_guarded, main), flags_parser=functools.partial(_parse_flags, main.__module__))


def print_any_character(stream: TextIO) -> None:
    """Makes a stream print escapes for characters that its encoding lacks, as on Windows, instead of raising."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors='backslashreplace')


def _guarded(main: Callable[[], None], argv: Sequence[str]) -> None:
    """Calls ``main``, and turns its errors into one line and a status."""
    warnings.showwarning = _show_warning
    print_any_character(sys.stdout)
    try:
        if len(argv) > 1:
            raise InputError(f'unexpected argument {argv[1]!r}: options are given as --name=value')
        keep_compiled_programs()
        main()
        sys.stdout.flush()  # here, where a reader that has left is no error
    except InputError as error:
        _exit(f'error: {error}', 2)
    except (DivergenceError, StorageError) as error:
        _exit(f'stopped: {error}', 1)
    except Interrupted as interrupted:
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # together: process 0 must not be gone before the others know
        # A compilation may still be under way in its thread, which an ordinary end would wait for or break.
        _leave(str(interrupted), 128 + interrupted.signal)
    except KeyboardInterrupt:
        _exit('interrupted; the same command goes on from the last checkpoint, if there is one', 130)
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _parse_flags(script: str, argv: list[str]) -> list[str]:
    """As absl parses them, but a bad flag is one line and status 2, like every other mistake."""
    # absl's --help shows what the main module calls its own
    for module in (script, __name__, training_flags.__name__, 'experiments.shared.photographs'):
        for flag in FLAGS.get_flags_for_module(module):
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
    if jax.distributed.is_initialized():  # an ordinary end would wait for processes that wait for this one
        _leave(message, status)
    print(message, file=sys.stderr)
    sys.exit(status)


def _leave(message: str, status: int) -> NoReturn:
    """Ends the process at once."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
