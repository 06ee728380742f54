"""Drawings of test results into given axes; Matplotlib is imported only when drawing.

Names that come from outside are drawn through ``label`` or ``labels``, and every figure through ``draw_text_literally``
before it is saved, so that no name is taken for markup.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from resnet_jax.tasks.metrics import ranking_scores
from resnet_jax.text import distinct, escape, printable, shortened, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TEST_COLOUR = '#c4372c'
# Longer names lose their middle.
NAME_LENGTH = 24
# Names beside an axis are readable up to this number, and in a legend within the axes up to the other.
MAX_NAMES, MAX_LEGEND = 30, 10
# More cells of a confusion matrix are smaller than a pixel of a report.
MAX_CELLS = 128


def label(name: str, length: int = NAME_LENGTH) -> str:
    """A name in a form that can be drawn: one line of at most ``length`` characters, all of which the font has."""
    line = shown(name)
    for kept in range(length, 0, -1):  # escapes are longer than the characters that the font lacks
        if len(drawn := _in_font(shortened(line, kept))) <= length:
            return drawn
    return '…'


def labels(names: Iterable[str], length: int = NAME_LENGTH) -> list[str]:
    """``label`` of several names; names that become equal are numbered."""
    return distinct(label(name, length) for name in names)


def draw_text_literally(figure: 'Figure') -> None:
    """Makes Matplotlib draw every text of a figure as it is: no mathematics, no TeX, no missing characters.

    Only the numbers of ticks keep their markup, such as the powers of ten of a logarithmic axis.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter, LogitFormatter, ScalarFormatter

    numbers = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        for formatter, minor in ((axis.get_major_formatter(), False), (axis.get_minor_formatter(), True)):
            if isinstance(formatter, LogFormatter | LogitFormatter | ScalarFormatter):
                numbers |= {*axis.get_ticklabels(minor=minor), axis.get_offset_text()}
    for text in set(figure.findobj(Text)) - numbers:
        text.set(parse_math=False, usetex=False, text='\n'.join(map(_in_font, text.get_text().split('\n'))))


def _in_font(line: str) -> str:
    """Escapes the characters that the fonts of the current style lack, which Matplotlib would draw as equal boxes."""
    if (line := printable(line)).isascii():
        return line
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in rcParams['font.family']]
    return ''.join(
        character if any(font.get_char_index(ord(character)) for font in fonts) else escape(character)
        for character in line
    )


def is_dark() -> bool:
    """Whether Matplotlib's current style has a dark background."""
    from matplotlib import colors, rcParams

    return sum(colors.to_rgb(rcParams['figure.facecolor'])) < 1.5


def readable(color: str) -> tuple[float, ...]:
    """A line color for the current style: lightened on a dark background."""
    from matplotlib import colors

    return tuple((level + 1) / 2 for level in colors.to_rgb(color)) if is_dark() else colors.to_rgb(color)


def _set_names(axis: 'Axis', names: Sequence[str]) -> None:
    """Places a name at each of 0, 1, …, in a size for which there is room."""
    axes = axis.axes
    room = (axes.bbox.height if axis is axes.yaxis else axes.bbox.width) / axes.figure.dpi * 72 / len(names)
    axis.set_ticks(range(len(names)), labels(names), fontsize=float(np.clip(room / 1.3, 5, 10)))


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
    image = axes.imshow(_visible(shares), cmap=shading, vmin=0, vmax=1, extent=_extent(len(shares)))
    axes.figure.colorbar(image, ax=axes, label='fraction of the true class')
    axes.set(xlabel='predicted', ylabel='true')
    classes = len(class_names)
    if classes <= 20:
        _set_names(axes.yaxis, class_names)
        _set_names(axes.xaxis, class_names)
        if max(map(len, class_names)) > 2:
            axes.tick_params('x', labelrotation=45)
            for text in axes.get_xticklabels():
                text.set(ha='right', rotation_mode='anchor')
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = 'white' if (shares[row, column] > 0.5) != dark else 'black'
            axes.text(column, row, str(confusion[row, column]), ha='center', va='center', color=color, fontsize=7)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _visible(shares: np.ndarray) -> np.ndarray:
    """The largest share of each group of cells ``[k, k]``, so that at most MAX_CELLS are drawn per axis."""
    if (size := -(-len(shares) // MAX_CELLS)) == 1:
        return shares
    padded = np.pad(shares, (0, -len(shares) % size))
    return padded.reshape(len(padded) // size, size, -1, size).max((1, 3))


def _extent(classes: int) -> tuple[float, float, float, float]:
    """The edges of the drawn cells: left, right, bottom, top; the last group of ``_visible`` may be incomplete."""
    end = classes + -classes % -(-classes // MAX_CELLS) - 0.5
    return -0.5, end, end, -0.5


def draw_roc(axes: 'Axes', targets: np.ndarray, scores: np.ndarray, positive: str) -> None:
    """Draws the ROC curve of scores ``[N, 1]`` for targets 0 or 1, ``[N, 1]``; ``positive`` is the name of class 1."""
    from sklearn.metrics import roc_curve

    axes.plot([0, 1], [0, 1], color='lightgray', linestyle='--')
    if found := ranking_scores(targets, scores):  # empty if there is only one class
        false, true, _ = roc_curve(targets[:, 0], scores[:, 0])
        axes.plot(false, true, color=readable(TEST_COLOUR), label=f'ROC AUC {found["roc_auc"]:.4f}')
        axes.legend(loc='lower right')
    axes.set(xlabel='false positive rate', ylabel='true positive rate', title=f'ROC curve of "{label(positive)}"')
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
    if len(names) <= MAX_NAMES:
        _set_names(axes.yaxis, names)
    else:
        axes.set_ylabel('label')
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.invert_yaxis()
    axes.set(xlabel='score')
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def draw_values(axes: 'Axes', targets: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    """Plots predicted over true values, both ``[N, D]``."""
    ends = [min(targets.min(), values.min()), max(targets.max(), values.max())]
    axes.plot(ends, ends, color='gray', linewidth=1)
    for column in range(len(names)):
        # Numbered, because Matplotlib leaves labels that start with an underscore out of a legend.
        axes.plot(targets[:, column], values[:, column], '.', markersize=4, alpha=0.6, label=str(column))
    axes.set(xlabel='true', ylabel='predicted')
    axes.set_aspect('equal')
    if len(names) > MAX_LEGEND:
        axes.set_title(f'{len(names)} values')
        return
    for text, name in zip(axes.legend(loc='upper left').get_texts(), labels(names), strict=True):
        text.set_text(name)
