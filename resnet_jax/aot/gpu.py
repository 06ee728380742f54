"""GPUs that are not present: their descriptions for XLA's compiler, and the time that a compiled program may take."""

import dataclasses
import importlib.util
import os
from typing import Any

from resnet_jax.aot.hlo import Kernel
from resnet_jax.errors import InputError

# The model of ``predicted_seconds``. The shares are those of a measured training step of ResNet-50 (256 images of
# 224x224, bfloat16, jax 0.11.2) on an H100 SXM: large fusions moved 2.71 of 3.35 TB/s, and all convolutions took 18.2
# ms. A kernel's time beyond the model, times the number of kernels, made up the rest of the step's 46.97 ms.
_BANDWIDTH_SHARE = 0.81
_FLOPS_SHARE = 0.49
_SECONDS_PER_KERNEL = 2.2e-6


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A card as XLA's compiler sees it.

    Attributes:
      kind: the ``device_kind`` that JAX reports for it.
      capability: compute capability, major and minor.
      multiprocessors: number of streaming multiprocessors.
      threads: resident threads per multiprocessor, at most.
      lanes: float32 lanes per multiprocessor.
      clock: boost clock in GHz.
      shared: shared memory per multiprocessor in bytes; a block may use all but 1 KiB of it.
      l2: second-level cache in bytes.
      memory: device memory in bytes.
      bandwidth: of the device memory, in bytes per second.
      pcie: bytes per second to the host.
      flops: dense bfloat16 FLOP/s of the tensor cores; half of it for float32 inputs, which they round to TF32.
    """

    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    threads: int
    lanes: int
    clock: float
    shared: int
    l2: int
    memory: int
    bandwidth: float
    pcie: int
    flops: float


# From XLA (``xla/backends/gpu/target_config/specs`` of github.com/openxla/xla), which has no L4; its numbers are those
# of NVIDIA's data sheet and of the CUDA Programming Guide's table of compute capabilities. ``flops`` are from NVIDIA's
# data sheets.
GPUS = {
    'a100': Gpu(
        kind='NVIDIA A100-SXM4-80GB',
        capability=(8, 0),
        multiprocessors=108,
        threads=2048,
        lanes=64,
        clock=1.41,
        shared=167_936,
        l2=41_943_040,
        memory=85_100_068_864,
        bandwidth=2.03904e12,
        pcie=34_359_738_368,
        flops=312e12,
    ),
    'b200': Gpu(
        kind='NVIDIA B200',
        capability=(10, 0),
        multiprocessors=148,
        threads=2048,
        lanes=128,
        clock=1.965,
        shared=233_472,
        l2=132_644_864,
        memory=191_514_411_008,
        bandwidth=7.67232e12,
        pcie=68_719_476_736,
        flops=2250e12,
    ),
    'h100': Gpu(
        kind='NVIDIA H100 80GB HBM3',
        capability=(9, 0),
        multiprocessors=132,
        threads=2048,
        lanes=128,
        clock=1.98,
        shared=233_472,
        l2=52_428_800,
        memory=84_942_979_072,
        bandwidth=3.35232e12,
        pcie=34_359_738_368,
        flops=989e12,
    ),
    'h200': Gpu(
        kind='NVIDIA H200',
        capability=(9, 0),
        multiprocessors=132,
        threads=2048,
        lanes=128,
        clock=1.98,
        shared=233_472,
        l2=52_428_800,
        memory=151_397_597_184,
        bandwidth=4.8e12,
        pcie=34_359_738_368,
        flops=989e12,
    ),
    'l4': Gpu(
        kind='NVIDIA L4',
        capability=(8, 9),
        multiprocessors=58,
        threads=1536,
        lanes=128,
        clock=2.04,
        shared=102_400,
        l2=50_331_648,
        memory=24_152_899_584,
        bandwidth=0.3e12,
        pcie=34_359_738_368,
        flops=121e12,
    ),
}

_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_by_block}
  threads_per_core_limit: {threads}
  core_count: {multiprocessors}
  fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} feature_extension: {extension} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {capability[0]}.{capability[1]}{suffix}"
  device_address_bits: 64
  pcie_bandwidth: {pcie}
  ecc_enabled: true
  name: "{kind}"
  driver_version: "{cuda}"
  runtime_version: "{cuda}"
  compile_time_toolkit_version: "{cuda}"
  dnn_version: "9.24.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 24 patch: 0 }}
device_description_str: "{kind}"
"""
_CUDA = '13.0.0'


def description_of(gpu: Gpu) -> str:
    """A card as a text proto of XLA's ``GpuTargetConfigProto``."""
    has_accelerated_features = gpu.capability >= (9, 0)  # such as the warp-group instructions of sm_90a
    return _DESCRIPTION.format(
        **dataclasses.asdict(gpu),
        shared_by_block=gpu.shared - 1024,
        extension='ACCELERATED_FEATURES' if has_accelerated_features else 'NONE',
        suffix='a' if has_accelerated_features else '',
        cuda=_CUDA,
    )


def devices(name: str) -> Any:
    """One card of ``GPUS``, as a list of one device to compile for.

    Raises:
      InputError: JAX's CUDA plugin is not installed, or JAX has looked for a GPU and found no driver.
    """
    from jax.experimental import topologies

    # Without a driver, the plugin's checks of versions fail; compiling needs none of what they check.
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
    try:
        return topologies.get_topology_desc(
            platform='cuda', topology_name=name, target_config=description_of(GPUS[name]), topology='1x1x1'
        ).devices
    except NotImplementedError as error:  # no plugin has registered the platform
        if any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
            raise InputError(
                'estimates for GPUs need JAX_PLATFORMS=cpu on a machine without a GPU, set before JAX looks for one'
            ) from error
        raise InputError("estimates for GPUs need JAX's CUDA plugin: pip install 'jax[cuda13]'") from error


def predicted_seconds(kernels: list[Kernel], gpu: Gpu) -> float:
    """A prediction of the run time of a program.

    A kernel takes as long as its bytes at 81 % of the card's bandwidth or its FLOPs at 49 % of the peak, whichever is
    longer, and 2.2 microseconds. The shares were measured in one program on an H100; for other cards they are an
    assumption. Kernels whose library is far from these shares, such as grouped convolutions, take longer.
    """
    seconds = 0.0
    for each in kernels:
        peak = _FLOPS_SHARE * gpu.flops * 16 / max(each.bits, 16)
        longer = max(each.bytes / (_BANDWIDTH_SHARE * gpu.bandwidth), each.flops / peak)
        seconds += each.times * (longer + _SECONDS_PER_KERNEL)
    return seconds
