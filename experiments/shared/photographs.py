"""Code shared by the scripts that read single photographs."""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from experiments.shared import training_flags, weights_flags
from experiments.shared.paths import define_paths
from resnet_jax import InputError, Predictor
from resnet_jax.data.conversions import Conversions
from resnet_jax.data.examples import reason
from resnet_jax.data.image_files import find_images
from resnet_jax.text import printable

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Flags for the network, the photographs and their preprocessing."""
    weights_flags.define_flags()
    define_paths(__name__, 'images', None, 'Image files and folders of images, separated by commas; required.')
    training_flags.define_settings(('image_size', 'crop_pct', 'interpolation'), default='read from the weights')
    flags.DEFINE_integer('batch_size', 64, 'Images per batch.', lower_bound=1)


def predictor_of_flags() -> Predictor:
    """The network of ``--init_from``, with the preprocessing of the flags."""
    predictor = weights_flags.predictor_of_flags()
    chosen = training_flags.set_flags(('crop_pct', 'interpolation'))
    if FLAGS.image_size is None and not chosen:
        return predictor
    wanted = min(predictor.image_shape[:2]) if FLAGS.image_size is None else FLAGS.image_size
    preprocessing = dataclasses.replace(predictor.photograph_preprocessing, size=wanted, **chosen)
    shape = preprocessing.size, preprocessing.size, predictor.image_shape[2]
    return dataclasses.replace(predictor, preprocessing=preprocessing, image_shape=shape)


def files_of_flags() -> list[str]:
    """The image files of ``--images``; folders are searched recursively, in order of names, without hidden files.

    Raises:
      InputError: no images, or a path that does not exist.
    """
    if not FLAGS.images:
        raise InputError('--images is required: image files or folders of images')
    found: list[str] = []
    for name in FLAGS.images:
        path = pathlib.Path(name).expanduser()
        if path.is_dir():
            try:
                found += (os.path.join(path, file) for file in find_images(path))
            except OSError as error:
                raise InputError(f'{name}: cannot be read ({reason(error)})') from error
        elif path.exists():
            found.append(str(path))
        else:
            raise InputError(f'{name} does not exist')
    if not found:
        raise InputError(f'images={",".join(FLAGS.images)}: no images found')
    return found


def batches(predictor: Predictor, files: Sequence[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields names and prepared images uint8 ``[N, H, W, C]``; images that cannot be decoded are reported and skipped.

    After the last batch, one line on stderr says what was converted.

    Raises:
      InputError: none of the images can be decoded.
    """

    def prepare(file: str) -> np.ndarray | InputError:
        try:
            image = predictor.prepare(file)
            with contextlib.suppress(OSError):
                conversions.add(file, pathlib.Path(file).read_bytes())
            return image
        except InputError as error:
            return error

    size, any_decoded, conversions = FLAGS.batch_size, False, conversions_for(predictor)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for start in range(0, len(files), size):
            names, images = [], []
            chunk = files[start : start + size]
            for file, found in zip(chunk, pool.map(prepare, chunk), strict=True):
                if isinstance(found, InputError):
                    print(printable(f'skipping {found}'), file=sys.stderr)
                else:
                    names.append(file)
                    images.append(found)
            if names:
                any_decoded = True
                yield names, np.stack(images)
    if not any_decoded:
        raise InputError(f'no image could be decoded ({len(files)} tried)')
    report(conversions)


def conversions_for(predictor: Predictor) -> Conversions:
    """Counts of conversions to a network's input; of sizes only if the network was not trained on photographs."""
    height, width, channels = predictor.image_shape
    return Conversions(channels, (height, width) if predictor.preprocessing is None else None)


def report(conversions: Conversions) -> None:
    """Prints what was converted, if anything."""
    if line := str(conversions):
        print(line, file=sys.stderr)
