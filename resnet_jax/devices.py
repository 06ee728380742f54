"""Placement on the devices of one or several processes: data parallelism over one mesh. Only this file uses meshes.

The last functions let networks run in programs with other meshes: explicit axes, ``jax.shard_map``.
"""

import contextlib
import functools
import os
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import InputError, StorageError

Result = TypeVar('Result')
_METADATA = 'http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints'


def join_processes(coordinator: str | None = None, num_processes: int | None = None, index: int | None = None) -> None:
    """Connects this process to the other processes of its job; does nothing if there is no job.

    Call it before any other function of JAX. On TPU pods, SLURM and Open MPI, JAX finds the other processes by itself;
    elsewhere, pass all arguments.

    Args:
      coordinator: ``HOST:PORT`` of process 0; None detects the job from the environment.
      num_processes: number of processes.
      index: index of this process, from 0.

    Raises:
      InputError: only some of the arguments are set, the index is out of range, or the connection failed.
    """
    given = [value is not None for value in (coordinator, num_processes, index)]
    if any(given) and not all(given):
        raise InputError(
            f'coordinator_address={coordinator}, num_processes={num_processes} and process_index={index} must be'
            ' set together'
        )
    if not any(given) and not _in_a_job():
        return
    if num_processes is not None and index is not None and not 0 <= index < num_processes:
        raise InputError(f'process_index={index} must be from 0 to {num_processes - 1} (num_processes - 1)')
    try:
        jax.distributed.initialize(coordinator, num_processes, index)
    except (RuntimeError, ValueError) as error:
        raise InputError(f'could not connect to the other processes: {" ".join(str(error).split())[:300]}') from error


def _in_a_job() -> bool:
    """Whether the environment describes more than one process."""
    tasks = (os.environ.get(name, '1') for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'))
    if any(count not in ('', '0', '1') for count in tasks):
        return True
    addresses = (os.environ.get(name, '') for name in ('TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'))
    return any(',' in text for text in addresses) or ',' in _tpu_vm_workers()


def _tpu_vm_workers() -> str:
    """Asks the metadata server of a TPU VM for the workers of its slice, which are not in the environment."""
    if not os.path.exists('/dev/accel0') and not os.path.exists('/dev/vfio/0'):
        return ''
    request = urllib.request.Request(_METADATA, headers={'Metadata-Flavor': 'Google'})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode()
    except (OSError, ValueError):
        return ''


def usable_cores() -> int:
    """Number of cores that this process may use, or of all cores if the system does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def is_main_process() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes have called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_main(value: int) -> int:
    """Returns the value of process 0, which must fit in an int32, in all processes."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else int(value)


def differing_entries(values: dict[str, int]) -> list[str]:
    """Returns the names of values, uint32, that differ between processes; all must call this with the same names."""
    if jax.process_count() == 1:
        return []
    found = multihost_utils.process_allgather(np.asarray(list(values.values()), np.uint32))
    return [name for name, column in zip(values, np.asarray(found).T, strict=True) if len(set(column.tolist())) > 1]


def in_main_process(function: Callable[[], Result]) -> Result | None:
    """Calls a function in process 0 only; an InputError or StorageError there stops all processes.

    Returns:
      The result of the function in process 0, None in the others.

    Raises:
      InputError: in process 0, the function's own; in the other processes, one that refers to process 0.
      StorageError: the function's own, in process 0.
    """
    result, failure = None, None
    if is_main_process():
        try:
            result = function()
        except (InputError, StorageError) as error:
            failure = error
    if not broadcast_from_main(failure is None):
        raise failure or InputError('process 0 failed; see its error message')
    return result


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Creates a mesh of the given devices, by default all of them, with one axis ``data``."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ('data',))


def override_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """Returns a context in which this mesh replaces one that the caller has set (``jax.set_mesh``)."""
    return contextlib.nullcontext() if jax.sharding.get_abstract_mesh().empty else jax.set_mesh(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of an array whose ``axis`` is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))


