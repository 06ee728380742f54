"""TPU topologies that are not present, and what their compiler notes about a program; needs the package ``libtpu``."""

import os
import re
from typing import Any

import jax

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


def devices(topology: str) -> Any:
    """The devices of a topology such as ``v5e:2x2``, to compile for.

    Raises:
      InputError: ``libtpu`` is not installed or does not know the topology.
    """
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(topology_name=topology, platform='tpu').devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f'topology={topology!r}: {str(error).splitlines()[0]}') from error
    except RuntimeError as error:  # raised by JAX if there is no TPU plugin
        raise InputError('estimates for TPUs need the package libtpu: pip install libtpu') from error


def estimated_cycles(text: str) -> int:
    """Sums the cycles that libtpu noted next to the instructions in the text of a compiled program."""
    return sum(int(cycles) for cycles in re.findall(r'"estimated_cycles":"(\d+)"', text))
