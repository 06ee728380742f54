"""The file of ``--out``, checked before any work."""

import pathlib
from collections.abc import Sequence

from absl import flags

from resnet_jax import InputError

FLAGS = flags.FLAGS

IMAGES = ('.png', '.pdf', '.svg')


def output_file(suffixes: Sequence[str] = (), default: str | None = None) -> pathlib.Path:
    """The output file: that of ``--out``, or ``default``, whose folder the command makes.

    Raises:
      InputError: the flag is required but not set, the file has another suffix, it is a folder, or its folder does not
        exist.
    """
    name = FLAGS.out or default
    if name is None or FLAGS.out == '':
        raise InputError('--out is required: the output file')
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        raise InputError(f'out={name} is a folder; --out names the output file')
    if suffixes and path.suffix not in suffixes:
        raise InputError(f'out={name} must end in {" or ".join(suffixes)}')
    if FLAGS.out and not path.parent.is_dir():
        raise InputError(f'out={name}: folder {path.parent} does not exist')
    return path
