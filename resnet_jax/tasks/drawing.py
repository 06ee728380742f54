"""Drawings of test results into given axes; Matplotlib is imported only when drawing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from resnet_jax.tasks.metrics import ranking_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEST_COLOUR = '#c4372c'


def is_dark() -> bool:
    """Whether Matplotlib's current style has a dark background."""
    from matplotlib import colors, rcParams

    return sum(colors.to_rgb(rcParams['figure.facecolor'])) < 1.5


def readable(color: str) -> tuple[float, ...]:
    """A line color for the current style: lightened on a dark background."""
    from matplotlib import colors

    return tuple((level + 1) / 2 for level in colors.to_rgb(color)) if is_dark() else colors.to_rgb(color)


def draw_confusion(axes: 'Axes', confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Draws a row-normalized confusion matrix; up to 20 classes are named and their cells show counts.

    Args:
      axes: axes to draw into.
      confusion: counts ``[K, K]``, one row per true class.
      class_names: K names.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    dark = is_dark()
    shading = LinearSegmentedColormap.from_list('shares', [axes.get_facecolor(), '#9ecae1']) if dark else 'Blues'
    totals = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    image = axes.imshow(shares, cmap=shading, vmin=0, vmax=1)
    axes.figure.colorbar(image, ax=axes, label='fraction of the true class')
    axes.set(xlabel='predicted', ylabel='true')
    classes = len(class_names)
    if classes <= 20:
        axes.set_xticks(range(classes), class_names, rotation=45 if max(map(len, class_names)) > 2 else 0)
        axes.set_yticks(range(classes), class_names)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = 'white' if (shares[row, column] > 0.5) != dark else 'black'
            axes.text(column, row, str(confusion[row, column]), ha='center', va='center', color=color, fontsize=7)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def draw_roc(axes: 'Axes', targets: np.ndarray, scores: np.ndarray, positive: str) -> None:
    """Draws the ROC curve of scores ``[N, 1]`` for targets 0 or 1, ``[N, 1]``; ``positive`` is the name of class 1."""
    from sklearn.metrics import roc_curve

    axes.plot([0, 1], [0, 1], color='lightgray', linestyle='--')
    if found := ranking_scores(targets, scores):  # empty if there is only one class
        false, true, _ = roc_curve(targets[:, 0], scores[:, 0])
        axes.plot(false, true, color=readable(TEST_COLOUR), label=f'ROC AUC {found["roc_auc"]:.4f}')
        axes.legend(loc='lower right')
    axes.set(xlabel='false positive rate', ylabel='true positive rate', title=f'ROC curve of "{positive}"')
    axes.set_aspect('equal')


def draw_labels(axes: 'Axes', targets: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> None:
    """Draws precision, recall and average precision of K labels, from targets 0 or 1 and probabilities, ``[N, K]``."""
    predicted, actual = scores > 0.5, targets > 0
    right = (predicted & actual).sum(0)
    bars: dict[str, Sequence[float] | np.ndarray] = {
        'precision': right / np.maximum(predicted.sum(0), 1),
        'recall': right / np.maximum(actual.sum(0), 1),
        'average precision': [
            ranking_scores(targets[:, [k]], scores[:, [k]]).get('average_precision', 0.0) for k in range(len(names))
        ],
    }
    places = np.arange(len(names))
    for index, (name, values) in enumerate(bars.items()):
        axes.barh(
            places + 0.26 * (index - 1),
            values,
            0.24,
            label=name,
            color=readable(('#9fb3c8', '#5b7fa6', TEST_COLOUR)[index]),
        )
    lowest = min(float(np.min(values)) for values in bars.values())
    axes.set_xlim(left=max(0.0, np.floor(lowest * 10 - 0.5) / 10), right=1)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlabel='score')
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def draw_values(axes: 'Axes', targets: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    """Plots predicted over true values, both ``[N, D]``."""
    ends = [min(targets.min(), values.min()), max(targets.max(), values.max())]
    axes.plot(ends, ends, color='gray', linewidth=1)
    for column, name in enumerate(names):
        axes.plot(targets[:, column], values[:, column], '.', markersize=4, alpha=0.6, label=name)
    axes.set(xlabel='true', ylabel='predicted')
    axes.set_aspect('equal')
    axes.legend(loc='upper left')
