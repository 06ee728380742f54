"""Plain networks, without shortcuts (He et al. 2015, arXiv:1512.03385).

Deep Residual Learning for Image Recognition, sections 3.3 and 4.2.

Architectures: `plain18 34`, `plain20 32 44 56 110`, `plain10`.

python -m experiments.plain                                               # plain20 on handwritten digits
python -m experiments.plain --arch=plain56 --recipe=he2015_cifar          # deeper and worse than plain20
"""

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family(r'plain\d+')


def define_flags() -> None:
    training_flags.define_training_flags(arch='plain20', archs=ARCHS)


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS))


if __name__ == '__main__':
    scripts.run(main, define_flags)
