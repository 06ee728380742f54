"""Res2Net: multiple scales within a block (Gao et al. 2019, arXiv:1904.01169).

Res2Net: A New Multi-scale Backbone Architecture.

Architectures: `res2net*`, `res2next50`.

python -m experiments.res2net --stem=cifar                                 # res2net50_48w_2s on handwritten digits
python -m experiments.res2net --arch=res2net50_26w_4s --scale=6 --dataset=arrays:DIR
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family('res2ne.*')


def define_flags() -> None:
    training_flags.define_training_flags(arch='res2net50_48w_2s', archs=ARCHS)
    flags.DEFINE_integer(
        'scale', None, "Number of channel groups per block. Default: the architecture's.", lower_bound=2
    )
    flags.DEFINE_integer(
        'base_width', None, "Channels per group in the first stage. Default: the architecture's.", lower_bound=1
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('scale', 'base_width')))


if __name__ == '__main__':
    scripts.run(main, define_flags)
