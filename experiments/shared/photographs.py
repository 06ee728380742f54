"""What the scripts share that take photographs one by one."""

import concurrent.futures
import dataclasses
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from experiments.shared import training_flags
from resnet_jax import InputError, Predictor, load_predictor
from resnet_jax.data.examples import reason
from resnet_jax.data.folder import SUFFIXES, find_images

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The network, the photographs, and how they are prepared."""
    flags.DEFINE_string('init_from', None, training_flags.INIT_FROM)
    flags.DEFINE_string('arch', None, 'Architecture of a file that does not name it. Default: what the weights say.')
    flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which checkpoint of a run.')
    flags.DEFINE_list('images', [], 'Images and folders of images, separated by commas.')
    training_flags.define_settings(('image_size', 'crop_pct', 'interpolation'), default='what the weights say')
    flags.DEFINE_integer('batch_size', 64, 'Images at once.', lower_bound=1)


def predictor_of_flags() -> Predictor:
    """The network, with the preprocessing that flags change."""
    if FLAGS.init_from is None:
        raise InputError('--init_from must name the weights: a run, a file, or hf:OWNER/NAME')
    predictor = load_predictor(FLAGS.init_from, FLAGS.checkpoint, arch=FLAGS.arch)
    chosen = training_flags.set_flags(('crop_pct', 'interpolation'))
    if FLAGS.image_size is None and not chosen:
        return predictor
    wanted = min(predictor.image_shape[:2]) if FLAGS.image_size is None else FLAGS.image_size
    preprocessing = dataclasses.replace(predictor.photograph_preprocessing, size=wanted, **chosen)
    shape = preprocessing.size, preprocessing.size, predictor.image_shape[2]
    return dataclasses.replace(predictor, preprocessing=preprocessing, image_shape=shape)


def files_of_flags() -> list[str]:
    """The images, those in folders and below in the order of their names; hidden ones are left out there.

    Raises:
      InputError: none, or one that does not exist.
    """
    if not FLAGS.images:
        raise InputError('--images must name images, or folders of them')
    found: list[str] = []
    for name in FLAGS.images:
        path = pathlib.Path(name).expanduser()
        if path.is_dir():
            try:
                found += sorted(os.path.join(path, file) for file in find_images(path))
            except OSError as error:
                raise InputError(f'{name}: cannot read it ({reason(error)})') from error
        elif path.exists():
            found.append(str(path))
        else:
            raise InputError(f'{name} does not exist')
    if not found:
        raise InputError(f'images={",".join(FLAGS.images)}: no images; their names end with {", ".join(SUFFIXES)}')
    return found


def printable(file: str) -> str:
    """A file's name, also if its bytes are no UTF-8."""
    return os.fsencode(file).decode('utf-8', 'backslashreplace')


def batches(predictor: Predictor, files: Sequence[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and prepared images uint8 ``[N, H, W, C]``; what cannot be decoded is named and left out.

    Raises:
      InputError: nothing can be decoded.
    """

    def prepared(file: str) -> np.ndarray | InputError:
        try:
            return predictor.prepare(file)
        except InputError as error:
            return error

    size, some = FLAGS.batch_size, False
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for start in range(0, len(files), size):
            names, images = [], []
            chunk = files[start : start + size]
            for file, found in zip(chunk, pool.map(prepared, chunk), strict=True):
                if isinstance(found, InputError):
                    print(f'{found}: it is left out', file=sys.stderr)
                else:
                    names.append(file)
                    images.append(found)
            if names:
                some = True
                yield names, np.stack(images)
    if not some:
        raise InputError(f'none of {len(files)} images can be decoded')
