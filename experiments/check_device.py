"""Checks a GPU, TPU or CPU: logits, training, resumption, augmentation, input.

python -m experiments.check_device                                        # a few minutes on a GPU with 16 cores
python -m experiments.check_device --only=logits,steps --out=checked.json
python -m experiments.check_device --cifar10=arrays:DIR --resnet20=resnet20-12fca82f.th

The reference is PyTorch's logits, which are in the checkout, or the CPU of the same process; so JAX_PLATFORMS must be
unset or include cpu. On a CPU, networks and runs are smaller. Each part prints a line when it is done, and a part that
fails does not stop the others; a table follows. The exit status is 1 if a part failed.

logits: eight networks against PyTorch's outputs. steps: ten training steps with global, ghost and frozen statistics of
batch normalization. seeds: several seeds side by side against each alone. augmentation: every operation. resumption: a
run that is killed and resumed against an uninterrupted one, bit for bit. accuracy: published ResNet-20 weights on
CIFAR-10. photographs: images/s of input, step, and both. tests: tests of layers, losses and augmentation; only if named
in --only.
"""

import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable

from absl import flags

from experiments.shared import outputs, scripts
from experiments.shared.checks.outcomes import FAILED, FULL, SKIPPED, SMALL, Outcome, Places, Sizes, find_places
from experiments.shared.checks.runs import RUN, TEST_FILES, check_resumption, check_tests
from resnet_jax import InputError, get_spec, make_spec
from resnet_jax.checkpoints.environment import describe_environment
from resnet_jax.checkpoints.storage import reason, write_json
from resnet_jax.errors import nearest
from resnet_jax.text import print_lines

GROUP = 'tools'
FLAGS = flags.FLAGS

Part = Callable[[Places, Sizes], Outcome]


def define_flags() -> None:
    flags.DEFINE_list('only', [], f'Parts to run: {", ".join(PARTS)}. Default: all except tests.')
    flags.DEFINE_string('cifar10', None, 'arrays:DIR with CIFAR-10, for accuracy.')
    flags.DEFINE_string(
        'resnet20', None, 'Weights file resnet20-12fca82f.th of pytorch_resnet_cifar10, for accuracy; or a copy of it.'
    )
    flags.DEFINE_string('photographs', None, 'folder:DIR with photographs. Default: JPEG files made of random noise.')
    flags.DEFINE_string('out', None, 'Output file for all measured values, .json. Default: none.')


def check_logits(places: Places, sizes: Sizes) -> Outcome:
    from experiments.shared.checks import networks

    return networks.check_logits(places, sizes.networks)


def check_steps(places: Places, sizes: Sizes) -> Outcome:
    """Ten steps of a bottleneck network with an ImageNet stem; the widths fit the number of stages."""
    from experiments.shared.checks.networks import Steps, check_steps

    narrow = {} if len(sizes.stage_sizes) == 4 else {'widths': (16, 32), 'strides': (1, 2), 'stem_width': 16}
    spec = get_spec('resnet50', stage_sizes=sizes.stage_sizes, num_classes=10, **narrow)
    steps = Steps.make(spec, 10, sizes.batch_size, sizes.image_size)
    return check_steps(places, steps, ('global', sizes.ghost, 'frozen'), sizes.bfloat16)


def check_seeds(places: Places, sizes: Sizes) -> Outcome:
    """Three steps of three seeds of a small basic network."""
    from experiments.shared.checks.networks import Steps, check_seeds

    spec = make_spec('basic', (1, 1), (16, 32), (1, 2), 'cifar', 16, 'A', num_classes=10)
    return check_seeds(places, [Steps.make(spec, 3, sizes.batch_size, 16, seed) for seed in range(3)])


def check_augmentation(places: Places, sizes: Sizes) -> Outcome:
    from experiments.shared.checks import augmentation

    return augmentation.check_augmentation(places, sizes.augmented)


def check_accuracy(places: Places, sizes: Sizes) -> Outcome:
    """Skipped without the flags of the weights and the data."""
    from experiments.shared.checks import data

    missing = [f'--{name}' for name in ('cifar10', 'resnet20') if not FLAGS[name].value]
    if missing:
        return Outcome(SKIPPED, f'needs {" and ".join(missing)}')
    return data.check_accuracy(places, FLAGS.cifar10, FLAGS.resnet20)


def check_photographs(places: Places, sizes: Sizes) -> Outcome:
    from experiments.shared.checks import data

    return data.check_photographs(places, sizes, FLAGS.photographs)


PARTS: dict[str, Part] = {
    'logits': check_logits,
    'steps': check_steps,
    'seeds': check_seeds,
    'augmentation': check_augmentation,
    'resumption': lambda places, sizes: check_resumption(places, (*RUN, f'--epochs={sizes.epochs}')),
    'accuracy': check_accuracy,
    'photographs': check_photographs,
    'tests': lambda places, sizes: check_tests(places, TEST_FILES),
}
_ON_REQUEST = ('tests',)


def run_part(part: Part, places: Places, sizes: Sizes) -> tuple[Outcome, float]:
    """The outcome and the seconds of a part; an error of any kind is a failure of the part."""
    start = time.perf_counter()
    try:
        outcome = part(places, sizes)
    except Exception as error:
        outcome = Outcome(FAILED, f'{type(error).__name__}: {reason(error)}', {'traceback': traceback.format_exc()})
    return outcome, time.perf_counter() - start


def parts_of_flags() -> list[str]:
    """The parts to run.

    Raises:
      InputError: an unknown part, or files that do not exist.
    """
    for name in FLAGS.only:
        if name not in PARTS:
            raise InputError(f'only={name} is not a part; {nearest(name, PARTS)}')
    for name, start in (('cifar10', 'arrays:'), ('photographs', 'folder:')):
        value = FLAGS[name].value
        if value is not None and not (value.startswith(start) and os.path.isdir(value.removeprefix(start))):
            raise InputError(f'{name}={value} must be {start}DIR with an existing folder')
    if FLAGS.resnet20 is not None and not os.path.isfile(FLAGS.resnet20):
        raise InputError(f'resnet20={FLAGS.resnet20} is not a file')
    return [name for name in PARTS if (name in FLAGS.only if FLAGS.only else name not in _ON_REQUEST)]


def main() -> None:
    names = parts_of_flags()
    out = outputs.output_file(('.json',)) if FLAGS.out is not None else None
    # The parts that start other processes share the memory of the device with them.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    places = find_places()
    sizes = SMALL if places.is_cpu else FULL
    print_lines(f'checking {places.device.device_kind}' + (', with small sizes' if places.is_cpu else ''))
    environment, outcomes = describe_environment([places.device]), {}
    for name in names:
        outcome, seconds = run_part(PARTS[name], places, sizes)
        outcomes[name] = outcome, seconds
        print_lines(f'{name:>13} {outcome.status:>7} {seconds:6.1f} s  {outcome.summary}')
        if out is not None:  # after each part, so that nothing is lost if a later one ends the process
            parts = {key: dataclasses.asdict(one) | {'seconds': took} for key, (one, took) in outcomes.items()}
            write_json(out, {'environment': environment, 'sizes': dataclasses.asdict(sizes), 'parts': parts})
    rows = [(name, one.status, f'{seconds:.1f}', one.summary) for name, (one, seconds) in outcomes.items()]
    print_lines(scripts.markdown_table(('part', 'result', 'seconds', 'found'), rows))
    failed = [name for name, (one, _) in outcomes.items() if one.status == FAILED]
    if failed:
        sys.stdout.flush()
        sys.exit(1)


if __name__ == '__main__':
    scripts.run(main, define_flags)
