"""Times training steps against Flax and PyTorch; estimates cost on TPUs and GPUs.

python -m experiments.benchmark --arch=resnet20,resnet50                    # this machine
python -m experiments.benchmark --arch=resnet50 --against=flax,torch        # compared with the baselines
python -m experiments.benchmark --arch=resnet50 --topology=h100 --compute_dtype=bfloat16        # without a GPU
python -m experiments.benchmark --arch=resnet50 --topology=v5e:2x2          # the TPU compiler's estimate
python -m experiments.benchmark --arch=resnet50 --topology=v5e:16x16 --all_chips --batch_size=16384 --image_size=224

Each contender runs in its own process. On a CPU, the contenders alternate, so that other load on the machine affects
all of them; on a GPU, which holds the memory of one, they run one after the other. A turn is one untimed step for every
four timed ones (at least one), and --steps timed ones without a pause. The results are the median over --rounds turns
and the median ratio of turns with the same number.

On a GPU, PyTorch runs with channels_last, a fused optimizer and convolutions chosen by trial, eager (``torch``) and
compiled (``torch.compile``). Both PyTorch and JAX round float32 products to TF32 there.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import statistics
from collections.abc import Generator
from typing import Any

import jax
from absl import flags

from experiments.shared import scripts
from experiments.shared.contenders import Contender
from experiments.shared.steps import CONTENDERS, Case, flops, jax_step
from resnet_jax import InputError, aot, get_spec
from resnet_jax.devices import data_parallel
from resnet_jax.models.conv import IMPLEMENTATIONS
from resnet_jax.training.peaks import PEAKS

GROUP = 'tools'
FLAGS = flags.FLAGS
BASELINES = ('flax', 'torch')
OTHERS = (*BASELINES, 'torch.compile')  # in results


def define_flags() -> None:
    flags.DEFINE_list('arch', 'resnet20', 'Architectures, separated by commas; see python -m experiments.list_models.')
    flags.DEFINE_integer(
        'batch_size',
        None,
        'Images per step. Default: 128 up to 32 pixels, otherwise 16; on a GPU 512, otherwise 256.',
        lower_bound=1,
    )
    flags.DEFINE_integer(
        'image_size',
        None,
        'Image size in pixels. Default: 32 for networks with the CIFAR stem, otherwise 128, on a GPU 224.',
        lower_bound=1,
    )
    flags.DEFINE_enum('mode', 'train', ('train', 'eval'), 'train: loss, gradients and SGD with momentum; eval: logits.')
    flags.DEFINE_enum('compute_dtype', 'float32', ('float32', 'bfloat16'), 'Dtype of the layers.')
    flags.DEFINE_enum(
        'implementation', 'auto', IMPLEMENTATIONS, 'auto: the fastest forms on the platform; xla: the plain ones.'
    )
    flags.DEFINE_integer(
        'cardinality', None, "Number of groups of a bottleneck's 3x3 convolution. Default: the architecture's."
    )
    flags.DEFINE_integer('base_width', None, "Channels per group in the first stage. Default: the architecture's.")
    flags.DEFINE_bool('scan_blocks', False, 'Compile equal-shaped blocks of a stage once, as a loop.')
    flags.DEFINE_list(
        'against',
        [],
        'Baselines, separated by commas: flax (nn.Conv and nn.BatchNorm), torch. They support plain, basic and'
        ' bottleneck blocks, with or without pre-activation, without attention or later additions.',
    )
    flags.DEFINE_integer('rounds', 7, 'Number of turns per contender.', lower_bound=1)
    flags.DEFINE_integer('steps', None, 'Timed steps per turn. Default: 2 on a CPU, otherwise 20.', lower_bound=1)
    flags.DEFINE_string(
        'topology',
        None,
        'Compile for hardware that is not present and report the estimate: one chip of a TPU topology, such as v5e:2x2'
        f' (needs libtpu), or a GPU: {", ".join(aot.GPUS)} (needs jax[cuda13]).',
    )
    flags.DEFINE_bool(
        'all_chips', False, 'With a TPU --topology: split the batch over all chips and report their communication.'
    )
    flags.DEFINE_bool('json', False, 'Print one JSON object per line instead of a table.')


@dataclasses.dataclass(frozen=True)
class Timing:
    """A contender's measurements.

    Attributes:
      turns: milliseconds per step in each turn.
      prepared: measurements of its preparation.
    """

    turns: list[float]
    prepared: dict[str, Any]

    @property
    def ms(self) -> float:
        """The median of the turns."""
        return statistics.median(self.turns)


def take_turns(name: str, case: Case, platform: str) -> Generator[Any, int, None]:
    """A contender's work: yields its preparation's measurements, then the seconds per step of the requested steps."""
    prepare, option = CONTENDERS[platform][name]
    prepared = prepare(case, option)
    prepared.seconds_per_step(1)
    count = yield prepared.facts | {'peak_memory_bytes': prepared.peak_memory()}
    while True:
        prepared.seconds_per_step(max(1, count // 4))
        count = yield prepared.seconds_per_step(count)


def alternate(names: list[str], case: Case, platform: str, rounds: int, steps: int) -> dict[str, Timing]:
    """Times contenders in alternation, each in its own process."""
    with contextlib.ExitStack() as stack:
        contenders = {}
        for name in names:
            contender = Contender(name, take_turns, name, case, platform)
            contenders[name] = stack.enter_context(contextlib.closing(contender))
        turns: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, contender in contenders.items():
                turns[name].append(1000 * contender.ask(steps))
        return {name: Timing(turns[name], contenders[name].prepared) for name in names}


def measure(case: Case, others: list[str], rounds: int, steps: int, platform: str = 'cpu') -> dict[str, Any]:
    """Times one case against the baselines and returns the results.

    On a CPU the contenders alternate. An accelerator is not shared with other programs, but its memory may not suffice
    for several, so each contender has it alone; a baseline that fails there is reported with its ``error``.
    """
    names = ['ours', *(name for name in CONTENDERS[platform] if re.split('[ .]', name)[0] in others)]
    failed: dict[str, Any] = {}
    if platform == 'cpu':
        timings = alternate(names, case, platform, rounds, steps)
    else:
        timings = alternate(names[:1], case, platform, rounds, steps)
        for name in names[1:]:
            try:
                timings |= alternate([name], case, platform, rounds, steps)
            except InputError as error:
                failed[name] = {'error': str(error)}
    ours = timings.pop('ours')
    result = dataclasses.asdict(case) | {
        'ms': round(ours.ms, 2),
        'examples_per_second': round(1000 * case.batch_size / ours.ms, 1),
        'flops': flops(case),
        **ours.prepared,
    }
    result |= shares(result)
    for name, timing in sorted(
        timings.items(), key=lambda item: -item[1].ms
    ):  # PyTorch's faster memory format overwrites the slower one
        ratios = [here / there for here, there in zip(ours.turns, timing.turns, strict=True)]
        measured = {'ms': round(timing.ms, 2), 'ratio': round(statistics.median(ratios), 3)}
        result[name.split()[0]] = measured | timing.prepared
    return result | failed


def shares(result: dict[str, Any]) -> dict[str, Any]:
    """The device's kind and the fractions of its peak FLOP/s and memory bandwidth that a result reaches, if known."""
    kind = jax.devices()[0].device_kind
    peak, seconds, found = PEAKS.get(kind), result['ms'] / 1000, {'device_kind': kind}
    if peak is None:
        return found
    limits = {
        'peak_share': (result['flops'], peak.flops(result['compute_dtype'])),
        'bandwidth_share': (result.get('moved_bytes'), peak.bandwidth),
    }
    return found | {
        name: round(number / (seconds * limit), 3) for name, (number, limit) in limits.items() if number and limit
    }


