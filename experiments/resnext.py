"""ResNeXt: Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks", arXiv:1611.05431.

python -m experiments.resnext                                             # resnext50_32x4d_cifar on digits
python -m experiments.resnext --arch=resnext29_8x64d --recipe=resnext_cifar         # as in the paper
python -m experiments.resnext --cardinality=8 --base_width=16             # fewer, wider groups
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family(r'resnext\d+d?_.*')

training_flags.define_training_flags(arch='resnext50_32x4d_cifar', archs=ARCHS)
flags.DEFINE_integer('cardinality', None, "Groups of the 3x3 convolution. Default: the architecture's.", lower_bound=1)
flags.DEFINE_integer(
    'base_width', None, "Channels of a group in the first stage. Default: the architecture's.", lower_bound=1
)


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('cardinality', 'base_width')))


if __name__ == '__main__':
    common.run(main)
