"""ResNet-RS: rescaled networks (Bello et al. 2021, arXiv:2103.07579).

Revisiting ResNets: Improved Training and Scaling Strategies.

Architectures: `resnetrs*`.

python -m experiments.resnet_rs --stem=cifar                               # resnetrs50 on handwritten digits
python -m experiments.resnet_rs --drop_path_rate=0.1 --dropout_rate=0.25   # with the paper's regularization
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family(r'resnetrs\d+')


def define_flags() -> None:
    training_flags.define_training_flags(arch='resnetrs50', archs=ARCHS)
    flags.DEFINE_float(
        'se_ratio',
        None,
        "Hidden channels of the squeeze-and-excitation gate, as a fraction. Default: the architecture's.",
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('se_ratio',)))


if __name__ == '__main__':
    scripts.run(main, define_flags)
