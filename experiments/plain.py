"""Plain networks, the residual ones' control: He et al. 2015, arXiv:1512.03385, sections 3.3 and 4.2.

python -m experiments.plain                                               # plain20 on handwritten digits
python -m experiments.plain --arch=plain56 --recipe=he2015_cifar          # deeper, and worse than plain20
"""

from experiments import common, training_flags

ARCHS = common.family(r'plain\d+')

training_flags.define_training_flags(arch='plain20', archs=ARCHS)


def main() -> None:
    common.train(common.spec_from_flags(ARCHS))


if __name__ == '__main__':
    common.run(main)
