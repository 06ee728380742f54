"""Predicts classes of images, as a table, JSON lines, or a sheet with Grad-CAM.

python -m experiments.predict --init_from=runs/resnet20-digits-seed0 --images=DIR
python -m experiments.predict --init_from=hf:timm/resnet50.a1_in1k --images=DIR,photo.jpg --format=json
python -m experiments.predict --init_from=RUN --images=DIR --format=sheet --explain --out=sheet.png
"""

import json
import math
import pathlib
import sys
import textwrap
from typing import Any

import numpy as np
from absl import flags
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from experiments.shared import photographs, scripts
from resnet_jax import InputError, Predictor
from resnet_jax.checkpoints.storage import write_file
from resnet_jax.training.report import save_figure

GROUP = 'tools'
FLAGS = flags.FLAGS

_MAX_SHEET_IMAGES = 60
_SHEET_COLUMNS = 6
_SHEET_SUFFIXES = ('.png', '.pdf', '.svg')


def define_flags() -> None:
    photographs.define_flags()
    flags.DEFINE_enum('format', 'table', ['table', 'json', 'sheet'], 'Output format.')
    flags.DEFINE_integer('top', 3, 'Number of most probable classes to show.', lower_bound=1)
    flags.DEFINE_string('out', None, 'Output file. Default: the terminal; predictions.png for a sheet.')
    flags.DEFINE_bool('explain', False, 'On a sheet, highlight the evidence for the most probable class (Grad-CAM).')


def answers_of(predictor: Predictor, predictions: np.ndarray) -> list[list[tuple[str, float]]]:
    """Names and probabilities for each image, most probable first; names and values for regression."""
    return predictor.task.ranked(predictions, predictor.class_names, FLAGS.top)


def format_answer(answer: list[tuple[str, float]]) -> str:
    return ', '.join(f'{name} {value:.3f}' for name, value in answer)


def caption(file: str, answer: list[tuple[str, float]]) -> str:
    """The file's folder and the end of its name, then one line per prediction."""
    path = pathlib.Path(file)
    name = path.name if len(path.name) <= 18 else f'…{path.name[-17:]}'
    lines = [f'{path.parent.name[:12]}/{name}', *(f'{name} {value:.3f}' for name, value in answer)]
    return '\n'.join(textwrap.shorten(line, 32, placeholder='…') for line in lines)


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


def draw_sheet(path: pathlib.Path, title: str, images: list[np.ndarray], captions: list[str]) -> None:
    """Draws images with their captions, row by row."""
    columns = min(_SHEET_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.3 * columns, 2.75 * rows + 0.4), layout='constrained')
    figure.suptitle(title, parse_math=False)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, caption in zip(panels, images, captions, strict=False):
        axes.imshow(image, cmap='gray', vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8, parse_math=False)
    save_figure(figure, path)


def main() -> None:
    if FLAGS.explain and FLAGS.format != 'sheet':
        raise InputError('--explain needs --format=sheet')
    sheet = FLAGS.format == 'sheet'
    path = pathlib.Path(FLAGS.out or 'predictions.png')
    if not path.parent.is_dir():
        raise InputError(f'out={path}: folder {path.parent} does not exist')
    if sheet and path.suffix not in _SHEET_SUFFIXES:
        raise InputError(f'out={path} must end in {", ".join(_SHEET_SUFFIXES)} for --format=sheet')
    files = photographs.files_of_flags()
    predictor = photographs.predictor_of_flags()
    predictor.require_head()
    if FLAGS.explain and not predictor.task.has_class_outputs:
        raise InputError(f'--explain needs task=multiclass; the network was trained for {predictor.task.name}')
    if sheet and len(files) > _MAX_SHEET_IMAGES:
        print(f'showing {_MAX_SHEET_IMAGES} of {len(files):,} images, evenly spaced', file=sys.stderr)
        files = [files[index] for index in np.linspace(0, len(files) - 1, _MAX_SHEET_IMAGES).astype(int)]
    rows: list[tuple[str, list[tuple[str, float]]]] = []
    pictures: list[np.ndarray] = []
    for names, images in photographs.batches(predictor, files):
        predictions = predictor(images)
        rows += zip(map(photographs.printable, names), answers_of(predictor, predictions), strict=True)
        if FLAGS.explain:
            pictures.extend(overlay(images, predictor.explain(images, predictions.argmax(1))))
        elif sheet:
            pictures.extend(images)
    if sheet:
        draw_sheet(path, f'{predictor.arch}, {FLAGS.init_from}', pictures, [caption(*row) for row in rows])
        print(f'wrote {path}')
        return
    text = text_of(rows)
    if FLAGS.out is None:
        print(text)
    else:
        write_file(path, (text + '\n').encode())
        print(f'wrote {path}')


def text_of(rows: list[tuple[str, list[tuple[str, float]]]]) -> str:
    if FLAGS.format == 'table':
        return scripts.markdown_table(
            ('image', 'predictions'), [(name, format_answer(answer)) for name, answer in rows]
        )
    lines: list[dict[str, Any]] = []
    for name, answer in rows:
        lines.append({'image': name, 'predictions': [{'name': one, 'value': value} for one, value in answer]})
    return '\n'.join(json.dumps(line, ensure_ascii=False) for line in lines)


if __name__ == '__main__':
    scripts.run(main, define_flags)
