"""What the TPU compiler notes about a program."""

import importlib.util
import subprocess
import sys

import jax.numpy as jnp
import pytest

from resnet_jax import InputError, aot

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


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed')
def test_without_libtpu_the_error_names_the_package():
    with pytest.raises(InputError, match='pip install libtpu'):
        aot.estimate(jnp.sin, jnp.zeros(3))


@needs_libtpu
@pytest.mark.parametrize('topology', ['v99:2x2', 'nonsense:2x2'])
def test_an_unknown_topology_is_a_one_line_error(topology):
    with pytest.raises(InputError, match=f'topology={topology!r}') as error:
        aot.estimate(jnp.sin, jnp.zeros(3), topology=topology)
    assert '\n' not in str(error.value)


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
