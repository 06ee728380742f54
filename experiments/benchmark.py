"""Times training steps against plain Flax and PyTorch; estimates cost on TPUs.

python -m experiments.benchmark --arch=resnet20,resnet50                    # this machine
python -m experiments.benchmark --arch=resnet50 --against=flax,torch        # compared with the baselines
python -m experiments.benchmark --arch=resnet50 --topology=v5e:2x2          # the TPU compiler's estimate
python -m experiments.benchmark --arch=resnet50 --topology=v5e:16x16 --all_chips --batch_size=16384 --image_size=224

Each contender runs in its own process, and the contenders alternate, so that other load on the machine affects all of
them. A turn is one untimed step and --steps timed ones. The results are the median over --rounds turns and the median
ratio of consecutive turns.
"""

import dataclasses
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
from absl import flags

from experiments.shared import scripts
from experiments.shared.contenders import Contender
from resnet_jax import InputError, ResNetSpec, get_spec
from resnet_jax.devices import data_parallel, usable_cores
from resnet_jax.models.conv import IMPLEMENTATIONS

GROUP = 'tools'
FLAGS = flags.FLAGS
OTHERS = ('flax', 'torch')


def define_flags() -> None:
    flags.DEFINE_list('arch', 'resnet20', 'Architectures, separated by commas; see python -m experiments.list_models.')
    flags.DEFINE_integer(
        'batch_size', None, 'Images per step. Default: 128 up to 32 pixels, otherwise 16.', lower_bound=1
    )
    flags.DEFINE_integer(
        'image_size',
        None,
        'Image size in pixels. Default: 32 for networks with the CIFAR stem, otherwise 128.',
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
    flags.DEFINE_integer('steps', 2, 'Timed steps per turn.', lower_bound=1)
    flags.DEFINE_string(
        'topology',
        None,
        "Compile for one chip of this TPU topology, such as v5e:2x2, and report the compiler's estimate; needs libtpu.",
    )
    flags.DEFINE_bool(
        'all_chips', False, 'With --topology: split the batch over all chips and report their communication.'
    )
    flags.DEFINE_bool('json', False, 'Print one JSON object per line instead of a table.')


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to time.

    Attributes:
      arch: a name of ``list_models()``.
      mode: ``train`` or ``eval``.
      batch_size: images per step.
      image_size: height and width in pixels.
      compute_dtype: ``float32`` or ``bfloat16``.
      implementation: ``auto`` or ``xla``.
      scan_blocks: as in ``ResNet``.
      cardinality: replaces the architecture's if not None.
      base_width: replaces the architecture's if not None.
    """

    arch: str
    mode: str
    batch_size: int
    image_size: int
    compute_dtype: str
    implementation: str
    scan_blocks: bool
    cardinality: int | None
    base_width: int | None

    @property
    def spec(self) -> ResNetSpec:
        """The specification of the network."""
        changed = {'cardinality': self.cardinality, 'base_width': self.base_width}
        return get_spec(self.arch, **{name: value for name, value in changed.items() if value is not None})


def jax_step(case: Case, plain_flax: bool) -> tuple[Callable[..., Any], Any]:
    """A step ``(state, batch) -> (state, output)``, and a function of a key that creates state and batch."""
    import jax.numpy as jnp

    from experiments.shared.baseline_networks import FlaxNetwork
    from resnet_jax import ResNet, TrainConfig, create_train_state, init_variables, train_step
    from resnet_jax.training.config import optimizer_of

    spec, dtype = case.spec, jnp.dtype(case.compute_dtype)
    ours = ResNet(spec, dtype, case.implementation, scan_blocks=case.scan_blocks)
    model: Any = FlaxNetwork(spec, dtype) if plain_flax else ours
    optimizer = optimizer_of(TrainConfig(), 100)
    image_shape = (case.image_size, case.image_size, 3)

    def make(key: jax.Array) -> tuple[Any, Any]:
        state = create_train_state(init_variables(model, key, image_shape), optimizer)
        image = jax.random.normal(key, (case.batch_size, *image_shape))
        label = jax.random.randint(key, (case.batch_size,), 0, spec.head.num_classes)
        return state, {'image': image, 'label': label}

    def train(state: Any, batch: Any) -> Any:
        return train_step(state, batch, model=model, optimizer=optimizer)

    def evaluate(state: Any, batch: Any) -> Any:
        return state, model.apply(state.variables, batch['image'], train=False)

    return (train if case.mode == 'train' else evaluate), make


def prepare_jax(case: Case, plain_flax: bool) -> tuple[Callable[[], None], dict[str, Any]]:
    """A function that takes one step, and the time and memory of its compilation."""
    jax.config.update('jax_enable_compilation_cache', False)  # compilation time is measured
    function, make = jax_step(case, plain_flax)
    state, batch = jax.jit(make)(jax.random.key(0))
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=0).lower(state, batch).compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes

    def step() -> None:
        nonlocal state
        state, out = compiled(state, batch)
        jax.block_until_ready((state, out))

    return step, {'compile_seconds': round(seconds, 2), 'peak_memory_bytes': kept + memory.temp_size_in_bytes}


def prepare_torch(case: Case, channels_last: bool) -> tuple[Callable[[], None], dict[str, Any]]:
    """The PyTorch counterpart of ``prepare_jax``, in one of two memory formats."""
    import torch

    from experiments.shared.baseline_networks import torch_network

    torch.set_num_threads(usable_cores())
    before = _resident_bytes('VmRSS')
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = torch_network(case.arch, case.spec, case.image_size).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-4)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size).to(memory_format=memory_format)
    labels = torch.randint(0, case.spec.head.num_classes, (case.batch_size,))
    autocast = torch.autocast('cpu', torch.bfloat16, enabled=case.compute_dtype == 'bfloat16')
    network.train(case.mode == 'train')

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        with torch.inference_mode(), autocast:
            network(images)

    step = train if case.mode == 'train' else evaluate
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    step()
    format_name = 'channels_last' if channels_last else 'contiguous'
    after = _resident_bytes('VmHWM')
    memory = None if before is None or after is None else after - before
    return step, {'memory_format': format_name, 'compile_seconds': round(first, 2), 'peak_memory_bytes': memory}


def _resident_bytes(field: str) -> int | None:
    """A memory statistic of this process, in bytes; None outside of Linux."""
    try:
        lines = pathlib.Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


PREPARE: dict[str, tuple[Callable[..., Any], bool]] = {
    'ours': (prepare_jax, False),
    'flax': (prepare_jax, True),
    'torch': (prepare_torch, False),
    'torch channels_last': (prepare_torch, True),
}


def take_turns(name: str, case: Case) -> Generator[Any, int, None]:
    """A contender's work: yields its preparation's measurements, then the seconds of as many steps as requested."""
    prepare, option = PREPARE[name]
    step, prepared = prepare(case, option)
    step()
    count = yield prepared
    while True:
        step()
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        count = yield seconds


def measure(case: Case, others: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Times one case against the baselines and returns the results."""
    names = ['ours', *(name for name in PREPARE if name.split()[0] in others)]
    contenders: dict[str, Contender] = {}
    turns: dict[str, list[float]] = {name: [] for name in names}  # ms
    try:
        for name in names:
            contenders[name] = Contender(name, take_turns, name, case)
        for _ in range(rounds):
            for name, contender in contenders.items():
                turns[name].append(1000 * statistics.median(contender.ask(steps)))
    finally:
        for contender in contenders.values():
            contender.close()
    ms = statistics.median(turns['ours'])
    result = dataclasses.asdict(case) | {
        'ms': round(ms, 2),
        'examples_per_second': round(1000 * case.batch_size / ms, 1),
        'flops': flops(case),
        **contenders['ours'].prepared,
    }
    for name in sorted(
        names[1:], key=lambda other: -statistics.median(turns[other])
    ):  # PyTorch's faster memory format overwrites the slower one
        ratios = [here / there for here, there in zip(turns['ours'], turns[name], strict=True)]
        measured = {'ms': round(statistics.median(turns[name]), 2), 'ratio': round(statistics.median(ratios), 3)}
        result[name.split()[0]] = measured | contenders[name].prepared
    return result


def flops(case: Case) -> int:
    """Floating-point operations of a step in its plain form, as counted by XLA; independent of the implementation."""
    plain = dataclasses.replace(case, implementation='xla', scan_blocks=False)
    function, make = jax_step(plain, plain_flax=False)
    cost: Any = jax.jit(function).lower(*jax.eval_shape(make, jax.random.key(0))).cost_analysis()
    return round(cost['flops'])


def estimate_on(topology: str, case: Case, others: list[str], all_chips: bool) -> dict[str, Any]:
    """The TPU compiler's estimates: cycles per step, FLOPs, bytes; optionally those of plain Flax and the ratio."""
    from resnet_jax.aot import estimate, estimate_job

    def run(plain_flax: bool) -> dict[str, Any]:
        function, make = jax_step(case, plain_flax)
        arguments = jax.eval_shape(make, jax.random.key(0))
        if all_chips:
            return estimate_job(function, *arguments, shardings=data_parallel, topology=topology)
        return estimate(function, *arguments, topology=topology)

    result: dict[str, Any] = dataclasses.asdict(case) | {'topology': topology} | run(plain_flax=False)
    if 'flax' in others:
        flax = run(plain_flax=True)
        result['flax'] = flax | {'ratio': round(result['cycles'] / flax['cycles'], 3)}
    return result


def print_row(result: dict[str, Any]) -> None:
    """Prints a result in readable form."""
    what = f'{result["arch"]:>18} {result["mode"]:>5} {result["batch_size"]} x {result["image_size"]}²'
    if 'topology' in result:
        against = (
            f'  flax {result["flax"]["cycles"]:,}, ratio {result["flax"]["ratio"]:.2f}' if 'flax' in result else ''
        )
        memory = f'memory {result["peak_bytes"] / 2**20:,.0f} MiB'
        chips = f' ({result["devices"]} chips)' if 'devices' in result else ''
        print(f'{what}  {result["topology"]}{chips}  {result["cycles"]:,} cycles (estimate)  {memory}{against}')
        for kind, found in result.get('collectives', {}).items():
            print(f'    {found["count"]} x {kind}, {found["bytes"] / 2**20:,.1f} MiB', flush=True)
        return
    words = [
        what,
        f'{result["ms"]:9.1f} ms  {result["examples_per_second"]:9,.1f} images/s',
        f'compile {result["compile_seconds"]:5.1f} s  memory {result["peak_memory_bytes"] / 2**20:,.0f} MiB',
    ]
    words += [
        f'{name} {result[name]["ms"]:.1f} ms, ratio {result[name]["ratio"]:.2f}' for name in OTHERS if name in result
    ]
    print('  '.join(words), flush=True)


def case_of(arch: str) -> Case:
    """The case of one architecture, from the flags.

    Raises:
      InputError: an unknown architecture, or an inconsistent specification.
    """
    size = FLAGS.image_size or (32 if get_spec(arch).stem.kind == 'cifar' else 128)
    case = Case(
        arch=arch,
        mode=FLAGS.mode,
        batch_size=FLAGS.batch_size or (128 if size <= 32 else 16),
        image_size=size,
        compute_dtype=FLAGS.compute_dtype,
        implementation=FLAGS.implementation,
        scan_blocks=FLAGS.scan_blocks,
        cardinality=FLAGS.cardinality,
        base_width=FLAGS.base_width,
    )
    _ = case.spec  # raises errors before anything is timed
    return case


def main() -> None:
    unknown = set(FLAGS.against) - set(OTHERS)
    if unknown:
        raise InputError(f'against={",".join(sorted(unknown))} must be one of {", ".join(OTHERS)}')
    if FLAGS.all_chips and FLAGS.topology is None:
        raise InputError('--all_chips needs --topology; measurements use one device')
    for name in ('rounds', 'steps') if FLAGS.topology is not None else ():
        if FLAGS[name].present:
            raise InputError(f'{name}={FLAGS[name].value} has no effect with --topology, which times nothing')
    if FLAGS.topology is not None and 'torch' in FLAGS.against:
        raise InputError('against=torch is not supported with --topology; use --against=flax')
    if FLAGS.topology is not None:
        jax.config.update('jax_platforms', 'cpu')  # only the compiler targets the TPU
        jax.config.update('jax_enable_compilation_cache', False)
    elif FLAGS.against and jax.default_backend() != 'cpu':
        raise InputError(f'--against needs a CPU, but JAX uses {jax.default_backend()}; set JAX_PLATFORMS=cpu')
    for needed in ('torch', 'torchvision') if 'torch' in FLAGS.against else ():
        if importlib.util.find_spec(needed) is None:
            raise InputError(f'against=torch needs {needed}: pip install {needed}')
    cases = [case_of(arch) for arch in FLAGS.arch]
    if not cases:
        raise InputError('--arch is required; see python -m experiments.list_models')
    if FLAGS.against:
        from experiments.shared.baseline_networks import check_is_plain

        for case in cases:
            check_is_plain(case.arch, case.spec)
    for case in cases:
        if FLAGS.topology is not None:
            result = estimate_on(FLAGS.topology, case, FLAGS.against, FLAGS.all_chips)
        else:
            result = measure(case, FLAGS.against, FLAGS.rounds, FLAGS.steps)
        if FLAGS.json:
            print(json.dumps(result), flush=True)
        else:
            print_row(result)


if __name__ == '__main__':
    scripts.run(main, define_flags)
