"""Flags of commands that read a trained network: a run, a weights file, or weights on the hub."""

import pathlib

from absl import flags

from experiments.shared import training_flags
from resnet_jax import InputError, Predictor, load_predictor
from resnet_jax.training.config import WEIGHTS
from resnet_jax.weights.hub import HUB
from resnet_jax.weights.runs import run_and_step

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string('init_from', None, f'Weights to load: {WEIGHTS}; required.')
    flags.DEFINE_string(
        'arch', None, 'Architecture of a weights file that does not record it. Default: read from the weights.'
    )
    flags.DEFINE_string('checkpoint', 'last', 'Checkpoint of a run to load: last or best.')
    training_flags.define_settings(['weights_prefix'])


def source_of_flags() -> str:
    """The run, weights file or id on the hub of ``--init_from``.

    Raises:
      InputError: the flag is not set, nothing is there, or another flag has no effect on it.
    """
    source, which = FLAGS.init_from, FLAGS.checkpoint
    if not source:
        raise InputError('--init_from is required: a run, a weights file, or hf:OWNER/NAME')
    if which not in ('last', 'best'):
        raise InputError(f'checkpoint={which} must be last or best; --init_from names the run or a checkpoint')
    path, chosen = pathlib.Path(source), FLAGS['checkpoint'].present
    if source.startswith(HUB) or path.is_file():
        if chosen:
            raise InputError(f'checkpoint={which} applies only to a run; init_from={source} is a weights file')
        return source
    if not path.exists():
        raise InputError(f'{source} does not exist')
    if FLAGS.arch is not None:
        raise InputError(f'arch={FLAGS.arch}: a run records its architecture; --arch applies only to a weights file')
    if chosen and run_and_step(path)[1] is not None:
        raise InputError(f'checkpoint={which} applies only to a run; init_from={source} is one of its checkpoints')
    return source


def predictor_of_flags() -> Predictor:
    """The network of ``--init_from``, ready for inference.

    Raises:
      InputError: as ``source_of_flags`` and ``load_predictor``.
    """
    return load_predictor(source_of_flags(), FLAGS.checkpoint, arch=FLAGS.arch, prefix=FLAGS.weights_prefix)
