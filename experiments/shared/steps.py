"""Steps of a network that can be timed: in this library, in plain Flax, and in PyTorch."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from resnet_jax import ResNetSpec, get_spec
from resnet_jax.aot import kernels_of
from resnet_jax.devices import usable_cores

# torch.compile replays CUDA graphs for images up to this size: their kernels are shorter than their launches.
_CUDA_GRAPH_PIXELS = 64


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


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A step that can be timed.

    Attributes:
      step: starts one step; it may return before the device has finished.
      wait: returns when the device has finished all steps.
      peak_memory: the most memory in use so far, in bytes; None if it is unknown.
      facts: further measurements, such as ``compile_seconds``.
    """

    step: Callable[[], None]
    wait: Callable[[], None]
    peak_memory: Callable[[], int | None]
    facts: dict[str, Any]

    def seconds_per_step(self, steps: int) -> float:
        """Mean time of consecutive steps; an accelerator is not left idle between them."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        return (time.perf_counter() - start) / steps


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


def prepare_jax(case: Case, plain_flax: bool) -> Prepared:
    """Compiles a step and creates its arguments.

    On an accelerator, ``peak_memory`` is what its allocator reports; otherwise the size of arguments, results and
    temporary buffers. On a GPU, ``facts`` include ``moved_bytes``, counted in the compiled program.
    """
    jax.config.update('jax_enable_compilation_cache', False)  # compilation time is measured
    function, make = jax_step(case, plain_flax)
    state, batch = jax.jit(make)(jax.random.key(0))
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=0).lower(state, batch).compile()
    facts: dict[str, Any] = {'compile_seconds': round(time.perf_counter() - start, 2)}
    device = jax.devices()[0]
    if device.platform == 'gpu':
        facts['moved_bytes'] = _moved_bytes(compiled.as_text() or '')
    memory: Any = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    out: Any = None

    def step() -> None:
        nonlocal state, out
        state, out = compiled(state, batch)

    def wait() -> None:
        jax.block_until_ready((state, out))

    def peak_memory() -> int:
        return (device.memory_stats() or {}).get('peak_bytes_in_use', kept + memory.temp_size_in_bytes)

    return Prepared(step, wait, peak_memory, facts)


def _moved_bytes(text: str) -> int | None:
    """Bytes that a compiled program for a GPU moves; None if its text has a form that ``kernels_of`` does not know."""
    try:
        return sum(each.times * each.bytes for each in kernels_of(text))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None  # the step can be timed nevertheless


@dataclasses.dataclass(frozen=True)
class TorchForm:
    """How PyTorch computes a step.

    Attributes:
      device: ``cpu`` or ``cuda``.
      channels_last: the memory format; otherwise contiguous.
      compiled: by ``torch.compile``; otherwise eager.
    """

    device: str
    channels_last: bool = True
    compiled: bool = False


def prepare_torch(case: Case, form: TorchForm) -> Prepared:
    """The PyTorch counterpart of ``prepare_jax``.

    bfloat16 is autocast. On a GPU, cuDNN chooses the fastest convolutions by trial, the optimizer is fused, and float32
    products are rounded to TF32, as JAX does by default.
    """
    import torch

    from experiments.shared.baseline_networks import torch_network

    on_gpu = form.device == 'cuda'
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision('high')
    torch.set_num_threads(usable_cores())
    before = _resident_bytes('VmRSS')
    memory_format = torch.channels_last if form.channels_last else torch.contiguous_format
    network = torch_network(case.arch, case.spec, case.image_size).to(form.device, memory_format=memory_format)
    # On a CPU, PyTorch's own choice, which is not the fused form.
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-4, fused=on_gpu or None)
    size = case.image_size
    images = torch.randn(case.batch_size, 3, size, size).to(form.device, memory_format=memory_format)
    labels = torch.randint(0, case.spec.head.num_classes, (case.batch_size,)).to(form.device)
    autocast = torch.autocast(form.device, torch.bfloat16, enabled=case.compute_dtype == 'bfloat16')
    network.train(case.mode == 'train')
    if form.compiled:
        network = torch.compile(network, mode='reduce-overhead' if size <= _CUDA_GRAPH_PIXELS else 'default')

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        with torch.inference_mode(), autocast:
            network(images)

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def peak_memory() -> int | None:
        if on_gpu:
            return torch.cuda.max_memory_allocated()
        after = _resident_bytes('VmHWM')
        return None if before is None or after is None else after - before

    step = train if case.mode == 'train' else evaluate
    prepared = Prepared(
        step, wait, peak_memory, {'memory_format': 'channels_last' if form.channels_last else 'contiguous'}
    )
    return dataclasses.replace(
        prepared, facts=prepared.facts | {'compile_seconds': round(prepared.seconds_per_step(1), 2)}
    )


def _resident_bytes(field: str) -> int | None:
    """A memory statistic of this process, in bytes; None outside of Linux."""
    try:
        lines = pathlib.Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


# For each of JAX's platforms, the contenders: a function and its second argument. PyTorch's names begin with ``torch``.
_JAX: dict[str, tuple[Callable[..., Prepared], Any]] = {'ours': (prepare_jax, False), 'flax': (prepare_jax, True)}
CONTENDERS = {
    'cpu': _JAX
    | {
        'torch': (prepare_torch, TorchForm('cpu', channels_last=False)),
        'torch channels_last': (prepare_torch, TorchForm('cpu')),
    },
    'gpu': _JAX
    | {
        'torch': (prepare_torch, TorchForm('cuda')),
        'torch.compile': (prepare_torch, TorchForm('cuda', compiled=True)),
    },
    'tpu': _JAX,
}


def flops(case: Case) -> int | None:
    """Floating-point operations of a step in its plain form, as XLA counts them for the CPU, whatever the platform.

    None if ``JAX_PLATFORMS`` excludes the CPU: other platforms count only in compiled programs.
    """
    plain = dataclasses.replace(case, implementation='xla', scan_blocks=False)
    function, make = jax_step(plain, plain_flax=False)
    try:
        place = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
    except RuntimeError:
        return None
    shapes = jax.eval_shape(make, jax.random.key(0))
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes)
    cost: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return round(cost['flops'])
