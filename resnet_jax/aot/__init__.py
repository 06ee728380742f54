"""Estimates by the compilers of TPUs and GPUs that are not present."""

from resnet_jax.aot.estimates import estimate, estimate_job
from resnet_jax.aot.gpu import GPUS
from resnet_jax.aot.hlo import collectives_of, kernels_of
from resnet_jax.aot.tpu import estimated_cycles

__all__ = ['GPUS', 'collectives_of', 'estimate', 'estimate_job', 'estimated_cycles', 'kernels_of']
