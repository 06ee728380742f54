"""ResNeSt: split attention (Zhang et al. 2020, arXiv:2004.08955).

ResNeSt: Split-Attention Networks.

Architectures: `resnest*`.

python -m experiments.resnest --stem=cifar                                 # resnest14d on handwritten digits
python -m experiments.resnest --arch=resnest50d --radix=4 --dataset=arrays:DIR
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family('resnest.*')


def define_flags() -> None:
    training_flags.define_training_flags(arch='resnest14d', archs=ARCHS)
    flags.DEFINE_integer(
        'radix', None, "Number of branches of the 3x3 convolution. Default: the architecture's.", lower_bound=1
    )
    flags.DEFINE_integer(
        'cardinality', None, "Number of groups of the 3x3 convolution. Default: the architecture's.", lower_bound=1
    )
    flags.DEFINE_integer(
        'base_width', None, "Channels per group in the first stage. Default: the architecture's.", lower_bound=1
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('radix', 'cardinality', 'base_width')))


if __name__ == '__main__':
    scripts.run(main, define_flags)
