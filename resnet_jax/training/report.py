"""Pictures of a run: curves, learning rate, and what the network makes of the test set."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnet_jax.tasks.drawing import TEST_COLOUR, readable

TRAIN_COLOUR, UNAVERAGED_COLOUR = '#7a8fa6', '#e0a39d'


def draw_report(
    path: pathlib.Path,
    title: str,
    records: Sequence[dict[str, Any]],
    primary_metric: str,
    draw_result: Callable[[Axes], None],
) -> None:
    """Writes ``report.png``: loss, primary metric and learning rate over epochs, and a drawing of the test set.

    Args:
      path: of the picture.
      title: first line.
      records: lines of ``metrics.jsonl``: ``split`` ``train`` or ``test``, ``epoch``, and what there is of ``loss``,
        the primary metric, ``learning_rate``, and ``unaveraged_loss`` and the like where an average is tested.
      primary_metric: its name.
      draw_result: draws into the fourth panel, as ``Task.draw`` does.
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
            _curve(axes, plain, f'unaveraged_{name}', UNAVERAGED_COLOUR, 'test, trained weights')
        axes.set(xlabel='epoch', ylabel=name)
        if axes.lines:
            axes.legend()
    loss.set_yscale('log')
    _curve(rate, train, 'learning_rate', rcParams['text.color'], None)
    rate.set(xlabel='epoch', ylabel='learning rate')
    draw_result(result)
    save_figure(figure, path)


def draw_result_alone(path: pathlib.Path, title: str, draw_result: Callable[[Axes], None], columns: int) -> None:
    """Writes the drawing of a test set as a picture of its own, for so many classes, labels or values."""
    side = float(np.clip(0.45 * columns + 2, 5, 14))
    figure = Figure(figsize=(side + 0.8, side), layout='constrained')
    draw_result(figure.subplots())
    figure.suptitle(title)
    save_figure(figure, path)


def _curve(axes: Axes, records: Sequence[dict[str, Any]], name: str, colour: str, label: str | None) -> None:
    """Draws a metric over the epochs, of the records that have it: a loss of the caller's comes without others."""
    points = [(record['epoch'], record[name]) for record in records if name in record]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=readable(colour), label=label, marker='.' if len(epochs) < 40 else '')


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as a picture, whole or not at all."""
    partial = path.with_name(path.stem + '.partial' + path.suffix)
    FigureCanvasAgg(figure)
    figure.savefig(partial, dpi=110)
    partial.replace(path)


@contextlib.contextmanager
def drawn_or_told(path: pathlib.Path) -> Iterator[None]:
    """Within it a picture is drawn; why it cannot be is told in one line, so that the result beside it is kept."""
    try:
        yield
    except Exception as error:  # names and numbers of any kind reach Matplotlib
        print(f'{path} cannot be drawn: {" ".join(str(error).split())[:300]}', file=sys.stderr)
