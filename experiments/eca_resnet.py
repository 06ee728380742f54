"""Efficient channel attention (Wang et al. 2020, arXiv:1910.03151).

ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks.

Architectures: `ecaresnet*`, `ecaresnext*`.

python -m experiments.eca_resnet --stem=cifar                              # ecaresnet26t on handwritten digits
python -m experiments.eca_resnet --arch=ecaresnet50d_pruned --dataset=arrays:DIR
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family('ecaresne.*')


def define_flags() -> None:
    training_flags.define_training_flags(arch='ecaresnet26t', archs=ARCHS)
    flags.DEFINE_string('shortcut', None, "Shortcut type: identity, A, B, C or D. Default: the architecture's.")


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('shortcut',)))


if __name__ == '__main__':
    scripts.run(main, define_flags)
