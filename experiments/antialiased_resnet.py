"""Anti-aliasing: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486.

python -m experiments.antialiased_resnet --image_size=32                   # resnetblur18 on handwritten digits
python -m experiments.antialiased_resnet --arch=resnetaa50 --antialias=blur --dataset=arrays:DIR
"""

from absl import flags

from experiments import common, training_flags

ARCHS = common.family('resnetblur.*', '(se)?resne(t|xt)aa.*')

training_flags.define_training_flags(arch='resnetblur18', archs=ARCHS)
flags.DEFINE_enum(
    'antialias', None, ['none', 'blur', 'average'], "In the place of strides. Default: the architecture's."
)


def main() -> None:
    common.train(common.spec_from_flags(ARCHS, ('antialias',)))


if __name__ == '__main__':
    common.run(main)
