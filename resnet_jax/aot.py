"""What a program would cost on a TPU, from its compiler alone: no TPU is needed, but the package ``libtpu``."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from resnet_jax.errors import InputError

# Read by libtpu as it is loaded. Without them it asks the network which machine it is on, and complains at length;
# refuses to be loaded by two processes at once, though a compiler shares nothing; and leaves log files behind.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',
    'TPU_LOG_DIR': 'disabled',
}


def estimate(function: Callable[..., Any], *arguments: Any, topology: str = 'v5e:2x2') -> dict[str, float]:
    """Compiles a function for one device of a TPU topology and reads off the compiler's own estimates.

    They are a model, not a measurement: good for comparing two forms of one program, not for a time. A loop's body is
    counted once, however often it runs. Where libtpu is installed and JAX may look for a TPU, set
    ``JAX_PLATFORMS=cpu`` or call this before anything else of JAX: JAX's own look makes libtpu write to stderr.

    Args:
      function: of arrays, in any nesting.
      *arguments: its arguments, or ``jax.ShapeDtypeStruct`` in place of their arrays: only shapes and dtypes count.
      topology: kind and arrangement of the chips, such as ``v4:2x2x1``, ``v5e:2x2``, ``v5p:2x2x1`` or ``v6e:2x2``. The
        program runs on the first device.

    Returns:
      ``cycles``, the sum of the estimates of all instructions; ``flops``; ``temp_bytes``, ``argument_bytes``,
      ``output_bytes`` and ``peak_bytes``, what it needs at once, of the device's memory; ``compile_seconds`` here.

    Raises:
      InputError: no ``libtpu``, or a topology that it does not know.
    """
    device = _devices(topology)[0]
    place = SingleDeviceSharding(device)
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
    return _read_off(jax.jit(function).lower(*arguments))[0]


def _read_off(lowered: Any) -> tuple[dict[str, float], str]:
    """The numbers of ``estimate``, with ``peak_bytes``, all that the device needs at once, and the program's text."""
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
    """Compiles a step for all devices of a TPU topology: what one of them holds, and what they exchange.

    Args:
      function: ``(state, batch)`` to a new state and more.
      state: arrays or their shapes.
      batch: likewise; the first axis of each array is that of the examples.
      shardings: from the topology's devices to the ``jax.sharding.Sharding`` of ``state`` and that of ``batch``.
      topology: as in ``estimate``, such as ``v5e:16x16``.
      donate: the new state takes the memory of the old one.

    Returns:
      Of one device what ``estimate`` returns; ``devices``; ``collectives`` as in ``collectives_of``.

    Raises:
      InputError: as in ``estimate``, or a batch that does not divide by the devices.
    """
    devices = _devices(topology)
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(size % len(devices) for size in sizes):
        raise InputError(f'a batch of {max(sizes)} must be divisible by the {len(devices)} devices of {topology}')

    def placed(tree: Any, sharding: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    whole, split = shardings(devices)
    lowered = jax.jit(function, donate_argnums=0 if donate else ()).lower(placed(state, whole), placed(batch, split))
    numbers, text = _read_off(lowered)
    return {**numbers, 'devices': len(devices), 'collectives': collectives_of(text)}


_COLLECTIVE = re.compile(
    r' = (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\('
)
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+))\[([\d,]*)\]')


def collectives_of(text: str) -> dict[str, dict[str, int]]:
    """How often devices exchange something in a compiled program's text, and how many bytes come out of it on each."""
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
    """Sum of the cycles that libtpu wrote to the instructions of a compiled program's text."""
    return sum(int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', text))


def _devices(topology: str) -> Any:
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not topology:  # libtpu would take a v2 without a word
        raise InputError("topology='' must be the name of a TPU topology, such as v5e:2x2")
    try:
        return topologies.get_topology_desc(topology_name=topology, platform='tpu').devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f'topology={topology!r}: {str(error).splitlines()[0]}') from error
    except RuntimeError as error:  # what JAX raises where it finds no plugin for TPUs
        raise InputError('estimates for a TPU need its compiler: pip install libtpu') from error
