"""Squeeze and excitation: Hu et al. 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507.

python -m experiments.se_resnet --stem=cifar                               # seresnet18 on handwritten digits
python -m experiments.se_resnet --arch=seresnext50_32x4d --dataset=arrays:DIR
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family(r'(legacy_)?seresne(t|xt)\d+[dt]?(_\d+x\d+d)?', '(legacy_)?senet154')

training_flags.define_training_flags(arch='seresnet18', archs=ARCHS)
flags.DEFINE_float('se_ratio', None, "Share of the channels between the gate's layers. Default: the architecture's.")


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('se_ratio',)))


if __name__ == '__main__':
    common.run(main)
