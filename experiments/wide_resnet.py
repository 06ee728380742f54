"""Wide residual networks: Zagoruyko and Komodakis 2016, arXiv:1605.07146.

python -m experiments.wide_resnet                                         # wrn16_8 on handwritten digits
python -m experiments.wide_resnet --arch=wrn28_10 --recipe=wrn_cifar      # as in the paper
python -m experiments.wide_resnet --arch=wrn40_2 --widen_factor=1         # the same depth, not widened
"""

import dataclasses

from absl import flags

from experiments import common, training_flags
from resnet_jax import InputError

ARCHS = common.family('wrn.*', 'wide_resnet.*')

training_flags.define_training_flags(arch='wrn16_8', archs=ARCHS)
flags.DEFINE_integer(
    'widen_factor',
    None,
    "k of wrn…: 16 k, 32 k and 64 k channels in the stages. Default: the architecture's.",
    lower_bound=1,
)


def main() -> None:
    spec = common.spec_from_flags(ARCHS)
    factor = common.FLAGS.widen_factor
    if factor is not None:
        if not common.FLAGS.arch.startswith('wrn'):
            raise InputError(f'widen_factor={factor}: only for wrn…, not for arch={common.FLAGS.arch}')
        spec = dataclasses.replace(spec, widths=(16 * factor, 32 * factor, 64 * factor))
    common.train(spec)


if __name__ == '__main__':
    common.run(main)
