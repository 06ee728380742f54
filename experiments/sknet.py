"""Selective kernels: Li et al. 2019, "Selective Kernel Networks", arXiv:1903.06586.

python -m experiments.sknet --stem=cifar                                   # skresnet18 on handwritten digits
python -m experiments.sknet --arch=skresnext50_32x4d --dataset=arrays:DIR
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family('skresne.*')

training_flags.define_training_flags(arch='skresnet18', archs=ARCHS)
flags.DEFINE_bool('split_input', None, "Each convolution takes half of the channels. Default: the architecture's.")


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('split_input',)))


if __name__ == '__main__':
    common.run(main)
