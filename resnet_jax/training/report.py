"""Plots of a run: training curves, learning rate, and test results."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnet_jax.checkpoints.storage import discard
from resnet_jax.tasks.drawing import TEST_COLOUR, readable

TRAIN_COLOUR, UNAVERAGED_COLOUR = '#7a8fa6', '#e0a39d'


def draw_report(
    path: pathlib.Path,
    title: str,
    records: Sequence[dict[str, Any]],
    primary_metric: str,
    draw_result: Callable[[Axes], None],
) -> None:
    """Writes ``report.png``: loss, primary metric and learning rate over epochs, and the test result.

    Args:
      path: output file.
      title: title of the figure.
      records: lines of ``metrics.jsonl``: ``split`` (``train`` or ``test``), ``epoch``, and optionally ``loss``, the
        primary metric, ``learning_rate``, and ``unaveraged_loss`` and the like if averaged weights are evaluated.
      primary_metric: its name.
      draw_result: draws into the fourth panel, like ``Task.draw``.
    """
    figure = Figure(figsize=(11, 7.5), layout='constrained')
    figure.suptitle(title)
    loss, score, rate, result = figure.subplots(2, 2).flat
    train = [record for record in records if record['split'] == 'train' and 'loss' in record]
    test = [record for record in records if record['split'] == 'test']
    for axes, name in ((loss, 'loss'), (score, primary_metric)):
        _curve(axes, train, name, TRAIN_COLOUR, 'training (augmented)')
        plain = [record for record in test if f'unaveraged_{name}' in record]
        _curve(axes, test, name, TEST_COLOUR, 'test, averaged weights' if plain else 'test')
        if plain:
            _curve(axes, plain, f'unaveraged_{name}', UNAVERAGED_COLOUR, 'test, unaveraged weights')
        axes.set(xlabel='epoch', ylabel=name)
        if axes.lines:
            axes.legend()
    loss.set_yscale('log')
    _curve(rate, train, 'learning_rate', rcParams['text.color'], None)
    rate.set(xlabel='epoch', ylabel='learning rate')
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


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure atomically; if that fails, nothing of it is left."""
    partial = path.with_name(path.stem + '.partial' + path.suffix)
    FigureCanvasAgg(figure)
    try:
        figure.savefig(partial, dpi=110)
        partial.replace(path)
    except BaseException:
        discard(partial)
        raise
