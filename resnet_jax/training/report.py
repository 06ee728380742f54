"""Pictures of a run: curves, learning rate, and what the network makes of the test set."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_jax.training.metrics import ranking_scores
from resnet_jax.training.tasks import Task

TRAIN_COLOUR, TEST_COLOUR, UNAVERAGED_COLOUR = '#7a8fa6', '#c4372c', '#e0a39d'


def draw_report(
    path: pathlib.Path,
    title: str,
    records: Sequence[dict[str, Any]],
    headline: str,
    draw_result: Callable[[Axes], None],
) -> None:
    """Writes ``report.png``: loss, headline metric and learning rate over epochs, and a drawing of the test set.

    Args:
      path: of the picture.
      title: first line.
      records: lines of ``metrics.jsonl``: ``split`` ``train`` or ``test``, ``epoch``, ``loss``, the headline metric,
        and ``learning_rate`` for training; ``unaveraged_loss`` and the like where an average is tested.
      headline: name of that metric.
      draw_result: draws into the fourth panel, as ``result_drawing`` gives it.
    """
    figure = Figure(figsize=(11, 7.5), layout='constrained')
    figure.suptitle(title)
    loss, score, rate, result = figure.subplots(2, 2).flat
    train = [record for record in records if record['split'] == 'train' and 'loss' in record]
    test = [record for record in records if record['split'] == 'test']
    for axes, name in ((loss, 'loss'), (score, headline)):
        _curve(axes, train, name, TRAIN_COLOUR, 'training (augmented)')
        plain = [record for record in test if f'unaveraged_{name}' in record]
        _curve(axes, test, name, TEST_COLOUR, 'test, averaged weights' if plain else 'test')
        if plain:
            _curve(axes, plain, f'unaveraged_{name}', UNAVERAGED_COLOUR, 'test, trained weights')
        axes.set(xlabel='epoch', ylabel=name)
        axes.legend()
    loss.set_yscale('log')
    _curve(rate, train, 'learning_rate', 'black', None)
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


def result_drawing(task: Task, evaluation: Any, class_names: Sequence[str]) -> Callable[..., None]:
    """What to draw of an evaluation: a function of axes.

    Args:
      task: what the network was trained for.
      evaluation: with ``total`` sums and, but for classes, ``outputs`` ``[N, K]`` and ``targets``.
      class_names: of the classes, labels or values.

    Returns:
      For classes it draws the confusion matrix; for yes or no the ROC curve; for labels precision, recall and average
      precision of each; for values the predicted over the true ones.
    """
    if task.name == 'multiclass':
        return lambda axes: draw_confusion(axes, evaluation.total['confusion'], class_names)
    predictions = task.predictions(evaluation.outputs)
    columns = np.asarray(evaluation.targets).reshape(predictions.shape)
    if task.name == 'binary':
        return lambda axes: _draw_roc(axes, columns, predictions, class_names[1])
    if task.name == 'multilabel':
        return lambda axes: _draw_labels(axes, columns, predictions, class_names)
    return lambda axes: _draw_values(axes, columns, predictions, class_names)


def _draw_roc(axes: Axes, targets: np.ndarray, scores: np.ndarray, positive: str) -> None:
    from sklearn.metrics import roc_curve

    axes.plot([0, 1], [0, 1], color='lightgray', linestyle='--')
    if found := ranking_scores(targets, scores):  # else there is but one class
        false, true, _ = roc_curve(targets[:, 0], scores[:, 0])
        axes.plot(false, true, color=TEST_COLOUR, label=f'ROC AUC {found["roc_auc"]:.4f}')
        axes.legend(loc='lower right')
    axes.set(xlabel='false positive rate', ylabel='true positive rate', title=f'ROC curve of "{positive}"')
    axes.set_aspect('equal')


def _draw_labels(axes: Axes, targets: np.ndarray, scores: np.ndarray, class_names: Sequence[str]) -> None:
    predicted, actual = scores > 0.5, targets > 0
    right = (predicted & actual).sum(0)
    bars = {
        'precision': right / np.maximum(predicted.sum(0), 1),
        'recall': right / np.maximum(actual.sum(0), 1),
        'average precision': [
            ranking_scores(targets[:, [k]], scores[:, [k]]).get('average_precision', 0.0)
            for k in range(len(class_names))
        ],
    }
    places = np.arange(len(class_names))
    for index, (name, values) in enumerate(bars.items()):
        axes.barh(
            places + 0.26 * (index - 1), values, 0.24, label=name, color=('#9fb3c8', '#5b7fa6', TEST_COLOUR)[index]
        )
    lowest = min(float(np.min(values)) for values in bars.values())
    axes.set_xlim(left=max(0.0, np.floor(lowest * 10 - 0.5) / 10), right=1)
    axes.set_yticks(places, class_names)
    axes.invert_yaxis()
    axes.set(xlabel='test set')
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def _draw_values(axes: Axes, targets: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    ends = [min(targets.min(), values.min()), max(targets.max(), values.max())]
    axes.plot(ends, ends, color='gray', linewidth=1)
    for column, name in enumerate(names):
        axes.plot(targets[:, column], values[:, column], '.', markersize=4, alpha=0.6, label=name)
    axes.set(xlabel='true', ylabel='predicted')
    axes.set_aspect('equal')
    axes.legend(loc='upper left')


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
