"""Placement on devices: data parallelism over one mesh. The only file that knows meshes."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import InputError


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices, or the given ones, in a row named ``data``."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ('data',))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError if a batch cannot be split evenly over the mesh."""
    if batch_size % mesh.size:
        raise InputError(f'batch_size={batch_size} must be divisible by the {mesh.size} devices')
