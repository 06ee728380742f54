"""Converts weights between PyTorch and Flax layouts, as safetensors.

python -m experiments.convert --init_from=runs/resnet20-digits-seed0 --out=resnet20.safetensors      # for PyTorch
python -m experiments.convert --init_from=resnet50.pth --arch=resnet50 --out=flax.safetensors --layout=flax
"""

from absl import flags

from experiments.shared import scripts, training_flags
from resnet_jax import InputError, from_pretrained, save_weights

GROUP = 'tools'
FLAGS = flags.FLAGS


def define_flags() -> None:
    training_flags.define_weights_flags()
    flags.DEFINE_string('out', None, 'Safetensors file to write.')
    flags.DEFINE_enum(
        'layout',
        'torch',
        ['torch', 'flax'],
        "torch: names and axis order of timm and torchvision; flax: this project's parameter paths and axis order.",
    )


def main() -> None:
    for name in ('init_from', 'out'):
        if FLAGS[name].value is None:
            raise InputError(f'--{name} is required')
    if not FLAGS.out.endswith('.safetensors'):
        raise InputError(f'out={FLAGS.out} must end in .safetensors')
    loaded = from_pretrained(FLAGS.init_from, FLAGS.arch, prefix=FLAGS.weights_prefix, headless=True)
    save_weights(FLAGS.out, loaded.model, loaded.variables, layout=FLAGS.layout)
    has_head = 'head' in loaded.variables['params']
    head = f'{loaded.model.spec.head.num_classes:,} classes' if has_head else 'no head'
    print(f'wrote {FLAGS.out}: {loaded.arch}, {head}, {FLAGS.layout} layout')


if __name__ == '__main__':
    scripts.run(main, define_flags)
