"""Converts weights between PyTorch and Flax layouts, as safetensors.

python -m experiments.convert --init_from=runs/resnet20-digits-seed0 --out=resnet20.safetensors      # for PyTorch
python -m experiments.convert --init_from=resnet50.pth --arch=resnet50 --out=flax.safetensors --layout=flax
"""

from absl import flags

from experiments.shared import outputs, scripts, weights_flags
from resnet_jax import from_pretrained, save_weights
from resnet_jax.text import printable

GROUP = 'tools'
FLAGS = flags.FLAGS


def define_flags() -> None:
    weights_flags.define_flags()
    flags.DEFINE_string('out', None, 'Safetensors file to write; required.')
    flags.DEFINE_enum(
        'layout',
        'torch',
        ['torch', 'flax'],
        "torch: names and axis order of timm and torchvision; flax: this project's parameter paths and axis order.",
    )


def main() -> None:
    source, out = weights_flags.source_of_flags(), outputs.output_file(['.safetensors'])
    loaded = from_pretrained(source, FLAGS.arch, which=FLAGS.checkpoint, prefix=FLAGS.weights_prefix, headless=True)
    save_weights(out, loaded.model, loaded.variables, layout=FLAGS.layout)
    has_head = 'head' in loaded.variables['params']
    head = f'{loaded.model.spec.head.num_classes:,} classes' if has_head else 'no head'
    print(printable(f'wrote {out}: {loaded.arch}, {head}, {FLAGS.layout} layout'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