def estimate_on(topology: str, case: Case, others: list[str], all_chips: bool) -> dict[str, Any]:
    """The estimates by a TPU's or a GPU's compiler; optionally those of plain Flax and the ratio of cycles or bytes."""

    def run(plain_flax: bool) -> dict[str, Any]:
        function, make = jax_step(case, plain_flax)
        arguments = jax.eval_shape(make, jax.random.key(0))
        if all_chips:
            return aot.estimate_job(function, *arguments, shardings=data_parallel, topology=topology)
        # Like the measured step; the published estimates for TPUs are of steps that keep the old state.
        donate = (0,) if topology in aot.GPUS else ()
        return aot.estimate(function, *arguments, topology=topology, donate=donate)

    result: dict[str, Any] = dataclasses.asdict(case) | {'topology': topology} | run(plain_flax=False)
    if 'flax' in others:
        flax = run(plain_flax=True)
        cost = 'moved_bytes' if topology in aot.GPUS else 'cycles'
        result['flax'] = flax | {'ratio': round(result[cost] / flax[cost], 3)}
    return result


def print_row(result: dict[str, Any]) -> None:
    """Prints a result in readable form."""
    what = f'{result["arch"]:>18} {result["mode"]:>5} {result["batch_size"]} x {result["image_size"]}²'
    if 'topology' in result:
        print_estimate(what, result)
        return
    words = [
        what,
        f'{result["ms"]:9.1f} ms  {result["examples_per_second"]:9,.1f} images/s',
        f'compile {result["compile_seconds"]:5.1f} s  memory {result["peak_memory_bytes"] / 2**20:,.0f} MiB',
    ]
    words += [
        f'{100 * result[share]:.0f} % of the {name}'
        for share, name in (('peak_share', 'peak FLOP/s'), ('bandwidth_share', 'bandwidth'))
        if share in result
    ]
    for name in (name for name in OTHERS if name in result):
        other = result[name]
        words.append(
            f'{name} {other["ms"]:.1f} ms, ratio {other["ratio"]:.2f}' if 'ms' in other else f'{other["error"]}'
        )
    print('  '.join(words), flush=True)


