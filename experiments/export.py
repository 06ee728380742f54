"""Exports a network as one StableHLO or ONNX file that runs without this package.

python -m experiments.export --init_from=RUN --out=network.stablehlo
python -m experiments.export --init_from=hf:timm/resnet50.a1_in1k --out=resnet50.stablehlo --platforms=cpu,cuda,tpu
python -m experiments.export --init_from=RUN --out=network.onnx             # needs pip install jax2onnx
"""

from absl import flags

from experiments.shared import outputs, scripts, weights_flags
from resnet_jax import InputError
from resnet_jax.inference.export import ONNX, PLATFORMS, check_platforms, export, largest_difference
from resnet_jax.text import printable

GROUP = 'tools'
FLAGS = flags.FLAGS

# For probabilities, or values in standard deviations; they differ only by the order of summation.
_TOLERANCE = 1e-4


def define_flags() -> None:
    weights_flags.define_flags()
    flags.DEFINE_list('platforms', ['cpu'], f'Platforms that the file can run on: {", ".join(PLATFORMS)}.')
    flags.DEFINE_string(
        'out',
        None,
        'Output file, required; an ONNX model if it ends in .onnx. FILE.json describes inputs and outputs.',
    )


def main() -> None:
    weights_flags.source_of_flags()
    out = outputs.output_file()
    if out.suffix == ONNX and FLAGS['platforms'].present:
        raise InputError(f'platforms={",".join(FLAGS.platforms)} does not apply to ONNX (out={out})')
    check_platforms(FLAGS.platforms)
    predictor = weights_flags.predictor_of_flags()
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
    print(printable(f'wrote {out} and {out}.json'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
