"""Code shared by the scripts: training from flags, starting a script, and turning errors into exit statuses."""

import contextlib
import csv
import functools
import hashlib
import io
import logging as python_logging
import os
import pathlib
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TextIO

import jax
from absl import app, flags, logging

from experiments.shared import training_flags
from experiments.shared.environment import compilation_cache
from experiments.shared.flag_names import unknown_flag
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
from resnet_jax.checkpoints.storage import reason
from resnet_jax.data.feeds import ReaderOptions
from resnet_jax.devices import is_main_process, join_processes
from resnet_jax.tasks.kinds import DEFAULT_TASK, get_task
from resnet_jax.text import printable, shown, storable
from resnet_jax.training.seeds import runs_of

FLAGS = flags.FLAGS

_CACHE_WARNING = re.compile(r"Error (reading|writing) persistent compilation cache entry for '.*?': (.*)")
# Flags that are fields of ResNetSpec under the same name.
_SPEC_FLAGS = ('zero_init_last', 'drop_path_rate', 'drop_block_rate', 'dropout_rate', 'stem')


def default_recipe(dataset: str | None, other: str = 'cifar_fast') -> str:
    """The default recipe: digits_quick for digits (None is the default dataset, digits), otherwise ``other``."""
    return 'digits_quick' if dataset in (None, 'digits') else other


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, without a trailing newline; nothing in a cell is taken for markup.

    Names from outside are cells, or parts of cells, as ``text.shown`` returns them.
    """
    lines = ([as_markdown(cell) for cell in row] for row in (columns, ('---',) * len(columns), *rows))
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


class Markdown(str):
    """A text that is Markdown already."""


def code(text: str) -> Markdown:
    """A text in monospaced type, for a cell of a Markdown table."""
    return Markdown('`' + text.replace('|', r'\|') + '`')


def as_markdown(text: str) -> str:
    """A text for a cell of a Markdown table, with a backslash before characters that would be taken for markup."""
    if isinstance(text, Markdown):
        return text
    text = re.sub(r'\\(?=[!-/:-@\[-`{-~])|\||<(?=[a-zA-Z/!?])|&(?=#?\w+;)|\](?=[(\[])', r'\\\g<0>', printable(text))
    for mark in ('`', r'\*', '~', r'\$', r'(?<![^\W_])_|_(?![^\W_])'):  # these mark what is between two of them
        text = re.sub(mark, r'\\\g<0>', text) if len(re.findall(mark, text)) > 1 else text
    return text


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """A CSV table that can be encoded; a name is read back unchanged, or by ``text.unescaped`` if it is not UTF-8."""
    lines = []
    for row in rows:
        line = io.StringIO(newline='')
        # The writer's own end of the line makes it quote carriage returns in cells.
        csv.writer(line).writerow([storable(cell) if isinstance(cell, str) else cell for cell in row])
        lines.append(line.getvalue().removesuffix('\r\n') + '\n')
    return ''.join(lines)


def as_file_name(dataset: str) -> str:
    """A dataset's name in a form that fits into a folder name; a long one ends in a hash instead."""
    name = re.sub(r'[:/\\]', '_', dataset).strip('_')
    whole = os.fsencode(name)
    return name if len(whole) <= 150 else f'{name[:30]}_{hashlib.sha256(whole).hexdigest()[:16]}'


def family(*patterns: str) -> list[str]:
    """Names of the architectures that one of the regular expressions matches as a whole."""
    return [name for name in list_models() if any(re.fullmatch(pattern, name) for pattern in patterns)]


def spec_from_flags(archs: Sequence[str], options: Sequence[str] = ()) -> ResNetSpec:
    """The specification of ``--arch``, changed by the script's flags.

    Args:
      archs: names that the script accepts.
      options: the script's flags that are fields of ResNetSpec.

    Raises:
      InputError: an architecture of another script, or an unknown one.
    """
    if FLAGS.arch in list_models() and FLAGS.arch not in archs:
        raise InputError(f'arch={FLAGS.arch} belongs to another script; this one accepts: {", ".join(archs)}')
    chosen = set_flags([*_SPEC_FLAGS, *options])
    if chosen.get('stem') == 'cifar':
        chosen['stem_pool'] = 'max'  # the only value for a stem without a pool
    return get_spec(FLAGS.arch, **chosen)


