"""What a program would cost on a TPU, from its compiler alone: no TPU is needed, but the package ``libtpu``."""

import os
import re
import time
from collections.abc import Callable
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
      ``cycles``, the sum of the estimates of all instructions; ``flops``; ``temp_bytes``, ``argument_bytes`` and
      ``output_bytes`` of the device's memory; ``compile_seconds`` here.

    Raises:
      InputError: no ``libtpu``, or a topology that it does not know.
    """
    device = _first_device(topology)
    place = SingleDeviceSharding(device)
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arguments)
    lowered = jax.jit(function).lower(*arguments)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    return {
        'cycles': estimated_cycles(compiled.as_text() or ''),
        'flops': cost['flops'],
        'temp_bytes': memory.temp_size_in_bytes,
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes,
        'compile_seconds': seconds,
    }


def estimated_cycles(text: str) -> int:
    """Sum of the cycles that libtpu wrote to the instructions of a compiled program's text."""
    return sum(int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', text))


def _first_device(topology: str) -> Any:
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not topology:  # libtpu would take a v2 without a word
        raise InputError("topology='' must be the name of a TPU topology, such as v5e:2x2")
    try:
        return topologies.get_topology_desc(topology_name=topology, platform='tpu').devices[0]
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f'topology={topology!r}: {str(error).splitlines()[0]}') from error
    except RuntimeError as error:  # what JAX raises where it finds no plugin for TPUs
        raise InputError('estimates for a TPU need its compiler: pip install libtpu') from error
