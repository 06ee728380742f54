"""A sheet of augmented images: a row for each policy or operation, a column for each image.

python -m experiments.show_augment                                        # every policy on handwritten digits
python -m experiments.show_augment --dataset=arrays:DIR --show=operations
"""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments import common, training_flags
from resnet_jax import InputError
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.policies import OPERATIONS, POLICIES, apply_operations
from resnet_jax.training.report import save_figure
from resnet_jax.training.workdir import make_folder

FLAGS = flags.FLAGS

training_flags.define_data_flags(default='digits')
flags.DEFINE_enum('show', 'policies', ['policies', 'operations'], 'What the rows are.')
flags.DEFINE_list('policies', list(POLICIES), 'Policies to show.')
flags.DEFINE_integer('num_images', 10, 'Columns: the first images of the training set.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Seed of what is drawn.')
flags.DEFINE_string('workdir', None, 'Folder for the picture. Default: runs/augment-DATASET.')

# A strong magnitude of each operation, in its own unit; translations as a share of the width.
_STRONG = {
    **{'shear_x': 0.3, 'shear_y': 0.3, 'translate_x': 0.3, 'translate_y': 0.3, 'rotate': 30.0},
    **{'brightness': 1.9, 'contrast': 1.9, 'color': 1.9, 'sharpness': 1.9, 'posterize': 2.0},
    **{'solarize': 128.0, 'solarize_add': 110.0},
}

Row = Callable[[jax.Array, jax.Array], jax.Array]


def rows_of(width: int) -> dict[str, Row]:
    """``(key, image) -> image`` by what is written beside the row."""
    rows: dict[str, Row] = {'as it is': lambda key, image: image}
    if FLAGS.show == 'operations':
        for number, name in enumerate(OPERATIONS[1:], start=1):
            magnitude = _STRONG.get(name, 0.0) * (width if name.startswith('translate') else 1)
            drawn = jnp.array([number]), jnp.array([magnitude], jnp.float32)
            rows[name] = lambda key, image, drawn=drawn: apply_operations(image, drawn)  # type: ignore[misc]
        return rows
    for name in FLAGS.policies:
        policy = POLICIES[name]
        rows[name] = lambda key, image, policy=policy: apply_operations(image, policy(key, *image.shape[:2]))  # type: ignore[misc]
    return rows


def main() -> None:
    if unknown := [name for name in FLAGS.policies if name not in POLICIES]:
        raise InputError(f'policies={unknown[0]} must be some of {", ".join(POLICIES)}')
    name = FLAGS.dataset or 'digits'
    dataset = load_dataset(name, data_dir=FLAGS.data_dir, image_size=FLAGS.image_size)
    images = dataset.train.images[: FLAGS.num_images]
    keys = jax.random.split(jax.random.key(FLAGS.seed), len(images))
    rows = rows_of(images.shape[2])
    figure = Figure(figsize=(1.1 * len(images) + 2, 1.1 * len(rows)), layout='constrained')
    figure.suptitle(f'{name}, seed {FLAGS.seed}')
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    for line, (title, function) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, np.asarray(jax.jit(jax.vmap(function))(keys, images)), strict=True):
            axes.imshow(image.squeeze(), cmap='gray' if image.shape[-1] == 1 else None, vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, rotation=0, ha='right', va='center')
    out = pathlib.Path(FLAGS.workdir or f'runs/augment-{common.as_file_name(name)}')
    make_folder(out)
    save_figure(figure, out / 'augment.png')
    print(f'see {out / "augment.png"}')


if __name__ == '__main__':
    common.run(main)
