"""Trains over a grid of flags, resuming where it stopped; one table, one plot.

python -m experiments.sweep --script=resnet --grid="learning_rate=0.03,0.1,0.3;weight_decay=1e-4,5e-4" --num_seeds=2
python -m experiments.sweep --grid="arch=resnet20,resnet32" --flags="--recipe=cifar_fast --dataset=arrays:DIR"

The same command resumes an interrupted sweep. Separate values that contain commas by bars:
--grid="crop_area=0.08,1|0.35,1".
"""

import contextlib
import hashlib
import itertools
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.shared import commands, scripts
from experiments.shared.comparison import format_mean, spread, write_table
from resnet_jax import InputError, Interrupted
from resnet_jax.checkpoints.record import CONFIG
from resnet_jax.checkpoints.storage import discard, make_folder, read_json, write_json
from resnet_jax.tasks.drawing import labels
from resnet_jax.tasks.kinds import get_task
from resnet_jax.text import printable, without_folders
from resnet_jax.training.report import save_figure

GROUP = 'tools'
FLAGS = flags.FLAGS

SWEEP = 'sweep.json'
# Flags that the sweep sets itself.
_SWEEP_FLAGS = ('seed', 'num_seeds', 'workdir')


def define_flags() -> None:
    flags.DEFINE_string('script', 'resnet', 'Training script to run.')
    flags.DEFINE_string(
        'grid', None, 'Values per flag, FLAG=VALUE,VALUE,…;FLAG=VALUE|VALUE|…; every combination is run.'
    )
    flags.DEFINE_string('flags', '', 'Flags passed to every run.')
    flags.DEFINE_integer('num_seeds', 1, 'Number of seeds per combination, starting at 0.', lower_bound=1)
    flags.DEFINE_string('workdir', 'runs/sweep', 'Folder for the runs, the table and the plot.')
    flags.DEFINE_bool('keep_going', False, 'Continue with the other combinations when one fails.')


def parse_grid(grid: str) -> dict[str, list[str]]:
    """Parses ``--grid`` into flags and their values.

    Raises:
      InputError: a syntax error, a repeated flag, or a flag that the sweep sets itself.
    """
    found: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, grid.split(';'))):
        name, equals, values = part.partition('=')
        name, some = name.strip().lstrip('-'), [value.strip() for value in values.split('|' if '|' in values else ',')]
        if not equals or not re.fullmatch(r'\w+', name) or not all(some):
            raise InputError(f'grid={grid!r}: {part!r} must have the form FLAG=VALUE,VALUE,…')
        if name in found or name in _SWEEP_FLAGS:
            raise InputError(f'grid={grid!r}: {name} ' + ('appears twice' if name in found else 'is set by the sweep'))
        found[name] = some
    if not found:
        raise InputError('--grid is required: flags and values, as in "learning_rate=0.03,0.1;weight_decay=1e-4,5e-4"')
    return found