def cost_in(estimate: dict[str, Any]) -> str:
    """The cost of a step in words: bytes and a prediction for a GPU, cycles for a TPU."""
    if 'cycles' in estimate:
        return f'{estimate["cycles"]:,} cycles (estimate)'
    return f'{estimate["moved_bytes"] / 1e9:.2f} GB, {estimate["predicted_ms"]:.1f} ms (predicted)'


def print_estimate(what: str, result: dict[str, Any]) -> None:
    """Prints an estimate for ``what``: one line, and one for each kind of kernel or collective."""
    flax, memory = result.get('flax'), f'memory {result["peak_bytes"] / 2**20:,.0f} MiB'
    against = f'  flax {cost_in(flax)}, ratio {flax["ratio"]:.2f}' if flax else ''
    chips = f' ({result["devices"]} chips)' if 'devices' in result else ''
    print(f'{what}  {result["topology"]}{chips}  {cost_in(result)}  {memory}{against}')
    for kind, found in result.get('kernels', {}).items():
        passes = f', {found["bytes"] / result["pass_bytes"]:.2f} passes' if result['pass_bytes'] else ''
        print(f'    {found["count"]:5} x {kind}, {found["bytes"] / 1e9:,.2f} GB{passes}')
    for kind, found in result.get('collectives', {}).items():
        print(f'    {found["count"]} x {kind}, {found["bytes"] / 2**20:,.1f} MiB', flush=True)


def case_of(arch: str, on_gpu: bool) -> Case:
    """The case of one architecture, from the flags.

    Raises:
      InputError: an unknown architecture, or an inconsistent specification.
    """
    of_cifar = get_spec(arch).stem.kind == 'cifar'
    size = FLAGS.image_size or (32 if of_cifar else 224 if on_gpu else 128)
    small, large = (512, 256) if on_gpu else (128, 16)
    case = Case(
        arch=arch,
        mode=FLAGS.mode,
        batch_size=FLAGS.batch_size or (small if size <= 32 else large),
        image_size=size,
        compute_dtype=FLAGS.compute_dtype,
        implementation=FLAGS.implementation,
        scan_blocks=FLAGS.scan_blocks,
        cardinality=FLAGS.cardinality,
        base_width=FLAGS.base_width,
    )
    _ = case.spec  # raises errors before anything is timed
    return case


def check_flags() -> None:
    """Raises InputError for flags that exclude each other."""
    unknown = set(FLAGS.against) - set(BASELINES)
    if unknown:
        raise InputError(f'against={",".join(sorted(unknown))} must be one of {", ".join(BASELINES)}')
    if FLAGS.all_chips and FLAGS.topology is None:
        raise InputError('--all_chips needs --topology; measurements use one device')
    if FLAGS.all_chips and FLAGS.topology in aot.GPUS:
        raise InputError(f'--all_chips needs a TPU topology, got {FLAGS.topology}, which is one card')
    for name in ('rounds', 'steps') if FLAGS.topology is not None else ():
        if FLAGS[name].present:
            raise InputError(f'{name}={FLAGS[name].value} has no effect with --topology, which times nothing')
    if FLAGS.topology is not None and 'torch' in FLAGS.against:
        raise InputError('against=torch is not supported with --topology; use --against=flax')


def check_baselines(platform: str) -> None:
    """Raises InputError if a baseline is not installed or does not run on JAX's platform."""
    if FLAGS.against and platform not in ('cpu', 'gpu'):
        raise InputError(f'--against needs a CPU or a GPU, but JAX uses {platform}; set JAX_PLATFORMS=cpu')
    for needed in ('torch', 'torchvision') if 'torch' in FLAGS.against else ():
        if importlib.util.find_spec(needed) is None:
            raise InputError(f'against=torch needs {needed}: pip install {needed}')
    if 'torch' in FLAGS.against and platform == 'gpu':
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                f'against=torch needs a PyTorch that finds the GPU, which torch {torch.__version__} does not'
            )


def main() -> None:
    check_flags()
    if FLAGS.topology is not None:
        jax.config.update('jax_platforms', 'cpu')  # only the compiler targets the TPU or GPU
        jax.config.update('jax_enable_compilation_cache', False)
        platform = 'cpu'
    else:
        # Otherwise, this process would reserve most of a GPU's memory, which the contenders need.
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
        platform = jax.default_backend()
        check_baselines(platform)
    on_gpu = platform == 'gpu' or FLAGS.topology in aot.GPUS
    cases = [case_of(arch, on_gpu) for arch in FLAGS.arch]
    if not cases:
        raise InputError('--arch is required; see python -m experiments.list_models')
    if FLAGS.against:
        from experiments.shared.baseline_networks import check_is_plain

        for case in cases:
            check_is_plain(case.arch, case.spec)
    steps = FLAGS.steps or (2 if platform == 'cpu' else 20)
    for case in cases:
        if FLAGS.topology is not None:
            result = estimate_on(FLAGS.topology, case, FLAGS.against, FLAGS.all_chips)
        else:
            result = measure(case, FLAGS.against, FLAGS.rounds, steps, platform)
        if FLAGS.json:
            print(json.dumps(result), flush=True)
        else:
            print_row(result)


if __name__ == '__main__':
    scripts.run(main, define_flags)
