"""ResNet-C, -D, -S and -T, deep stems and average-pool shortcuts: He et al. 2018, "Bag of Tricks", arXiv:1812.01187.

python -m experiments.resnet_d --stem=cifar                                # resnet18d on handwritten digits
python -m experiments.resnet_d --arch=resnet26t --dataset=arrays:DIR       # a tiered stem
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family(r'resnet\d+[cdst]', 'test_resnet')

training_flags.define_training_flags(arch='resnet18d', archs=ARCHS)
flags.DEFINE_string('shortcut', None, "Shortcut: identity, A, B, C or D. Default: the architecture's.")
flags.DEFINE_enum(
    'norm', None, ['batch', 'group', 'evo', 'filter_response'], "Normalization. Default: the architecture's."
)


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('shortcut', 'norm')))


if __name__ == '__main__':
    common.run(main)
