"""Plots of a run: training curves, learning rate, and test results."""

import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from resnet_jax.checkpoints.storage import discard
from resnet_jax.tasks.drawing import TEST_COLOUR, draw_text_literally, readable

TRAIN_COLOUR, UNAVERAGED_COLOUR = '#7a8fa6', '#e0a39d'


def draw_report(
    path: pathlib.Path,
    title: str,
    records: Sequence[dict[str, Any]],
    primary_metric: str,
    draw_result: Callable[[Axes], None],
    differences: Sequence[Sequence[str]] = ((), ()),
) -> None:
    """Writes ``report.png``: loss, primary metric and learning rate over epochs, and the test result.

    Args:
      path: output file.
      title: title of the figure.
      records: lines of ``metrics.jsonl``: ``split`` (``train`` or ``test``), ``epoch``, and optionally ``loss``, the
        primary metric, ``learning_rate``, and ``unaveraged_loss`` and the like if averaged weights are evaluated.
      primary_metric: its name.
      draw_result: draws into the fourth panel, like ``Task.draw``.
      differences: what makes the loss and the primary metric in training differ from those of a test, for the legends.
    """
    figure = Figure(figsize=(11, 7.5), layout='constrained')
    figure.suptitle(title)
    loss, score, rate, result = figure.subplots(2, 2).flat
    train = [record for record in records if record['split'] == 'train' and 'loss' in record]
    test = [record for record in records if record['split'] == 'test']
    for axes, name, more in zip((loss, score), ('loss', primary_metric), differences, strict=True):
        label = textwrap.fill(f'training ({", ".join(more)})' if more else 'training', 34)
        _curve(axes, train, name, TRAIN_COLOUR, label)
        plain = [record for record in test if f'unaveraged_{name}' in record]
        _curve(axes, test, name, TEST_COLOUR, 'test, averaged weights' if plain else 'test')
        if plain:
            _curve(axes, plain, f'unaveraged_{name}', UNAVERAGED_COLOUR, 'test, unaveraged weights')
        axes.set_ylabel(name)
        if axes.lines:
            axes.legend()
    if loss.lines:
        _use_logarithm(loss)
    if primary_metric != 'loss':
        _focus_on_the_end(score)
    _curve(rate, train, 'learning_rate', rcParams['text.color'], None)
    rate.set_ylabel('learning rate')
    last = max((record['epoch'] for record in records), default=1)
    for axes in (loss, score, rate):
        axes.set(xlabel='epoch', xlim=(-0.03 * last, 1.03 * last))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    draw_result(result)
    save_figure(figure, path)


def draw_result_alone(path: pathlib.Path, title: str, draw_result: Callable[[Axes], None], columns: int) -> None:
    """Writes a plot of the test result alone, sized for ``columns`` classes, labels or values."""
    side = float(np.clip(0.45 * columns + 2, 5, 14))
    figure = Figure(figsize=(side + 0.8, side), layout='constrained')
    draw_result(figure.subplots())
    figure.suptitle(title)
    save_figure(figure, path)


def _curve(axes: Axes, records: Sequence[dict[str, Any]], name: str, color: str, label: str | None) -> None:
    """Plots a metric over epochs, from the records that have it; with a custom loss there is only the loss."""
    points = [(record['epoch'], record[name]) for record in records if name in record]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=readable(color), label=label, marker='.' if len(epochs) < 40 else '')


def _points(axes: Axes) -> list[np.ndarray]:
    """The points of each curve, float64 ``[N, 2]``."""
    return [np.asarray(line.get_xydata(), np.float64) for line in axes.lines]


def _use_logarithm(axes: Axes) -> None:
    """Makes the vertical axis logarithmic, with plain numbers, if its values are positive and differ threefold."""
    values = np.concatenate(_points(axes))[:, 1]
    if values.min() <= 0 or (ratio := values.max() / values.min()) < 3:
        return
    axes.set_yscale('log')
    subs = (1, 1.5, 2, 3, 5, 7) if ratio < 10 else (1, 2, 5) if ratio < 300 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.yaxis.set_minor_formatter(NullFormatter())


def _focus_on_the_end(axes: Axes) -> None:
    """Limits the vertical axis so that the second half of the epochs fills about a quarter of it, or more."""
    curves = _points(axes)
    last = max((curve[-1, 0] for curve in curves), default=0)
    late = np.concatenate([np.zeros(0), *(curve[curve[:, 0] >= last / 2, 1] for curve in curves)])
    if late.size and (span := np.ptp(late)) > 0:
        bottom, top = axes.get_ylim()
        rises = late.mean() >= np.mean([curve[0, 1] for curve in curves])
        below, above = (3, 0.1) if rises else (0.1, 3)
        axes.set_ylim(max(bottom, late.min() - below * span), min(top, late.max() + above * span))


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure atomically, with its texts as they are, not as markup; if that fails, nothing of it is left."""
    partial = path.with_name(path.stem + '.partial' + path.suffix)
    FigureCanvasAgg(figure)
    draw_text_literally(figure)
    try:
        figure.savefig(partial, dpi=110)
        partial.replace(path)
    except BaseException:
        discard(partial)
        raise
