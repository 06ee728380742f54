"""Selective kernel networks (Li et al. 2019, arXiv:1903.06586).

Selective Kernel Networks.

Architectures: `skresnet*`, `skresnext50_32x4d`.

python -m experiments.sknet --stem=cifar                                   # skresnet18 on handwritten digits
python -m experiments.sknet --arch=skresnext50_32x4d --dataset=arrays:DIR
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family('skresne.*')


def define_flags() -> None:
    training_flags.define_training_flags(arch='skresnet18', archs=ARCHS)
    flags.DEFINE_bool(
        'split_input', None, "Split the input channels between the two convolutions. Default: the architecture's."
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('split_input',)))


if __name__ == '__main__':
    scripts.run(main, define_flags)
