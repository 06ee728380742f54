"""Cost estimates by the compilers of TPUs and GPUs, where they are installed."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import InputError, ResNet, aot, init_variables, make_spec
from resnet_jax.aot import estimates
from resnet_jax.devices import data_parallel

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='libtpu, the TPU compiler, is not installed'
)


def test_collectives_of_a_data_parallel_step_are_counted(monkeypatch):
    """Compiled for CPU: the sum over a sharded batch is one all-reduce of the gradient's size."""
    monkeypatch.setattr(estimates, '_devices', lambda topology: jax.devices())
    weights, images = jnp.zeros((16, 4)), jax.ShapeDtypeStruct((8, 16), jnp.float32)

    def step(weights, images):
        return weights - jax.grad(lambda w: jnp.square(images @ w).sum())(weights)

    found = aot.estimate_job(step, weights, images, shardings=data_parallel, topology='here')
    assert found['devices'] == len(jax.devices()) == 2
    assert found['collectives'] == {'all-reduce': {'count': 1, 'bytes': weights.size * 4}}
    assert found['argument_bytes'] == (weights.size + 4 * 16) * 4  # per device: all weights and half of the images
    with pytest.raises(InputError, match='batch size 7 must be a multiple of 2, the devices of here'):
        aot.estimate_job(step, weights, jnp.zeros((7, 16)), shardings=data_parallel, topology='here')


@pytest.mark.parametrize('topology', ['', 'v5e', 'H100', 'gtx970'])
def test_a_name_without_a_shape_must_be_that_of_a_gpu(topology):
    message = f'topology={topology!r} must be a TPU topology, such as v5e:2x2, or one of a100, b200, h100, h200, l4'
    with pytest.raises(InputError, match=message):
        aot.estimate(jnp.sin, jnp.zeros(3), topology=topology)


def test_what_is_reported_of_a_program_for_a_gpu(monkeypatch, capsys):
    """Compiled for the CPU, whose program has the same form."""
    monkeypatch.setattr(estimates, '_devices', lambda topology: jax.devices())
    found = aot.estimate(lambda x: jnp.sin(x) + 1, jnp.zeros(1000), topology='h100', donate=(0,))
    assert found['kernels'] == {'fusion': {'count': 1, 'bytes': 8000}}
    assert found['moved_bytes'] == 8000
    assert (found['pass_bytes'], found['passes'], found['flops']) == (0, None, 0)
    assert found['predicted_ms'] == pytest.approx(8000 / (0.81 * 3.35232e9) + 2.2e-3)
    assert found['argument_bytes'] == found['peak_bytes'] - found['temp_bytes'] == 4000  # the result takes its place


@needs_libtpu
def test_estimates_of_a_forward_pass():
    model = ResNet(make_spec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=4))
    variables = jax.eval_shape(lambda key: init_variables(model, key, (8, 8, 3)), jax.random.key(0))
    images = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)
    cost = aot.estimate(lambda variables, images: model.apply(variables, images, train=False), variables, images)
    assert cost['cycles'] > 0
    assert cost['flops'] > 2 * 8 * 64 * (9 * 3 * 8 + 2 * 9 * 8 * 8) * 0.8  # taps outside the image are not counted
    assert cost['argument_bytes'] > images.size * 4
    assert cost['output_bytes'] > 0
    assert cost['compile_seconds'] > 0
