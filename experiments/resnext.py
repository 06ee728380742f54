"""ResNeXt: grouped convolutions (Xie et al. 2017, arXiv:1611.05431).

Aggregated Residual Transformations for Deep Neural Networks.

Architectures: `resnext50_32x4d`, `resnext50d_32x4d`, `resnext101_*`, `resnext29_8x64d 16x64d`,
`resnext50_32x4d_cifar`.

python -m experiments.resnext                                             # resnext50_32x4d_cifar on digits
python -m experiments.resnext --arch=resnext29_8x64d --recipe=resnext_cifar         # as in the paper
python -m experiments.resnext --cardinality=8 --base_width=16             # fewer, wider groups
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family(r'resnext\d+d?_.*')


def define_flags() -> None:
    training_flags.define_training_flags(arch='resnext50_32x4d_cifar', archs=ARCHS)
    flags.DEFINE_integer(
        'cardinality', None, "Number of groups of the 3x3 convolution. Default: the architecture's.", lower_bound=1
    )
    flags.DEFINE_integer(
        'base_width', None, "Channels per group in the first stage. Default: the architecture's.", lower_bound=1
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('cardinality', 'base_width')))


if __name__ == '__main__':
    scripts.run(main, define_flags)
