"""Draws a grid of augmented images, one row per policy or operation.

python -m experiments.show_augment                                        # every policy on handwritten digits
python -m experiments.show_augment --dataset=arrays:DIR --show=operations
python -m experiments.show_augment --dataset=arrays:DIR --crop_area=0.08,1 --color_jitter=0.4,0.4,0.4,0.1 --cutout=8

Each augmentation flag that is set adds a row, drawn as in training; several flags add a row with all of them.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.shared import outputs, scripts, training_flags
from resnet_jax import InputError, TrainConfig
from resnet_jax.checkpoints.storage import make_folder
from resnet_jax.data.augment import Augmentation, augment
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset
from resnet_jax.data.photographs import squares
from resnet_jax.data.policies import OPERATIONS, POLICIES, apply_operations
from resnet_jax.text import shown, without_folders
from resnet_jax.training.report import save_figure

GROUP = 'tools'
FLAGS = flags.FLAGS

# A large magnitude for each operation, in its own unit; translations as a fraction of the width.
_STRONG = {
    **{'shear_x': 0.3, 'shear_y': 0.3, 'translate_x': 0.3, 'translate_y': 0.3, 'rotate': 30.0},
    **{'brightness': 1.9, 'contrast': 1.9, 'color': 1.9, 'sharpness': 1.9, 'posterize': 2.0},
    **{'solarize': 128.0, 'solarize_add': 110.0},
}

Row = Callable[[jax.Array, jax.Array], jax.Array]


def define_flags() -> None:
    training_flags.define_data_flags(default='digits')
    training_flags.define_augmentation_flags()
    flags.DEFINE_enum(
        'show',
        None,
        ['policies', 'operations'],
        'Rows to draw. Default: the augmentation flags that are set, otherwise policies.',
    )
    flags.DEFINE_list('policies', None, 'Policies to show. Default: all.')
    flags.DEFINE_integer('num_images', 10, 'Number of images (columns), the first of the training set.', lower_bound=1)
    flags.DEFINE_integer('seed', 0, 'Random seed.')
    flags.DEFINE_string(
        'out', None, 'Output file, a plot: .png, .pdf or .svg. Default: runs/augment-DATASET/augment.png.'
    )


def augmentation_from_flags(image_shape: tuple[int, ...]) -> Augmentation:
    """The augmentation that the flags describe.

    Raises:
      InputError: a value is out of range or does not fit the image shape.
    """
    augmentation = TrainConfig().replace(**training_flags.chosen_settings()).augmentation  # validates them
    augmentation.result_shape(image_shape)
    return augmentation


def single_augmentations(augmentation: Augmentation) -> dict[str, Augmentation]:
    """Each augmentation that is set alone, then all together, by row label; empty if none is set."""
    plain = Augmentation()
    values = {field.name: getattr(augmentation, field.name) for field in dataclasses.fields(Augmentation)}
    # The fill belongs to the crop if there is one, otherwise to the policy.
    crops = {name for name in values if 'crop' in name and (name != 'crop_fill' or augmentation.crop_padding)}
    crop = dataclasses.replace(plain, **{name: values[name] for name in crops})
    found = {} if crop == plain else {'crop': crop}
    for name, value in values.items():
        if name in (*crops, *training_flags.BATCH_SETTINGS, 'crop_fill') or value == getattr(plain, name):
            continue
        if name == 'policy':
            found[value.policy] = dataclasses.replace(plain, policy=value, crop_fill=augmentation.crop_fill)
        else:
            found[name] = dataclasses.replace(plain, **{name: value})
    return found | {'all': augmentation} if len(found) > 1 else found


def rows_of(width: int) -> dict[str, Row]:
    """Functions ``(key, image) -> image`` by row label."""
    rows: dict[str, Row] = {}
    if FLAGS.show == 'operations':
        for number, name in enumerate(OPERATIONS[1:], start=1):
            magnitude = _STRONG.get(name, 0.0) * (width if name.startswith('translate') else 1)
            drawn = jnp.array([number]), jnp.array([magnitude], jnp.float32)
            rows[name] = lambda key, image, drawn=drawn: apply_operations(image, drawn)  # type: ignore[misc]
        return rows
    for name in FLAGS.policies or POLICIES:
        policy = POLICIES[name]
        rows[name] = lambda key, image, policy=policy: apply_operations(image, policy(key, *image.shape[:2]))  # type: ignore[misc]
    return rows


def sheet_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """Rows of images by label, each uint8 ``[num_images, H', W', C]``."""
    if dataset.image_size is None:
        images = dataset.train.arrays[0][: FLAGS.num_images]
    else:
        images = squares(dataset.train.photographs, FLAGS.num_images, dataset.image_size)
    keys = jax.random.split(jax.random.key(FLAGS.seed), len(images))
    sheet = {'original': np.asarray(images)}
    augmentations = single_augmentations(augmentation_from_flags(images.shape[1:]))
    if FLAGS.show is not None or not augmentations:
        for name, row in rows_of(images.shape[2]).items():
            sheet[name] = np.asarray(jax.jit(jax.vmap(row))(keys, images))
    mean, std = dataset.mean, dataset.std
    for name, augmentation in augmentations.items():
        function = functools.partial(augment, mean=mean, std=std, augmentation=augmentation)
        values = 255 * (np.asarray(jax.jit(function)(keys, images)) * np.array(std) + np.array(mean))
        sheet[name] = np.round(values).clip(0, 255).astype(np.uint8)
    return sheet


def check_flags() -> None:
    """Raises InputError for a flag without effect on the rows that are drawn."""
    augmented = bool(training_flags.chosen_settings(training_flags.augmentation_settings()))
    if FLAGS.policies is not None:
        if unknown := [name for name in FLAGS.policies or [''] if name not in POLICIES]:
            raise InputError(f'policies={unknown[0]} must be one of {", ".join(POLICIES)}')
        if FLAGS.show == 'operations' or (FLAGS.show is None and augmented):
            raise InputError(f'policies={",".join(FLAGS.policies)} needs --show=policies')
    if FLAGS.show == 'operations' and FLAGS['seed'].present and not augmented:
        raise InputError(f'seed={FLAGS.seed} has no effect with --show=operations, which draws nothing at random')
    training_flags.check_data_dir(FLAGS.dataset or 'digits')


def main() -> None:
    check_flags()
    name = FLAGS.dataset or 'digits'
    out = outputs.output_file(outputs.IMAGES, f'runs/augment-{scripts.as_file_name(name)}/augment.png')
    dataset = load_dataset(name, data_dir=FLAGS.data_dir, image_size=FLAGS.image_size)
    sheet = sheet_of(dataset)
    columns = len(sheet['original'])
    figure = Figure(figsize=(1.1 * columns + 2, 1.1 * len(sheet)), layout='constrained')
    figure.suptitle(f'{without_folders(name)}, seed {FLAGS.seed}')
    grid = figure.subplots(len(sheet), columns, squeeze=False)
    for line, (title, images) in zip(grid, sheet.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.squeeze(), cmap='gray' if image.shape[-1] == 1 else None, vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, rotation=0, ha='right', va='center')
    make_folder(out.parent)
    save_figure(figure, out)
    print(f'wrote {shown(str(out))}')


if __name__ == '__main__':
    scripts.run(main, define_flags)
