"""Programs compiled for GPUs that are not present, where JAX's CUDA plugin is installed."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmark import estimate_on
from experiments.shared.steps import Case
from resnet_jax import InputError, aot
from resnet_jax.aot import gpu
from resnet_jax.aot.hlo import Kernel

HAS_PLUGIN = any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))
needs_plugin = pytest.mark.skipif(not HAS_PLUGIN, reason="JAX's CUDA plugin is not installed")
H100 = gpu.GPUS['h100']
KERNEL = Kernel('x', 'fusion', '', times=1, read=0, written=0, flops=0, bits=16)


def test_the_slower_of_memory_and_arithmetic_is_predicted():
    overhead = 2.2e-6
    memory = dataclasses.replace(KERNEL, read=3 * 10**9, written=10**9, flops=10**9)
    assert gpu.predicted_seconds([memory], H100) == pytest.approx(4e9 / (0.81 * 3.35232e12) + overhead)
    work = dataclasses.replace(KERNEL, read=10**6, flops=10**12)
    assert gpu.predicted_seconds([work], H100) == pytest.approx(1e12 / (0.49 * 989e12) + overhead)
    single = dataclasses.replace(work, bits=32)  # TF32 takes twice as long
    assert gpu.predicted_seconds([single], H100) == pytest.approx(2e12 / (0.49 * 989e12) + overhead)
    often = dataclasses.replace(memory, times=7)
    assert gpu.predicted_seconds([often], H100) == pytest.approx(7 * gpu.predicted_seconds([memory], H100))


@pytest.mark.parametrize('name', gpu.GPUS)
def test_a_description_holds_the_numbers_of_its_card(name):
    card = gpu.GPUS[name]
    text = gpu.description_of(card)
    fields = dict(re.findall(r'^ *(\w+): "?([^"\n]+)"?$', text, re.M))
    assert fields['name'] == fields['device_description_str'] == card.kind
    assert int(fields['memory_bandwidth']) == card.bandwidth
    assert int(fields['core_count']) == card.multiprocessors
    assert int(fields['shared_memory_per_block_optin']) == card.shared - 1024
    major, minor = card.capability
    assert f'major: {major} minor: {minor} ' in text
    accelerated = name in ('h100', 'h200', 'b200')
    assert ('ACCELERATED_FEATURES' in text) == fields['platform_version'].endswith('a') == accelerated


@pytest.mark.skipif(HAS_PLUGIN, reason="JAX's CUDA plugin is installed")
def test_without_the_plugin_the_error_names_the_package():
    with pytest.raises(InputError, match=r'pip install .jax\[cuda13\]'):
        aot.estimate(jnp.sin, jnp.zeros(3), topology='h100')


@pytest.mark.skipif(HAS_PLUGIN, reason="JAX's CUDA plugin is installed")
def test_a_plugin_that_found_no_driver_needs_a_setting(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'jax_cuda13_plugin' or None)
    with pytest.raises(InputError, match='need JAX_PLATFORMS=cpu on a machine without a GPU'):
        gpu.devices('h100')


@needs_plugin
@pytest.mark.parametrize('name', gpu.GPUS)
def test_every_card_is_compiled_for(name):
    """A product, its ReLU in the same or another kernel, and a loop of seven additions."""
    a, b = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16), jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16)

    def step(a, b):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.roll(x, 1, 0) + x, jax.nn.relu(a @ b))

    found = aot.estimate(step, a, b, topology=name)
    assert found['flops'] == 2 * 512 * 256 * 1024
    assert found['kernels']['product']['count'] == 1
    once = 2 * 512 * 1024
    assert found['kernels']['product']['bytes'] == 2 * (512 + 1024) * 256 + once
    assert sum(found['kernels'][kind]['count'] for kind in found['kernels'] if kind != 'product') >= 7
    assert 7 * 2 * once <= found['moved_bytes'] - found['kernels']['product']['bytes'] < 7 * 5 * once
    assert found['predicted_ms'] > 0


# Upper bounds for a training step with bfloat16 of 256 images of 224x224 on an H100: bytes of the fusions and products,
# bytes of all kernels, and the most memory in use, in GB.
BOUNDS = {
    'resnet18': (13.2, 20.0, 2.7),
    'resnet50': (36.8, 72.7, 7.8),
    'resnext50_32x4d': (53.5, 101.5, 11.0),
    'seresnet50': (56.4, 89.5, 11.4),
}


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize('arch', BOUNDS)
def test_bytes_of_a_training_step(arch):
    """The program is deterministic: the same versions give the same bytes."""
    found = estimate_on('h100', Case(arch, 'train', 256, 224, 'bfloat16', 'auto', False, None, None), [], False)
    elementwise = sum(found['kernels'][kind]['bytes'] for kind in ('fusion', 'product'))
    bounds = dict(zip(('elementwise', 'all', 'memory'), BOUNDS[arch], strict=True))
    measured = {'elementwise': elementwise, 'all': found['moved_bytes'], 'memory': found['peak_bytes']}
    too_large = {name: value / 1e9 for name, value in measured.items() if value > 1e9 * bounds[name]}
    assert not too_large, bounds
