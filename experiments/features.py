"""Writes image embeddings (.npz, .parquet) and draws nearest neighbors.

python -m experiments.features --init_from=RUN --images=DIR --out=features.npz
python -m experiments.features --init_from=hf:timm/resnet50.a1_in1k --images=DIR --out=features.parquet --neighbors=5
"""

import io
import pathlib
from collections.abc import Callable

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.shared import outputs, photographs, scripts, weights_flags
from resnet_jax import InputError
from resnet_jax.checkpoints.storage import write_file
from resnet_jax.tasks.drawing import label
from resnet_jax.text import shown, storable
from resnet_jax.training.report import save_figure

GROUP = 'tools'
FLAGS = flags.FLAGS

FORMATS = ('.npz', '.parquet')


def define_flags() -> None:
    photographs.define_flags()
    flags.DEFINE_string('out', None, 'Output file, required: .npz, or .parquet, which needs pyarrow.')
    flags.DEFINE_integer(
        'neighbors',
        0,
        'Number of nearest images to draw for each of --rows images, in a plot next to the output file.',
        lower_bound=0,
    )
    flags.DEFINE_integer('rows', 8, 'Number of images, evenly spaced, whose neighbors are drawn.', lower_bound=1)


def nearest(features: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Indices of the most similar other images by cosine similarity: int ``[len(rows), count]``."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit[rows] @ unit.T
    similarity[np.arange(len(rows)), rows] = -np.inf
    return np.argsort(-similarity, axis=1, kind='stable')[:, :count]


def write(path: pathlib.Path, names: list[str], features: np.ndarray) -> None:
    """Writes ``names`` and ``features`` float32 ``[N, C]``, or a table with one row per image.

    A table contains UTF-8 only: ``text.unescaped`` gives the names of files whose names are not.
    """
    content = io.BytesIO()
    if path.suffix == '.npz':
        np.savez(content, names=np.array(names), features=features)
    else:
        import pyarrow
        import pyarrow.parquet

        rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
        table = pyarrow.table({'name': [*map(storable, names)], 'features': rows})
        pyarrow.parquet.write_table(table, content)
    write_file(path, content.getvalue())


def draw(
    path: pathlib.Path, names: list[str], chosen: np.ndarray, found: np.ndarray, read: Callable[[str], np.ndarray]
) -> None:
    """Draws one row per chosen image: the image, then its neighbors."""
    figure = Figure(figsize=(1.6 * (1 + found.shape[1]), 1.8 * len(chosen) + 0.4), layout='constrained')
    figure.suptitle('each row: an image and its nearest neighbors by embedding')
    panels = np.atleast_2d(figure.subplots(len(chosen), 1 + found.shape[1]))
    for row, first, others in zip(panels, chosen, found, strict=True):
        for axes, index in zip(row, (first, *others), strict=True):
            axes.set_axis_off()
            axes.imshow(read(names[index]), cmap='gray', vmin=0, vmax=255)
            weight = 'bold' if index == first else 'normal'
            axes.set_title(label(pathlib.Path(names[index]).parent.name, 16), fontsize=8, fontweight=weight)
    save_figure(figure, path)


def main() -> None:
    weights_flags.source_of_flags()
    out = outputs.output_file(FORMATS)
    if FLAGS['rows'].present and not FLAGS.neighbors:
        raise InputError(f'rows={FLAGS.rows} has no effect without --neighbors')
    if out.suffix == '.parquet':
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise InputError(f'out={out} needs pyarrow: pip install pyarrow') from error
    files = photographs.files_of_flags()
    if FLAGS.neighbors >= max(len(files), 1):
        raise InputError(f'neighbors={FLAGS.neighbors} must be less than the number of images, {len(files)}')
    if FLAGS['rows'].present and FLAGS.rows > len(files):
        raise InputError(f'rows={FLAGS.rows} must be at most the number of images, {len(files)}')
    predictor = photographs.predictor_of_flags()
    names: list[str] = []
    parts = []
    for some, images in photographs.batches(predictor, files):
        names += some
        parts.append(predictor.embed(images))
    features = np.concatenate(parts)
    write(out, names, features)
    print(f'wrote {shown(str(out))}: {len(names):,} embeddings of size {features.shape[1]}')
    if FLAGS.neighbors:
        count = min(FLAGS.neighbors, len(names) - 1)
        chosen = np.unique(np.linspace(0, len(names) - 1, min(FLAGS.rows, len(names))).astype(int))
        plot = out.with_suffix('.png')
        draw(plot, names, chosen, nearest(features, chosen, count), predictor.prepare)
        print(f'wrote {shown(str(plot))}')


if __name__ == '__main__':
    scripts.run(main, define_flags)
