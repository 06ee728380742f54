"""Peak speed and memory bandwidth of devices, by JAX's ``device_kind``."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peak:
    """The limits of one device; None where it lacks the dtype or the number is unknown.

    Attributes:
      bfloat16: dense FLOP/s of matrix products with bfloat16 inputs.
      float32: dense FLOP/s of float32 matrix products as JAX computes them by default: inputs are rounded to TF32 on
        GPUs that have it, and to bfloat16 on TPUs.
      bandwidth: of the device memory, in bytes per second.
    """

    bfloat16: float | None
    float32: float | None
    bandwidth: float | None

    def flops(self, dtype: str) -> float | None:
        """Peak FLOP/s for the inputs' dtype, ``bfloat16`` or ``float32``."""
        return self.bfloat16 if dtype == 'bfloat16' else self.float32


# From cloud.google.com/tpu/docs and NVIDIA's data sheets and architecture white papers; without sparsity.
PEAKS = {
    'TPU v2': Peak(22.5e12, 22.5e12, 0.3e12),  # in v2 and v3, a device is one of the two cores of a chip
    'TPU v3': Peak(61.5e12, 61.5e12, 0.45e12),
    'TPU v4': Peak(275e12, 275e12, 1.228e12),
    'TPU v5 lite': Peak(197e12, 197e12, 0.819e12),
    'TPU v5': Peak(459e12, 459e12, 2.765e12),
    'TPU v5p': Peak(459e12, 459e12, 2.765e12),
    'TPU v6 lite': Peak(918e12, 918e12, 1.64e12),
    'Tesla V100-SXM2-16GB': Peak(None, 15.7e12, 0.9e12),
    'Tesla V100-SXM2-32GB': Peak(None, 15.7e12, 0.9e12),
    'Tesla T4': Peak(None, 8.1e12, 0.32e12),
    'NVIDIA A100-SXM4-40GB': Peak(312e12, 156e12, 1.555e12),
    'NVIDIA A100-SXM4-80GB': Peak(312e12, 156e12, 2.039e12),
    'NVIDIA A100-PCIE-40GB': Peak(312e12, 156e12, 1.555e12),
    'NVIDIA A100 80GB PCIe': Peak(312e12, 156e12, 1.935e12),
    'NVIDIA GeForce RTX 3090': Peak(71e12, 35.6e12, 0.936e12),
    'NVIDIA GeForce RTX 4090': Peak(165.2e12, 82.6e12, 1.008e12),
    'NVIDIA L4': Peak(121e12, 60e12, 0.3e12),
    'NVIDIA L40S': Peak(362e12, 183e12, 0.864e12),
    'NVIDIA H100 80GB HBM3': Peak(989e12, 494e12, 3.35e12),
    'NVIDIA H100 PCIe': Peak(756e12, 378e12, 2.0e12),
    'NVIDIA H100 NVL': Peak(835e12, 417e12, 3.9e12),
    'NVIDIA H200': Peak(989e12, 494e12, 4.8e12),
    'NVIDIA B200': Peak(2250e12, 1100e12, 8.0e12),
}
