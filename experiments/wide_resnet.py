"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146).

Wide Residual Networks.

Architectures: `wrn16_8 28_10 40_2 40_10`, `wide_resnet50_2 101_2`.

python -m experiments.wide_resnet                                         # wrn16_8 on handwritten digits
python -m experiments.wide_resnet --arch=wrn28_10 --recipe=wrn_cifar      # as in the paper
python -m experiments.wide_resnet --arch=wrn40_2 --widen_factor=1         # the same depth, without widening
"""

from absl import flags

from experiments.shared import scripts, training_flags
from resnet_jax import InputError, with_changes

GROUP = 'networks'
ARCHS = scripts.family('wrn.*', 'wide_resnet.*')


def define_flags() -> None:
    training_flags.define_training_flags(arch='wrn16_8', archs=ARCHS)
    flags.DEFINE_integer(
        'widen_factor',
        None,
        "k, for wrn*: the stages have 16 k, 32 k and 64 k channels. Default: the architecture's.",
        lower_bound=1,
    )


def main() -> None:
    spec = scripts.spec_from_flags(ARCHS)
    factor = scripts.FLAGS.widen_factor
    if factor is not None:
        if not scripts.FLAGS.arch.startswith('wrn'):
            raise InputError(f'widen_factor={factor} applies only to wrn*, not to arch={scripts.FLAGS.arch}')
        spec = with_changes(spec, widths=(16 * factor, 32 * factor, 64 * factor))
    scripts.train(spec)


if __name__ == '__main__':
    scripts.run(main, define_flags)
