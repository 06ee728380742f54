"""Split attention: Zhang et al. 2020, "ResNeSt: Split-Attention Networks", arXiv:2004.08955.

python -m experiments.resnest --stem=cifar                                 # resnest14d on handwritten digits
python -m experiments.resnest --arch=resnest50d --radix=4 --dataset=arrays:DIR
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family('resnest.*')

training_flags.define_training_flags(arch='resnest14d', archs=ARCHS)
flags.DEFINE_integer('radix', None, "Branches of the 3x3 convolution. Default: the architecture's.", lower_bound=1)
flags.DEFINE_integer('cardinality', None, "Groups of the 3x3 convolution. Default: the architecture's.", lower_bound=1)
flags.DEFINE_integer(
    'base_width', None, "Channels of a group in the first stage. Default: the architecture's.", lower_bound=1
)


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('radix', 'cardinality', 'base_width')))


if __name__ == '__main__':
    common.run(main)
