"""Pre-activation networks: He et al. 2016, "Identity Mappings in Deep Residual Networks", arXiv:1603.05027.

python -m experiments.preact_resnet                                       # preact_resnet20 on handwritten digits
python -m experiments.preact_resnet --arch=preact_resnet164 --recipe=he2015_cifar --warmup_epochs=1
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family('preact_resnet.*', r'resnetv2_\d+[dt]?(_gn|_evos|_frn)?')

training_flags.define_training_flags(arch='preact_resnet20', archs=ARCHS)
flags.DEFINE_string('shortcut', None, "Shortcut: identity, A, B, C or D. Default: the architecture's.")
flags.DEFINE_enum(
    'norm', None, ['batch', 'group', 'evo', 'filter_response'], "Normalization. Default: the architecture's."
)


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('shortcut', 'norm')))


if __name__ == '__main__':
    common.run(main)
