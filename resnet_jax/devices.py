"""Placement on devices, of one process or many: data parallelism over one mesh. The only file that knows meshes.

The last part is for the networks, which run under meshes of other programs: explicit axes, ``jax.shard_map``.
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
    """Joins the processes of a job, before anything else of JAX; alone where there is no job.

    On TPU pods, SLURM and Open MPI JAX finds the others by itself; elsewhere the arguments say where they are.

    Args:
      coordinator: ``HOST:PORT`` of process 0; None asks the environment.
      num_processes: how many processes there are.
      index: of this one, from 0.

    Raises:
      InputError: some of the arguments without the others, or a coordinator that cannot be reached.
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
    """Whether the environment tells of more than one process."""
    tasks = (os.environ.get(name, '1') for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'))
    if any(count not in ('', '0', '1') for count in tasks):
        return True
    addresses = (os.environ.get(name, '') for name in ('TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'))
    return any(',' in text for text in addresses) or ',' in _tpu_vm_workers()


def _tpu_vm_workers() -> str:
    """The workers of the slice that this machine belongs to, if it is a TPU VM: there the environment says nothing."""
    if not os.path.exists('/dev/accel0') and not os.path.exists('/dev/vfio/0'):
        return ''
    request = urllib.request.Request(_METADATA, headers={'Metadata-Flavor': 'Google'})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode()
    except (OSError, ValueError):
        return ''


def usable_cores() -> int:
    """Cores that this process may use, or all cores where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_main(value: int) -> int:
    """What process 0 says."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else int(value)


def in_main_process(function: Callable[[], Result]) -> Result | None:
    """What a function gives in process 0, and None in the others; where it fails there, it fails in all.

    Raises:
      InputError: the function's own, and in the other processes one that says where to look; so for its StorageError.
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
    """All devices, or the given ones, in a row named ``data``."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ('data',))


def only_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """Within it, a mesh that the caller has set (``jax.set_mesh``) gives way to this one."""
    return contextlib.nullcontext() if jax.sharding.get_abstract_mesh().empty else jax.set_mesh(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first if not said otherwise, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))


def data_parallel(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """Shardings of what is whole on every one of the devices, and of batches that are split over them."""
    mesh = data_mesh(devices)
    return replicated(mesh), split_batch(mesh)


def split_evenly(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """The largest of the axes that divide by the number of devices split over them; the whole array where none does."""
    axes = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
    return split_batch(mesh, max(axes, key=lambda axis: shape[axis])) if axes else replicated(mesh)


def to_devices(tree: Any, sharding: Any) -> Any:
    """Host arrays on devices; every process has all of them and gives its devices their share.

    Args:
      tree: of NumPy arrays.
      sharding: one, or a tree of them like ``tree``.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def put(leaf: Any, where: NamedSharding) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])

    with jax.transfer_guard_host_to_device('allow'):  # which takes this for a transfer that nobody asked for
        return jax.tree.map(put, tree, sharding)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which rows of a batch that is split over the devices this process holds: ascending, where its devices are."""
    rows = np.arange(batch_size).reshape(mesh.size, -1)
    own = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    return rows[own].ravel()


def place_rows(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Batches on the devices, one axis split over them; every process has the rows of ``local_rows`` alone."""
    sharding = split_batch(mesh, axis)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    with jax.transfer_guard_host_to_device('allow'):
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree)


def to_host(tree: Any, mesh: Mesh) -> Any:
    """Arrays on the devices as NumPy arrays, whole, in every process.

    On a CPU they may be the device's own memory, which a step is allowed to overwrite that is given it.
    """
    if any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)) and jax.process_count() > 1:
        tree = _whole(mesh)(tree)
    return jax.device_get(tree)


@functools.lru_cache
def _whole(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def check_batch_size(batch_size: int, parts: int, mesh: Mesh) -> None:
    """Raises InputError if a batch, in so many parts, cannot be split evenly over the mesh."""
    if batch_size % (parts * mesh.size):
        times = f' times accumulation_steps={parts}' if parts > 1 else ''
        multiple = f'{parts * mesh.size} (the number of devices{times})'
        raise InputError(f'batch_size={batch_size} must be a multiple of {multiple}')


def vary_alike(*operands: Any) -> tuple[Any, ...]:
    """Casts operands so that inside ``jax.shard_map`` all of them vary over the same mesh axes; None stays None.

    There the type of an array says over which axes its value varies: images do, parameters that are the same on every
    device do not. A gradient written by hand, or a branch for each platform, wants all operands alike. The transpose of
    this cast sums a parameter's gradients over the devices. Elsewhere nothing happens.
    """
    union = frozenset[str]().union(*(varying_axes(x) for x in operands if x is not None))
    return tuple(x if x is None else _vary(x, union - varying_axes(x)) for x in operands)


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The manual mesh axes over which the value of an array varies, by its type."""
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, 'mat') else kind.vma  # as older versions call it


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    if not axes:
        return x
    if not hasattr(jax.lax, 'pcast'):  # jax 0.7
        return jax.lax.pvary(x, tuple(sorted(axes)))  # type: ignore[attr-defined]
    return jax.lax.pcast(x, tuple(sorted(axes)), to='varying')


def split_axes(x: jax.Array) -> tuple[Any, ...]:
    """For each axis of an array the mesh axes that split it, by its type: all None unless the mesh is explicit."""
    spec = jax.typeof(x).sharding.spec
    return (*spec, *[None] * (x.ndim - len(spec)))


def with_automatic_axes(function: Callable[..., Any], *operands: jax.Array, out: Any) -> Any:
    """``function(*operands)``, where the compiler decides how to split what is computed within.

    Under explicit mesh axes, JAX refuses operations for which several splits of the result are possible. Here they are
    automatic within the function, and only the result's split is stated. Under any other mesh nothing changes.

    Args:
      function: of the operands.
      *operands: arrays.
      out: how the result is split, in the form of ``split_axes``; a list of these if the function returns a tuple.
    """
    meshes = [mesh for x in operands if (mesh := jax.typeof(x).sharding.mesh).axis_names]
    types = zip(meshes[0].axis_names, meshes[0].axis_types, strict=True) if meshes else ()
    explicit = tuple(name for name, kind in types if kind == AxisType.Explicit)
    if not explicit:
        return function(*operands)
    split = [NamedSharding(meshes[0], PartitionSpec(*axes)) for axes in (out if isinstance(out, list) else [out])]
    shardings = tuple(split) if isinstance(out, list) else split[0]
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=shardings)(*operands)
