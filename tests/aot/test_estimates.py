"""Cost estimates by the TPU compiler, if it is installed."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import InputError, ResNet, aot, init_variables, make_spec
from resnet_jax.devices import data_parallel

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='libtpu, the TPU compiler, is not installed'
)
PROGRAM = """
import jax, jax.numpy as jnp
print(jax.devices())
from resnet_jax import aot
print(aot.estimate(lambda x: x @ x, jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)))
"""


def test_cycles_are_summed_over_instructions():
    text = 'a = f() backend_config={"estimated_cycles":"12"}\nb = g()\nc = h() {"estimated_cycles":"30","x":"1"}'
    assert aot.estimated_cycles(text) == 42


def test_collectives_of_a_data_parallel_step_are_counted(monkeypatch):
    """Compiled for CPU: the sum over a sharded batch is one all-reduce of the gradient's size."""
    monkeypatch.setattr(aot, '_devices', lambda topology: jax.devices())
    weights, images = jnp.zeros((16, 4)), jax.ShapeDtypeStruct((8, 16), jnp.float32)

    def step(weights, images):
        return weights - jax.grad(lambda w: jnp.square(images @ w).sum())(weights)

    found = aot.estimate_job(step, weights, images, shardings=data_parallel, topology='here')
    assert found['devices'] == len(jax.devices()) == 2
    assert found['collectives'] == {'all-reduce': {'count': 1, 'bytes': weights.size * 4}}
    assert found['argument_bytes'] == (weights.size + 4 * 16) * 4  # per device: all weights and half of the images
    with pytest.raises(InputError, match='batch size 7 must be a multiple of 2, the devices of here'):
        aot.estimate_job(step, weights, jnp.zeros((7, 16)), shardings=data_parallel, topology='here')


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed')
def test_without_libtpu_the_error_names_the_package():
    with pytest.raises(InputError, match='pip install libtpu'):
        aot.estimate(jnp.sin, jnp.zeros(3))


@needs_libtpu
@pytest.mark.parametrize('topology', ['', 'v5e', 'v99:2x2', 'nonsense:2x2'])
def test_an_unknown_topology_is_a_one_line_error(topology):
    with pytest.raises(InputError, match=f'topology={topology!r}') as error:
        aot.estimate(jnp.sin, jnp.zeros(3), topology=topology)
    assert '\n' not in str(error.value)


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


@needs_libtpu
def test_libtpu_writes_no_logs(tmp_path, root):
    """No log files in the folder and no output on stderr, although JAX was initialized before."""
    run = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(root), 'PATH': '/usr/bin:/bin'},
    )
    assert run.returncode == 0, run.stderr
    assert "'cycles'" in run.stdout
    assert not run.stderr
    assert not list(tmp_path.iterdir())
