"""ResNet-C to -T: deep stems, pooled shortcuts (He et al. 2018, arXiv:1812.01187).

Bag of Tricks for Image Classification with Convolutional Neural Networks.

Architectures: `resnet*c`, `resnet*d`, `resnet*s`, `resnet*t`, `test_resnet`.

python -m experiments.resnet_d --stem=cifar                                # resnet18d on handwritten digits
python -m experiments.resnet_d --arch=resnet26t --dataset=arrays:DIR       # a tiered stem
"""

from absl import flags

from experiments.shared import scripts, training_flags
from resnet_jax.models.norm import NORMS

GROUP = 'networks'
ARCHS = scripts.family(r'resnet\d+[cdst]', 'test_resnet')


def define_flags() -> None:
    training_flags.define_training_flags(arch='resnet18d', archs=ARCHS)
    flags.DEFINE_string('shortcut', None, "Shortcut type: identity, A, B, C or D. Default: the architecture's.")
    flags.DEFINE_enum('norm', None, list(NORMS), "Normalization. Default: the architecture's.")


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('shortcut', 'norm')))


if __name__ == '__main__':
    scripts.run(main, define_flags)
