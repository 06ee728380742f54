"""Pictures of a run: curves, learning rate and confusion matrix."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN_COLOUR, TEST_COLOUR = '#7a8fa6', '#c4372c'


def draw_report(
    path: pathlib.Path, title: str, records: Sequence[dict[str, Any]], confusion: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes ``report.png``: loss, accuracy and learning rate over epochs, and the test set's confusion matrix.

    Args:
      path: of the picture.
      title: first line.
      records: lines of ``metrics.jsonl``: ``split`` ``train`` or ``test``, ``epoch``, ``loss``, ``accuracy``, and
        ``learning_rate`` for training.
      confusion: int ``[K, K]``, rows the true classes.
      class_names: K names.
    """
    figure = Figure(figsize=(11, 7.5), layout='constrained')
    figure.suptitle(title)
    loss, accuracy, rate, matrix = figure.subplots(2, 2).flat
    train = [record for record in records if record['split'] == 'train']
    test = [record for record in records if record['split'] == 'test']
    for axes, name in ((loss, 'loss'), (accuracy, 'accuracy')):
        _curve(axes, train, name, TRAIN_COLOUR, 'training (augmented)')
        _curve(axes, test, name, TEST_COLOUR, 'test')
        axes.set(xlabel='epoch', ylabel=name)
        axes.legend()
    loss.set_yscale('log')
    _curve(rate, train, 'learning_rate', 'black', None)
    rate.set(xlabel='epoch', ylabel='learning rate')
    draw_confusion(matrix, confusion, class_names)
    save_figure(figure, path)


def draw_confusion_matrix(path: pathlib.Path, title: str, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes a confusion matrix, int ``[K, K]`` with the true classes as rows, as a picture of its own."""
    side = float(np.clip(0.45 * len(class_names) + 2, 5, 14))
    figure = Figure(figsize=(side + 0.8, side), layout='constrained')
    draw_confusion(figure.subplots(), confusion, class_names)
    figure.suptitle(title)
    save_figure(figure, path)


def draw_confusion(axes: Axes, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Shares of each true class; up to 20 classes are named and their counts written into the cells."""
    totals = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    picture = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.figure.colorbar(picture, ax=axes, label='share of the true class')
    axes.set(xlabel='predicted', ylabel='true')
    classes = len(class_names)
    if classes <= 20:
        axes.set_xticks(range(classes), class_names, rotation=45 if max(map(len, class_names)) > 2 else 0)
        axes.set_yticks(range(classes), class_names)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = 'white' if shares[row, column] > 0.5 else 'black'
            axes.text(column, row, str(confusion[row, column]), ha='center', va='center', color=colour, fontsize=7)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, records: Sequence[dict[str, Any]], name: str, colour: str, label: str | None) -> None:
    epochs = [record['epoch'] for record in records]
    axes.plot(
        epochs, [record[name] for record in records], color=colour, label=label, marker='.' if len(epochs) < 40 else ''
    )


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as a picture, whole or not at all."""
    partial = path.with_name(path.stem + '.partial' + path.suffix)
    FigureCanvasAgg(figure)
    figure.savefig(partial, dpi=110)
    partial.replace(path)
