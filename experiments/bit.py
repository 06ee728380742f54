"""Big Transfer (Kolesnikov et al. 2020, arXiv:1912.11370).

Big Transfer (BiT): General Visual Representation Learning.

Architectures: `resnetv2_*_bit`.

python -m experiments.bit --image_size=32                                  # resnetv2_50x1_bit on handwritten digits
python -m experiments.bit --init_from=BiT-M-R50x1.npz --dataset=arrays:DIR # fine-tunes published weights
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family('resnetv2_.*_bit')


def define_flags() -> None:
    training_flags.define_training_flags(arch='resnetv2_50x1_bit', archs=ARCHS)
    flags.DEFINE_float('standardize', None, 'Epsilon of weight standardization. Default: 1e-8.')


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('standardize',)))


if __name__ == '__main__':
    scripts.run(main, define_flags)