def data_parallel(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """Returns two shardings over some devices: for replicated arrays, and for batches, split along the first axis."""
    mesh = data_mesh(devices)
    return replicated(mesh), split_batch(mesh)


def split_evenly(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Returns a sharding that splits the largest axis divisible by the number of devices, or replicates without one."""
    axes = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
    return split_batch(mesh, max(axes, key=lambda axis: shape[axis])) if axes else replicated(mesh)


def to_devices(tree: Any, sharding: Any) -> Any:
    """Transfers host arrays to the devices; every process must have the whole arrays.

    Args:
      tree: a tree of NumPy arrays.
      sharding: one sharding, or a tree of shardings with the structure of ``tree``.

    Returns:
      The tree with ``jax.Array`` leaves.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def put(leaf: Any, where: NamedSharding) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    with jax.transfer_guard_host_to_device('allow'):  # the guard would treat it as an implicit transfer
        return jax.tree.map(put, tree, sharding)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch, split over the mesh, that belong to this process's devices, in ascending order."""
    rows = np.arange(batch_size).reshape(mesh.size, -1)
    own = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    return rows[own].ravel()


def place_rows(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Transfers batches to the devices, split along ``axis``; every process passes only its rows (``local_rows``)."""
    sharding = split_batch(mesh, axis)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    with jax.transfer_guard_host_to_device('allow'):
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def to_host(tree: Any, mesh: Mesh) -> Any:
    """Transfers whole arrays from the devices to NumPy arrays, in every process.

    On a CPU, they may share the device's memory, which a step that donates its arguments can overwrite.

    Args:
      tree: a tree of ``jax.Array``.
      mesh: the mesh of these arrays.
    """
    if any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)) and jax.process_count() > 1:
        tree = _replicate(mesh)(tree)
    return jax.device_get(tree)


@functools.lru_cache
def _replicate(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def check_batch_size(batch_size: int, parts: int, mesh: Mesh) -> None:
    """Raises InputError unless a batch can be split evenly into ``parts`` and over the mesh."""
    if batch_size % (parts * mesh.size):
        times = f' times accumulation_steps={parts}' if parts > 1 else ''
        multiple = f'{parts * mesh.size} (the number of devices{times})'
        raise InputError(f'batch_size={batch_size} must be a multiple of {multiple}')


def match_varying_axes(*operands: Any) -> tuple[Any, ...]:
    """Casts operands inside ``jax.shard_map`` so that all vary over the same mesh axes; None stays None.

    The type of an array in ``jax.shard_map`` contains the axes over which its value varies: images vary, replicated
    parameters do not. ``custom_vjp`` and ``platform_dependent`` require the same axes for all operands. The transpose
    of this cast sums a parameter's gradients over the devices. Outside of ``jax.shard_map``, this does nothing.
    """
    union = frozenset[str]().union(*(varying_axes(x) for x in operands if x is not None))
    return tuple(x if x is None else _vary(x, union - varying_axes(x)) for x in operands)


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Returns the manual mesh axes over which the value of an array varies, according to its type."""
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, 'mat') else kind.vma  # the name in older versions of JAX


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    if not axes:
        return x
    if not hasattr(jax.lax, 'pcast'):  # jax 0.7
        return jax.lax.pvary(x, tuple(sorted(axes)))  # type: ignore[attr-defined]
    return jax.lax.pcast(x, tuple(sorted(axes)), to='varying')


def sharding_spec(x: jax.Array) -> tuple[Any, ...]:
    """Returns the mesh axes that split each axis of an array, according to its type; all None without explicit axes."""
    spec = jax.typeof(x).sharding.spec
    return (*spec, *[None] * (x.ndim - len(spec)))


def with_auto_axes(function: Callable[..., Any], *operands: jax.Array | None, out_spec: Any) -> Any:
    """Computes ``function(*operands)`` with explicit mesh axes treated as automatic.

    With explicit axes, JAX rejects operations whose result could be sharded in several ways. Inside the function, the
    compiler decides, and only the sharding of the result is specified. Without explicit axes, this changes nothing.

    Args:
      function: a function of the operands.
      *operands: arrays.
      out_spec: sharding of the result, as returned by ``sharding_spec``; a list if the function returns a tuple.
    """
    meshes = [mesh for x in operands if x is not None and (mesh := jax.typeof(x).sharding.mesh).axis_names]
    types = zip(meshes[0].axis_names, meshes[0].axis_types, strict=True) if meshes else ()
    explicit = tuple(name for name, kind in types if kind == AxisType.Explicit)
    if not explicit:
        return function(*operands)
    split = [
        NamedSharding(meshes[0], PartitionSpec(*axes))
        for axes in (out_spec if isinstance(out_spec, list) else [out_spec])
    ]
    shardings = tuple(split) if isinstance(out_spec, list) else split[0]
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=shardings)(*operands)
