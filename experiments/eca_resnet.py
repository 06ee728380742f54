"""Efficient channel attention: Wang et al. 2020, "ECA-Net", arXiv:1910.03151.

python -m experiments.eca_resnet --stem=cifar                              # ecaresnet26t on handwritten digits
python -m experiments.eca_resnet --arch=ecaresnet50d_pruned --dataset=arrays:DIR
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family('ecaresne.*')

training_flags.define_training_flags(arch='ecaresnet26t', archs=ARCHS)
flags.DEFINE_string('shortcut', None, "Shortcut: identity, A, B, C or D. Default: the architecture's.")


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('shortcut',)))


if __name__ == '__main__':
    common.run(main)