def train(spec: ResNetSpec) -> None:
    """Trains with the settings of the flags and prints the test score and the run's folder."""
    join_processes(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_index)
    recipe = FLAGS.recipe or default_recipe(FLAGS.dataset)
    config = get_config(recipe, **chosen_settings())
    dataset = config.data.dataset
    training_flags.check_data_dir(dataset)
    training_flags.check_photograph_flags(dataset)
    task, data = get_task(config.objective.task), as_file_name(dataset)
    seeds = f'seed{config.seed}' if FLAGS.num_seeds is None else f'seeds{config.seed}+{FLAGS.num_seeds}'
    data += '' if task.name == DEFAULT_TASK else f'-{task.name}'
    workdir = FLAGS.workdir or f'runs/{FLAGS.arch}-{data}-{seeds}'
    _check_profile(runs_of(config.seed, pathlib.Path(workdir), FLAGS.num_seeds))
    result = train_and_evaluate(
        spec,
        config,
        workdir,
        num_seeds=FLAGS.num_seeds,
        arch=FLAGS.arch,
        data_dir=FLAGS.data_dir,
        profile_steps=FLAGS.profile_steps,
        reader=ReaderOptions(FLAGS.num_workers, FLAGS.strict_data),
        extend=FLAGS.extend,
    )
    metric = f'test_{task.primary_metric}'
    if FLAGS.num_seeds is None:
        score = f'{result[metric]:.4f} on {result["num_test_examples"]:,} examples'
    else:
        score = f'{result[f"{metric}_mean"]:.4f} ± {result[f"{metric}_std"]:.4f} over {FLAGS.num_seeds} seeds'
    if is_main_process():
        print(f'test {task.primary_metric} {score}; results in {shown(str(workdir))}')


def _check_profile(runs: Sequence[tuple[int, pathlib.Path]]) -> None:
    """Raises InputError if ``--profile_steps`` is set for a finished run that was not profiled."""
    finished = all((folder / 'result.json').exists() for _, folder in runs)
    if FLAGS.profile_steps and finished and not FLAGS.extend and not (runs[0][1] / 'profile').exists():
        raise InputError(
            f'profile_steps={FLAGS.profile_steps} has no effect: the run in {runs[0][1]} is finished;'
            ' choose another --workdir'
        )


def keep_compiled_programs() -> None:
    """Turns on JAX's compilation cache, unless the user turned it off or chose a folder.

    On GPUs, JAX then also keeps the results of autotuning, which take most of the time of a compilation: the algorithms
    of convolutions and the tilings of products that XLA found fastest, one file each in the cache's folder
    ``xla_gpu_per_fusion_autotune_cache_dir``. A changed program is compiled again, but only what is new is timed.
    """
    if not FLAGS.compilation_cache:
        jax.config.update('jax_enable_compilation_cache', False)
    elif 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        try:
            jax.config.update('jax_compilation_cache_dir', str(compilation_cache()))
        except (OSError, RuntimeError) as error:  # not writable, or no home directory
            print(f'compilation cache disabled: {error}', file=sys.stderr)


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> None:
    """Runs a script; a user error prints one line and exits with status 2.

    Args:
      main: called after the flags are parsed.
      define_flags: defines the script's flags.
    """
    define_flags()
    flags.DEFINE_bool(
        'compilation_cache',
        True,
        'Cache compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/resnet_jax.',
    )
    app.run(functools.partial(_run_main, main), flags_parser=functools.partial(_parse_flags, main.__module__))


