"""Ahead-of-time cost estimates for TPUs, from the compiler alone: needs the package ``libtpu`` but no TPU."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from resnet_jax.errors import InputError

# libtpu reads these when it is loaded. Without them, it queries the network for the machine it runs on and logs long
# warnings, cannot be loaded by two processes at once (which is harmless for compilation), and leaves log files behind.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
    'TPU_LOG_DIR': 'disabled',
}


def estimate(function: Callable[..., Any], *arguments: Any, topology: str = 'v5e:2x2') -> dict[str, float]:
    """Compiles a function for one device of a TPU topology and returns the compiler's estimates.

    The estimates come from the compiler's cost model and are not measurements: they can compare two versions of a
    program, but they do not predict its run time. A loop body is counted once, however often it runs. If libtpu is
    installed and JAX may look for a TPU, set ``JAX_PLATFORMS=cpu`` or call this before any other JAX function:
    otherwise JAX's search for a TPU makes libtpu write to stderr.

    Args:
      function: a function of pytrees of arrays.
      *arguments: its arguments, as arrays or ``jax.ShapeDtypeStruct``: only shapes and dtypes matter.
      topology: kind and arrangement of the chips, such as ``v4:2x2x1``, ``v5e:2x2``, ``v5p:2x2x1`` or ``v6e:2x2``. The
        program is compiled for the first device.

    Returns:
      A dict of ``cycles``, summed over all instructions; ``flops``; the device memory ``temp_bytes``,
      ``argument_bytes``, ``output_bytes`` and ``peak_bytes``, the most in use at once; and ``compile_seconds``, the
      compilation time on this machine.

    Raises:
      InputError: ``libtpu`` is not installed or does not know the topology.
    """
    device = _devices(topology)[0]
    place = SingleDeviceSharding(device)
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
    return _compile_and_analyze(jax.jit(function).lower(*arguments))[0]


def _compile_and_analyze(lowered: Any) -> tuple[dict[str, float], str]:
    """Compiles a lowered function; returns the numbers of ``estimate`` and the text of the compiled program."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    text = compiled.as_text() or ''
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    numbers = {
        'cycles': estimated_cycles(text),
        'flops': cost['flops'],
        'temp_bytes': memory.temp_size_in_bytes,
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes,
        'peak_bytes': kept + memory.temp_size_in_bytes,
        'compile_seconds': seconds,
    }
    return numbers, text


def estimate_job(
    function: Callable[..., Any],
    state: Any,
    batch: Any,
    *,
    shardings: Callable[[Sequence[Any]], tuple[Any, Any]],
    topology: str,
    donate: bool = True,
) -> dict[str, Any]:
    """Compiles a step for all devices of a TPU topology; estimates memory per device and communication.

    Args:
      function: maps ``(state, batch)`` to a new state and further outputs.
      state: pytree of arrays or ``jax.ShapeDtypeStruct``.
      batch: likewise; the first axis of each array is the example axis.
      shardings: maps the topology's devices to the ``jax.sharding.Sharding`` of ``state`` and of ``batch``.
      topology: as in ``estimate``, such as ``v5e:16x16``.
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
    numbers, text = _compile_and_analyze(lowered)
    return {**numbers, 'devices': len(devices), 'collectives': collectives_of(text)}


_COLLECTIVE = re.compile(
    r' = (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\('
)
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+))\[([\d,]*)\]')


def collectives_of(text: str) -> dict[str, dict[str, int]]:
    """Counts the collective operations in the text of a compiled program.

    Args:
      text: HLO of a compiled program.

    Returns:
      For each kind of collective, such as ``all-reduce``, a dict of its ``count`` and the ``bytes`` of its results on
      one device.
    """
    found: dict[str, dict[str, int]] = {}
    for match in _COLLECTIVE.finditer(text):
        shapes, kind = match[1], match[2]
        total = 0
        for _, bits, sizes in _ARRAY.findall(shapes):
            total += int(bits or 8) // 8 * math.prod(int(size) for size in sizes.split(',') if size)
        entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
        entry['count'] += 1
        entry['bytes'] += total
    return found


def estimated_cycles(text: str) -> int:
    """Sums the cycles that libtpu noted next to the instructions in the text of a compiled program."""
    return sum(int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', text))


def _devices(topology: str) -> Any:
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not topology:  # libtpu would silently assume a v2
        raise InputError("topology='' must be a TPU topology, such as v5e:2x2")
    try:
        return topologies.get_topology_desc(topology_name=topology, platform='tpu').devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f'topology={topology!r}: {str(error).splitlines()[0]}') from error
    except RuntimeError as error:  # raised by JAX if there is no TPU plugin
        raise InputError('estimates for TPUs need the package libtpu: pip install libtpu') from error
