"""Exports a network as one StableHLO or ONNX file that runs without this package.

python -m experiments.export --init_from=RUN --out=network.stablehlo
python -m experiments.export --init_from=hf:timm/resnet50.a1_in1k --out=resnet50.stablehlo --platforms=cpu,cuda,tpu
python -m experiments.export --init_from=RUN --out=network.onnx             # needs pip install jax2onnx
"""

import pathlib

from absl import flags

from experiments.shared import scripts, training_flags
from resnet_jax import InputError, load_predictor
from resnet_jax.inference.export import ONNX, PLATFORMS, export, largest_difference

GROUP = 'tools'
FLAGS = flags.FLAGS

# For probabilities, or values in standard deviations; they differ only by the order of summation.
_TOLERANCE = 1e-4


def define_flags() -> None:
    training_flags.define_weights_flags()
    flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Checkpoint of a run to load.')
    flags.DEFINE_list('platforms', ['cpu'], f'Platforms that the file can run on: {", ".join(PLATFORMS)}.')
    flags.DEFINE_string(
        'out',
        'network.stablehlo',
        'Output file; an ONNX model if it ends in .onnx. FILE.json describes inputs and outputs.',
    )


def main() -> None:
    if FLAGS.init_from is None:
        raise InputError('--init_from is required: a run, a weights file, or hf:OWNER/NAME')
    out = pathlib.Path(FLAGS.out)
    if not out.parent.is_dir():
        raise InputError(f'out={out}: folder {out.parent} does not exist')
    predictor = load_predictor(FLAGS.init_from, FLAGS.checkpoint, arch=FLAGS.arch, prefix=FLAGS.weights_prefix)
    record = export(predictor, out, FLAGS.platforms)
    shapes = f'{record["input"]["shape"]} uint8 to {record["output"]["shape"]} float32'
    print(f'{record["arch"]}: {shapes}, {out.stat().st_size / 2**20:.1f} MiB')
    if 'cpu' in FLAGS.platforms or out.suffix == ONNX:
        difference = largest_difference(predictor, out)
        if difference > _TOLERANCE:
            for path in (out, out.with_name(out.name + '.json')):
                path.unlink()
            raise InputError(f'{out}: the exported file differs from the network by {difference:.2g}; it was removed')
        print(f'verified: largest difference from the network {difference:.2g}')
    print(f'wrote {out} and {out}.json')


if __name__ == '__main__':
    scripts.run(main, define_flags)
