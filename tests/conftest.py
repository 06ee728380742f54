"""Settings and fixtures of all tests."""

import os
import pathlib
from collections.abc import Iterator

# Before JAX starts: two CPU devices, so that everything runs where a batch is split.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'

import jax
import numpy as np
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope='session', autouse=True)
def cache_home(tmp_path_factory) -> Iterator[pathlib.Path]:
    """Where scripts and tests keep compiled programs, which all processes of the tests share: not the user's folder."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder) / 'cache'
    settings = {'jax_compilation_cache_dir': str(folder / 'tests'), 'jax_persistent_cache_min_compile_time_secs': 0.3}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(folder))
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
    """The folder of README.md."""
    return ROOT


@pytest.fixture(scope='session')
def reference_data() -> pathlib.Path:
    """Real data that does not come with the sources."""
    path = pathlib.Path(os.environ.get('RESNET_JAX_REFERENCE_DATA', ROOT.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip('reference data are not here; RESNET_JAX_REFERENCE_DATA can name their folder')
    return path
