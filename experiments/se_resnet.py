"""Squeeze-and-excitation networks (Hu et al. 2018, arXiv:1709.01507).

Squeeze-and-Excitation Networks.

Architectures: `seresnet*`, `seresnext*`, `senet154`, `legacy_se*`.

python -m experiments.se_resnet --stem=cifar                               # seresnet18 on handwritten digits
python -m experiments.se_resnet --arch=seresnext50_32x4d --dataset=arrays:DIR
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family(r'(legacy_)?seresne(t|xt)\d+[dt]?(_\d+x\d+d)?', '(legacy_)?senet154')


def define_flags() -> None:
    training_flags.define_training_flags(arch='seresnet18', archs=ARCHS)
    flags.DEFINE_float(
        'se_ratio',
        None,
        "Hidden channels of the squeeze-and-excitation gate, as a fraction. Default: the architecture's.",
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('se_ratio',)))


if __name__ == '__main__':
    scripts.run(main, define_flags)
