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
    """Where the scripts keep compiled programs: not in the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp('cache')
        patch.setenv('XDG_CACHE_HOME', str(folder))
        yield folder


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
