"""Pre-activation residual networks (He et al. 2016, arXiv:1603.05027).

Identity Mappings in Deep Residual Networks.

Architectures: `preact_resnet20 56 110 164 1001`, `resnetv2_*` without `_bit`.

python -m experiments.preact_resnet                                       # preact_resnet20 on handwritten digits
python -m experiments.preact_resnet --arch=preact_resnet164 --recipe=he2015_cifar --warmup_epochs=1
"""

from absl import flags

from experiments.shared import scripts, training_flags
from resnet_jax.models.norm import NORMS

GROUP = 'networks'
ARCHS = scripts.family('preact_resnet.*', r'resnetv2_\d+[dt]?(_gn|_evos|_frn)?')


def define_flags() -> None:
    training_flags.define_training_flags(arch='preact_resnet20', archs=ARCHS)
    flags.DEFINE_string('shortcut', None, "Shortcut type: identity, A, B, C or D. Default: the architecture's.")
    flags.DEFINE_enum('norm', None, list(NORMS), "Normalization. Default: the architecture's.")


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('shortcut', 'norm')))


if __name__ == '__main__':
    scripts.run(main, define_flags)
