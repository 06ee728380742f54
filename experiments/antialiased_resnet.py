"""Anti-aliased networks (Zhang 2019, arXiv:1904.11486).

Making Convolutional Networks Shift-Invariant Again.

Architectures: `resnetblur*`, `resnetaa*`, `seresnetaa50d`, `seresnextaa*`.

python -m experiments.antialiased_resnet --image_size=32                   # resnetblur18 on handwritten digits
python -m experiments.antialiased_resnet --arch=resnetaa50 --antialias=blur --dataset=arrays:DIR
"""

from absl import flags

from experiments.shared import scripts, training_flags

GROUP = 'networks'
ARCHS = scripts.family('resnetblur.*', '(se)?resne(t|xt)aa.*')


def define_flags() -> None:
    training_flags.define_training_flags(arch='resnetblur18', archs=ARCHS)
    flags.DEFINE_enum(
        'antialias', None, ['none', 'blur', 'average'], "Pooling that replaces strides. Default: the architecture's."
    )


def main() -> None:
    scripts.train(scripts.spec_from_flags(ARCHS, ('antialias',)))


if __name__ == '__main__':
    scripts.run(main, define_flags)
