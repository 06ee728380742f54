"""Ahead-of-time cost estimates for TPUs and GPUs, from the compiler alone: needs its package but no such device."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from resnet_jax.aot import gpu, tpu
from resnet_jax.aot.hlo import collectives_of, kernels_of, passes_of, totals_of
from resnet_jax.errors import InputError


def estimate(
    function: Callable[..., Any], *arguments: Any, topology: str = 'v5e:2x2', donate: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Compiles a function for one TPU or GPU and returns the compiler's estimates.

    For a TPU, the estimates come from the compiler's cost model and are not measurements: they can compare two versions
    of a program, but they do not predict its run time. A loop body is counted once, however often it runs. If libtpu is
    installed and JAX may look for a TPU, set ``JAX_PLATFORMS=cpu`` or call this before any other JAX function:
    otherwise JAX's search for a TPU makes libtpu write to stderr.

    For a GPU, bytes are counted in the optimized program (``kernels_of``) and are those of the program that runs on the
    card, except that nothing is autotuned: convolutions and products by libraries use their default algorithms. On a
    machine without a GPU, set ``JAX_PLATFORMS=cpu``.

    Args:
      function: a function of pytrees of arrays.
      *arguments: its arguments, as arrays or ``jax.ShapeDtypeStruct``: only shapes and dtypes matter.
      topology: kind and arrangement of TPU chips, such as ``v4:2x2x1``, ``v5e:2x2``, ``v5p:2x2x1`` or ``v6e:2x2``, of
        which the first is compiled for; or a GPU: ``a100``, ``b200``, ``h100``, ``h200`` or ``l4``.
      donate: numbers of the arguments whose memory the results may reuse.

    Returns:
      A dict of ``flops``; the device memory ``temp_bytes``, ``argument_bytes``, ``output_bytes`` and ``peak_bytes``,
      the most in use at once; and ``compile_seconds``, the compilation time on this machine. For a TPU, also
      ``cycles``, summed over all instructions. For a GPU, ``flops`` are those of convolutions and matrix products, and
      there are also ``kernels``, a dict of ``count`` and ``bytes`` for each kind (``fusion``, ``convolution``,
      ``product``, ``other``); ``moved_bytes``, their sum; ``pass_bytes`` and ``passes`` (``hlo.passes_of``; None
      without convolutions); and ``predicted_ms`` (``gpu.predicted_seconds``).

    Raises:
      InputError: the compiler is not installed or does not know the topology.
    """
    place = SingleDeviceSharding(_devices(topology)[0])
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
    return _compile_and_analyze(jax.jit(function, donate_argnums=donate).lower(*arguments), topology)[0]


def estimate_job(
    function: Callable[..., Any],
    state: Any,
    batch: Any,
    *,
    shardings: Callable[[Sequence[Any]], tuple[Any, Any]],
    topology: str,
    donate: bool = True,
) -> dict[str, Any]:
    """Compiles a step for all devices of a topology; estimates memory per device and communication.

    Args:
      function: maps ``(state, batch)`` to a new state and further outputs.
      state: pytree of arrays or ``jax.ShapeDtypeStruct``.
      batch: likewise; the first axis of each array is the example axis.
      shardings: maps the topology's devices to the ``jax.sharding.Sharding`` of ``state`` and of ``batch``.
      topology: as in ``estimate``, such as ``v5e:16x16``; a GPU is a single device.
      donate: whether the new state reuses the memory of the old one.

    Returns:
      The dict of ``estimate`` for one device, with the number of ``devices`` and the ``collectives``, as
      ``collectives_of`` returns them.

    Raises:
      InputError: as in ``estimate``, or the batch size is not a multiple of the number of devices.
    """
    devices = _devices(topology)
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(size % len(devices) for size in sizes):
        raise InputError(f'batch size {max(sizes)} must be a multiple of {len(devices)}, the devices of {topology}')

    def placed(tree: Any, sharding: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    whole, split = shardings(devices)
    lowered = jax.jit(function, donate_argnums=0 if donate else ()).lower(placed(state, whole), placed(batch, split))
    numbers, text = _compile_and_analyze(lowered, topology)
    return {**numbers, 'devices': len(devices), 'collectives': collectives_of(text)}


def _devices(topology: str) -> Any:
    if topology in gpu.GPUS:
        return gpu.devices(topology)
    if ':' not in topology:  # libtpu would silently assume a v2 for an empty name
        raise InputError(
            f'topology={topology!r} must be a TPU topology, such as v5e:2x2, or one of {", ".join(gpu.GPUS)}'
        )
    return tpu.devices(topology)


def _compile_and_analyze(lowered: Any, topology: str) -> tuple[dict[str, Any], str]:
    """Compiles a lowered function; returns the numbers of ``estimate`` and the text of the compiled program."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ''
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    numbers = _of_gpu(text, gpu.GPUS[topology]) if topology in gpu.GPUS else _of_tpu(compiled, text)
    numbers |= {
        'temp_bytes': memory.temp_size_in_bytes,
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes,
        'peak_bytes': kept + memory.temp_size_in_bytes,
        'compile_seconds': seconds,
    }
    return numbers, text


def _of_tpu(compiled: Any, text: str) -> dict[str, Any]:
    return {'cycles': tpu.estimated_cycles(text), 'flops': compiled.cost_analysis()['flops']}


def _of_gpu(text: str, card: gpu.Gpu) -> dict[str, Any]:
    kernels = kernels_of(text)
    pass_bytes, passes = passes_of(kernels)
    return {
        'kernels': totals_of(kernels),
        'moved_bytes': sum(each.times * each.bytes for each in kernels),
        'pass_bytes': pass_bytes,
        'passes': passes if pass_bytes else None,
        'predicted_ms': 1000 * gpu.predicted_seconds(kernels, card),
        'flops': sum(each.times * each.flops for each in kernels),
    }
