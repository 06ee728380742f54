"""Residual networks (He et al. 2015, arXiv:1512.03385).

Deep Residual Learning for Image Recognition.

Architectures: `resnet18 26 34 50 101 152 200`, `resnet50_gn`; for CIFAR `resnet20 32 44 56 110 1202`,
`resnet18_cifar 34 50`.

python -m experiments.resnet                                              # resnet20 on handwritten digits
python -m experiments.resnet --recipe=cifar_fast --dataset=arrays:DIR     # the same network on CIFAR-10
python -m experiments.resnet --arch=resnet56 --recipe=he2015_cifar        # as in the paper
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family(r'resnet\d+(_cifar|_gn)?')


def define_flags() -> None:
    training_flags.define_training_flags(arch='resnet20', archs=ARCHS)
    flags.DEFINE_string('shortcut', None, "Shortcut type: identity, A, B, C or D. Default: the architecture's.")
    flags.DEFINE_bool(
        'stride_in_1x1',
        None,
        'Put the stride of a bottleneck in its first 1x1 convolution (v1), not in its 3x3 (v1.5).',
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('shortcut', 'stride_in_1x1')))


if __name__ == '__main__':
    scripts.run(main, define_flags)
