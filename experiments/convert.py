"""Converts weights between the layouts of PyTorch and Flax, as safetensors.

python -m experiments.convert --init_from=runs/resnet20-digits-seed0 --out=resnet20.safetensors      # for PyTorch
python -m experiments.convert --init_from=resnet50.pth --arch=resnet50 --out=flax.safetensors --layout=flax
"""

from absl import flags

from experiments.shared import scripts, training_flags
from resnet_jax import InputError, from_pretrained, save_weights

GROUP = 'tools'
FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string('init_from', None, training_flags.INIT_FROM)
    flags.DEFINE_string('arch', None, 'Architecture of a file that does not name it. Default: what the weights say.')
    flags.DEFINE_string('out', None, 'The safetensors file to write.')
    flags.DEFINE_enum(
        'layout',
        'torch',
        ['torch', 'flax'],
        "torch: the names of timm and torchvision, their order of axes; flax: this project's paths and order of axes.",
    )


def main() -> None:
    for name in ('init_from', 'out'):
        if FLAGS[name].value is None:
            raise InputError(f'--{name} must be given')
    if not FLAGS.out.endswith('.safetensors'):
        raise InputError(f'out={FLAGS.out} must end in .safetensors')
    loaded = from_pretrained(FLAGS.init_from, FLAGS.arch)
    save_weights(FLAGS.out, loaded.model, loaded.variables, layout=FLAGS.layout)
    print(f'{loaded.arch}, {loaded.model.spec.head.num_classes:,} classes, in the {FLAGS.layout} layout: {FLAGS.out}')


if __name__ == '__main__':
    scripts.run(main, define_flags)