def run(chosen: dict[str, str], seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Returns the result of one run, after starting or resuming it if it is not finished.

    Raises:
      InputError: the run failed.
      Interrupted: the run was interrupted.
    """
    if not (folder / 'result.json').exists():
        given = [f'--{name}={value}' for name, value in chosen.items()]
        command = [sys.executable, '-m', f'experiments.{FLAGS.script}', *common_flags(), *given]
        command += [f'--seed={seed}', f'--workdir={folder}']
        status, errors = run_and_forward_signals(command)
        if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted(f'stopped in {folder}; the same command resumes there', status - 128)
        if status:
            last = errors.strip().splitlines()[-1:] or [f'exit status {status}']
            raise InputError(f'{shlex.join(command[2:])} failed: {last[0].removeprefix("error: ")}')
    return read_json(folder / 'result.json')


def common_flags() -> list[str]:
    """Parses ``--flags``, the flags of every run.

    Raises:
      InputError: an unclosed quote, or a flag that the sweep sets itself.
    """
    try:
        given = shlex.split(FLAGS.flags)
    except ValueError as error:
        raise InputError(f'flags={FLAGS.flags!r}: {error}') from error
    for flag in given:
        if (name := flag.lstrip('-').partition('=')[0]) in _SWEEP_FLAGS:
            raise InputError(f'flags={FLAGS.flags!r}: {name} is set by the sweep')
    return given


def run_and_forward_signals(command: list[str]) -> tuple[int, str]:
    """Runs a command, forwards each signal to it once, and returns its exit status and stderr."""
    process: subprocess.Popen | None = None
    received: list[int] = []
    early: list[int] = []  # received before the process was started

    def forward(number: int, frame: types.FrameType | None) -> None:
        del frame
        received.append(number)
        if process is None:
            early.append(number)
        elif sys.platform != 'win32':  # on Windows the console has signaled it already
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # In its own session: otherwise a terminal's signals arrive twice, and the second one ends the run at once.
        pipes: dict[str, Any] = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}
        process = subprocess.Popen(command, start_new_session=True, **pipes)
        for number in early:
            process.send_signal(signal.SIGTERM if sys.platform == 'win32' else number)
        _, errors = process.communicate()
        # A signal that arrives before the handlers are installed kills the process.
        return 128 + received[0] if received and process.returncode else process.returncode, errors
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def claim(out: pathlib.Path) -> None:
    """Claims the output folder for this sweep; its grid and seeds may grow.

    Raises:
      InputError: it contains a sweep with another script or other flags.
    """
    path, mine = out / SWEEP, {'script': FLAGS.script, 'flags': common_flags()}
    if has_runs(out) and path.exists() and (there := read_json(path)) != mine:
        command = shlex.join([there['script'], *there['flags']])
        raise InputError(f'workdir={out} contains another sweep ({command}); choose another --workdir')
    make_folder(out)
    write_json(path, mine)


def has_runs(out: pathlib.Path) -> bool:
    """Whether a run of a sweep has started: a mistake in its flags or its data ends it before."""
    return any(out.glob(f'*/seed*/{CONFIG}'))


@contextlib.contextmanager
def removed_if_unused(out: pathlib.Path) -> Iterator[None]:
    """Removes what a sweep wrote to its folder, and the folders that it made, if no run has started."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    finally:
        if not has_runs(out):
            discard(out / SWEEP)
            with contextlib.suppress(OSError):  # not empty
                for folder in made:
                    folder.rmdir()


def folder_names(combinations: Sequence[dict[str, str]]) -> list[str]:
    """The folder name of each combination; no two are equal, even where upper and lower case are the same."""
    names: list[str] = []
    for chosen in combinations:
        name = folder_name(chosen)
        if name.casefold() in {other.casefold() for other in names}:
            name = f'{name[:100]}_{_digest(name)}'
        names.append(name)
    return names


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def folder_name(chosen: dict[str, str]) -> str:
    """A folder name for a combination, short enough for any file system; it differs from all others in any letter."""
    whole = '_'.join(f'{name}={value}' for name, value in chosen.items())
    short = re.sub(r'[^\w.=-]+', '_', whole)
    if short == whole and len(short) <= 120:
        return short
    return f'{short[:100]}_{_digest(whole)}'


def draw(path: pathlib.Path, title: str, grid: dict[str, list[str]], means: np.ndarray, deviations: np.ndarray) -> None:
    """Plots scores over one flag, as a map over two, or over all combinations of more."""
    varied = [name for name, values in grid.items() if len(values) > 1] or list(grid)[:1]
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    axes.set_title(textwrap.fill(title, 80), fontsize=10)
    if len(varied) == 2:
        first, second = (grid[name] for name in varied)
        scores = means.reshape(len(first), len(second))
        image = axes.imshow(scores, cmap='viridis', aspect='auto')
        axes.set(xlabel=varied[1], ylabel=varied[0])
        axes.set_xticks(range(len(second)), labels(map(without_folders, second)))
        axes.set_yticks(range(len(first)), labels(map(without_folders, first)))
        dark = np.nanmean(scores)
        for row, column in np.ndindex(scores.shape):
            text_color = 'white' if scores[row, column] < dark else 'black'
            score = 'failed' if np.isnan(scores[row, column]) else f'{scores[row, column]:.4f}'
            axes.text(column, row, score, ha='center', va='center', color=text_color)
        figure.colorbar(image)
    else:
        names = []
        for values in itertools.product(*grid.values()):
            chosen = (value for name, value in zip(grid, values, strict=True) if name in varied)
            names.append(' '.join(map(without_folders, chosen)))
        axes.errorbar(range(len(names)), means, deviations, fmt='o-' if len(varied) == 1 else 'o', capsize=3)
        axes.set_xticks(range(len(names)), labels(names, 40), rotation=0 if len(names) < 8 else 60)
        axes.set(xlabel=', '.join(varied))
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def main() -> None:
    networks = [command.name for command in commands.list_commands() if command.group == 'networks']
    if FLAGS.script not in networks:
        raise InputError(f'script={FLAGS.script} must be one of the training scripts: {", ".join(networks)}')
    grid, out = parse_grid(FLAGS.grid or ''), pathlib.Path(FLAGS.workdir)
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    with removed_if_unused(out):
        claim(out)
        rows, means, deviations = run_all(combinations, out)
    given = (flag.partition('=') for flag in common_flags())
    command = ' '.join([FLAGS.script, *(name + equals + without_folders(value) for name, equals, value in given)])
    title = f'{command}, {FLAGS.num_seeds} seed' + 's' * (FLAGS.num_seeds > 1)
    draw(out / 'sweep.png', title, grid, np.array(means), np.array(deviations))
    facts = {'means': [None if np.isnan(mean) else mean for mean in means], 'deviations': deviations}
    write_table(out, (*grid, 'test score'), rows, **facts)
    print(printable(f'wrote {out / "sweep.png"}'))


def run_all(
    combinations: Sequence[dict[str, str]], out: pathlib.Path
) -> tuple[list[tuple[str, ...]], list[float], list[float]]:
    """Runs every combination with every seed; returns the rows of the table, and mean and deviation of the scores.

    Raises:
      InputError: a run failed, or with ``--keep_going`` every run.
    """
    rows, means, deviations = [], [], []
    names = folder_names(combinations)
    for number, (chosen, folder_of_seeds) in enumerate(zip(combinations, names, strict=True), start=1):
        name = ' '.join(f'{key}={value}' for key, value in chosen.items())
        scores = []
        for seed in range(FLAGS.num_seeds):
            folder = out / folder_of_seeds / f'seed{seed}'
            try:
                result = run(chosen, seed, folder)
            except InputError as error:
                if not FLAGS.keep_going:
                    raise
                print(printable(f'{error}'), file=sys.stderr)
                continue
            metric = get_task(result['task']).primary_metric
            scores.append(result[f'test_{metric}'])
            line = f'[{number}/{len(combinations)}] {name} seed {seed}: test {metric} {scores[-1]:.4f}'
            print(printable(line), flush=True)
        mean, deviation = spread(scores) if scores else (np.array(np.nan), np.array(0.0))
        means.append(float(mean))
        deviations.append(float(deviation))
        score = format_mean(scores) if scores else 'failed'
        if 0 < len(scores) < FLAGS.num_seeds:
            score += f' ({len(scores)} of {FLAGS.num_seeds} seeds)'
        rows.append((*chosen.values(), score))
    if all(np.isnan(means)):
        raise InputError('every run of the sweep failed')
    return rows, means, deviations


if __name__ == '__main__':
    scripts.run(main, define_flags)