def print_any_character(stream: TextIO) -> None:
    """Makes a stream print escapes for characters that its encoding lacks, as on Windows, instead of raising."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors='backslashreplace')


def _run_main(main: Callable[[], None], argv: Sequence[str]) -> None:
    """Calls ``main`` and turns its errors into one line and an exit status."""
    warnings.showwarning = functools.partial(_show_warning, set())
    # Its cache is of no importance, and it reports a folder that is not writable in several lines.
    python_logging.getLogger('matplotlib').setLevel(python_logging.ERROR)
    print_any_character(sys.stdout)
    try:
        if len(argv) > 1:
            raise InputError(f'unexpected argument {argv[1]!r}; flags have the form --name=value')
        keep_compiled_programs()
        main()
        sys.stdout.flush()  # here, where a broken pipe is handled
    except InputError as error:
        _exit(f'error: {error}', 2)
    except (DivergenceError, StorageError) as error:
        _exit(f'stopped: {error}', 1)
    except BrokenPipeError:
        _exit_without_reader()
    except OSError as error:  # of a disk, a path or a permission
        if error.errno is None:
            raise
        place = '' if error.filename is None else f'{textwrap.shorten(str(error.filename), 200, placeholder="…")}: '
        _exit(f'stopped: {place}{reason(error)}', 1)
    except (AssertionError, RuntimeError):
        if problem := _missing_device():
            _exit(f'error: {problem}', 2)
        raise
    except Interrupted as interrupted:
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # process 0 must not exit before the others know
        # A compilation may still be running in its thread; an ordinary exit would wait for it or crash.
        _exit_now(str(interrupted), 128 + interrupted.signal)
    except KeyboardInterrupt:
        _exit('interrupted; the same command resumes from the last checkpoint, if there is one', 130)


def _missing_device() -> str | None:
    """Why JAX finds no device of the platforms that are requested; None if it finds one."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # an assertion without a message in some versions
        found = textwrap.shorten(str(error) or 'JAX finds no such device', 200, placeholder=' …')
        return f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}: {found}'
    return None


def _parse_flags(script: str, argv: list[str]) -> list[str]:
    """Parses flags like absl, but reports a bad flag in one line with status 2, like every other user error."""
    modules = (script, *(module for module in FLAGS.flags_by_module_dict() if module.startswith(__package__)))
    own = {flag.name: flag for module in modules for flag in FLAGS.get_flags_for_module(module)}
    for flag in own.values():  # absl's --help shows only the key flags of the main module
        FLAGS.register_key_flag_for_module(argv[0], flag)
    try:
        if _asks_for_help(argv):
            with contextlib.suppress(SystemExit):  # absl exits with status 1 after printing help
                app.parse_flags_with_usage(argv)
            sys.stdout.flush()  # here, where a broken pipe is handled
            sys.exit(0)
        rest = FLAGS(argv)
        if FLAGS['log_dir'].present:  # absl's, without effect here
            raise flags.UnrecognizedFlagError('log_dir')
        if FLAGS['verbosity'].using_default_value:
            logging.set_verbosity(logging.WARNING)  # at INFO, JAX reports every platform it does not find
        return rest
    except flags.UnrecognizedFlagError as error:
        _exit(f'error: {unknown_flag(error.flagname, {*own, "help"}, _command(argv))}', 2)
    except flags.Error as error:
        _exit(f'error: {" ".join(str(error).split())}', 2)
    except BrokenPipeError:
        _exit_without_reader()


def _command(argv: Sequence[str]) -> str:
    """The command's module, from the path of its file."""
    return f'experiments.{pathlib.Path(argv[0]).stem}'


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(arg.lstrip('-').split('=')[0] in ('help', 'helpshort', 'helpfull', 'helpxml') for arg in argv[1:])


def _show_warning(known: set[str], message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning in one line, without its source location; ``known`` are those that are not repeated."""
    text = ' '.join(str(message).split())
    if found := _CACHE_WARNING.fullmatch(text):  # JAX warns again for every program
        where = {'reading': 'read from', 'writing': 'written to'}[found[1]]
        text = f'compiled programs are not {where} the compilation cache: {found[2]}'
        if text in known:
            return
        known.add(text)
    print(printable(f'warning: {text}'), file=sys.stderr)


def _exit(message: str, status: int) -> NoReturn:
    if jax.distributed.is_initialized():  # an ordinary exit would wait for processes that wait for this one
        _exit_now(message, status)
    print(printable(message), file=sys.stderr)
    sys.exit(status)


def _exit_without_reader() -> NoReturn:
    """Ends the process quietly when the reader of its output has exited, as ``head`` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def _exit_now(message: str, status: int) -> NoReturn:
    """Ends the process without cleanup."""
    print(printable(message), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
