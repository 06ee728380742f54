"""Predicts classes of images, as a table, JSON lines, or a sheet with Grad-CAM.

python -m experiments.predict --init_from=runs/resnet20-digits-seed0 --images=DIR
python -m experiments.predict --init_from=hf:timm/resnet50.a1_in1k --images=DIR,photo.jpg --format=json
python -m experiments.predict --init_from=RUN --images=DIR --format=sheet --explain --out=sheet.png
"""

import functools
import json
import math
import pathlib
import sys
import unicodedata
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from experiments.shared import outputs, photographs, scripts, weights_flags
from resnet_jax import InputError, Predictor, Task
from resnet_jax.checkpoints.storage import write_file
from resnet_jax.data.imagenet_names import imagenet_names, imagenet_wordnet_ids
from resnet_jax.tasks.drawing import TEST_COLOUR, label, labels, readable
from resnet_jax.text import printable, shown, without_folders
from resnet_jax.training.report import save_figure

GROUP = 'tools'
FLAGS = flags.FLAGS

_MAX_SHEET_IMAGES = 60
_SHEET_COLUMNS = 6
_CAPTION_LENGTH = 30


def define_flags() -> None:
    photographs.define_flags()
    flags.DEFINE_enum('format', 'table', ['table', 'json', 'sheet'], 'Output format.')
    flags.DEFINE_integer('top', 3, 'Number of most probable classes to show.', lower_bound=1)
    flags.DEFINE_string('out', None, 'Output file. Default: the terminal; predictions.png for a sheet.')
    flags.DEFINE_bool('explain', False, 'On a sheet, highlight the evidence for the most probable class (Grad-CAM).')


class Row(NamedTuple):
    """An image file, its true class if that is known, and the answer: names and values, most probable first."""

    file: str
    true: str | None
    answer: list[tuple[str, float]]


@functools.cache
def synonyms() -> dict[str, str]:
    """WordNet ids, which name the folders of ImageNet, and the classes they mean."""
    return dict(zip(imagenet_wordnet_ids(), imagenet_names(), strict=True))


def true_class(predictor: Predictor, file: str) -> str | None:
    """The class that a folder of the file is named after, from the innermost; None if there is none."""
    if not predictor.task.has_class_targets:
        return None
    known = {unicodedata.normalize('NFC', name): name for name in predictor.class_names}
    for folder in pathlib.Path(file).parent.parts[::-1]:
        name = unicodedata.normalize('NFC', folder)
        if (name := name if name in known else synonyms().get(name, '')) in known:
            return known[name]
    return None


def answers_of(predictor: Predictor, predictions: np.ndarray) -> list[list[tuple[str, float]]]:
    """Names and probabilities for each image, most probable first; names and values for regression."""
    return predictor.task.ranked(predictions, predictor.class_names, FLAGS.top)


def format_answer(answer: list[tuple[str, float]]) -> str:
    return ', '.join(f'{shown(name)} {value:.3f}' for name, value in answer)


def caption(row: Row, length: int) -> str:
    """The file's name, its true class if that is known, and one line per prediction; long names lose their middle."""
    lines = [label(pathlib.Path(row.file).name, length)]
    if row.true is not None:
        lines.append(f'true: {label(row.true, length - 6)}')
    names = labels((name for name, _ in row.answer), length - 6)
    values = zip(names, (value for _, value in row.answer), strict=True)
    return '\n'.join([*lines, *(f'{name} {value:.3f}' for name, value in values)])


