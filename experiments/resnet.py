"""Residual networks: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.

python -m experiments.resnet                                              # resnet20 on handwritten digits
python -m experiments.resnet --recipe=cifar_fast --dataset=arrays:DIR     # the same network on CIFAR-10
python -m experiments.resnet --arch=resnet56 --recipe=he2015_cifar        # as in the paper
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family(r'resnet\d+(_cifar|_gn)?')

training_flags.define_training_flags(arch='resnet20', archs=ARCHS)
flags.DEFINE_string('shortcut', None, "Shortcut: identity, A, B, C or D. Default: the architecture's.")
flags.DEFINE_bool('stride_in_1x1', None, 'Stride of a bottleneck in its first 1x1 (v1) instead of its 3x3 (v1.5).')


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('shortcut', 'stride_in_1x1')))


if __name__ == '__main__':
    common.run(main)