def beside(images: np.ndarray, overlays: np.ndarray) -> list[np.ndarray]:
    """Each image and its overlay in one picture, with a transparent gap between them: uint8 ``[H, W', 4]``."""
    height, width = overlays.shape[1:3]
    gap = np.zeros((height, max(width // 24, 1), 4), np.uint8)
    opaque = np.full((height, width, 1), 255, np.uint8)
    pairs = zip(np.broadcast_to(images, overlays.shape), overlays, strict=True)
    return [np.hstack([np.dstack([image, opaque]), gap, np.dstack([one, opaque])]) for image, one in pairs]


def overlay(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Overlays maps with values in [0, 1] on images as colors: uint8 ``[N, H, W, 3]``."""
    size = images.shape[2], images.shape[1]
    pictures = []
    for image, one in zip(images, maps, strict=True):
        large = np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR))
        colors = 255 * colormaps['inferno'](large)[..., :3]
        share = 0.25 + 0.35 * large[..., None]
        pictures.append(((1 - share) * image + share * colors).round().astype(np.uint8))
    return np.stack(pictures)


def draw_sheet(path: pathlib.Path, title: str, images: list[np.ndarray], rows: list[Row]) -> None:
    """Draws images with their captions, line by line; the captions of wrong predictions are red."""
    height, width = images[0].shape[:2]
    per_image = max(1, round(width / height))  # an image with its overlay is twice as wide
    columns = min(_SHEET_COLUMNS // min(per_image, _SHEET_COLUMNS), len(images))
    lines = math.ceil(len(images) / columns)
    captions = [caption(row, _CAPTION_LENGTH * per_image) for row in rows]
    of_text = 0.14 * max(text.count('\n') + 1 for text in captions) + 0.2
    size = (2.3 * per_image * columns, (2.3 * per_image * height / width + of_text) * lines + 0.4)
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, row, text in zip(panels, images, rows, captions, strict=False):
        axes.imshow(image, cmap='gray', vmin=0, vmax=255)
        wrong = row.true is not None and row.answer[0][0] != row.true
        axes.set_title(text, fontsize=8, **({'color': readable(TEST_COLOUR)} if wrong else {}))
    save_figure(figure, path)


def main() -> None:
    weights_flags.source_of_flags()
    sheet = FLAGS.format == 'sheet'
    if FLAGS.explain and not sheet:
        raise InputError('--explain needs --format=sheet')
    path = outputs.output_file(outputs.IMAGES if sheet else (), default='predictions.png')
    files = photographs.files_of_flags()
    predictor = photographs.predictor_of_flags()
    predictor.require_head()
    if FLAGS.explain and not predictor.task.has_class_outputs:
        raise InputError(f'--explain needs task=multiclass; the network was trained for {predictor.task.name}')
    if FLAGS['top'].present and type(predictor.task).ranked is Task.ranked:
        raise InputError(f'top={FLAGS.top} has no effect on task={predictor.task.name}, which has no classes to rank')
    if sheet and len(files) > _MAX_SHEET_IMAGES:
        print(f'showing {_MAX_SHEET_IMAGES} of {len(files):,} images, evenly spaced', file=sys.stderr)
        files = [files[index] for index in np.linspace(0, len(files) - 1, _MAX_SHEET_IMAGES).astype(int)]
    rows: list[Row] = []
    pictures: list[np.ndarray] = []
    for names, images in photographs.batches(predictor, files):
        predictions = predictor(images)
        answers = zip(names, answers_of(predictor, predictions), strict=True)
        rows += [Row(name, true_class(predictor, name), answer) for name, answer in answers]
        if FLAGS.explain:
            pictures.extend(beside(images, overlay(images, predictor.explain(images, predictions.argmax(1)))))
        elif sheet:
            pictures.extend(images)
    if sheet:
        source = without_folders(str(predictor.source.workdir or FLAGS.init_from))
        draw_sheet(path, f'{predictor.arch}, {source}', pictures, rows)
        print(printable(f'wrote {path}'))
        return
    text = text_of(rows)
    if FLAGS.out is None:
        print(text)
    else:
        write_file(path, (text + '\n').encode())
        print(printable(f'wrote {path}'))


def text_of(rows: list[Row]) -> str:
    if FLAGS.format == 'table':
        cells = [(shown(row.file), format_answer(row.answer)) for row in rows]
        return scripts.markdown_table(('image', 'predictions'), cells)
    lines: list[dict[str, Any]] = []
    for row in rows:
        lines.append({'image': row.file, 'predictions': [{'name': one, 'value': value} for one, value in row.answer]})
    return '\n'.join(map(json.dumps, lines))  # in ASCII: any terminal shows it, and names are read back unchanged


if __name__ == '__main__':
    scripts.run(main, define_flags)
