"""Settings and fixtures for all tests."""

import gc
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Set before JAX is initialized. Two CPU devices, so that every batch is sharded; RESNET_JAX_TEST_DEVICES sets another
# number, for the tests that work with any. Tests compile much and compute little: disabling LLVM's optimizations saves
# 40% of their time, and XLA emits a single module. jaxlib 0.10 can also emit fusions without the MLIR pipeline, which
# saves a third of the remaining time. XLA's own passes are unchanged.
# XLA_FLAGS='--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true' tests the machine code that users
# run; later versions need and accept only the first flag. If a flag is repeated, the last one counts.
# RESNET_JAX_TEST_PLATFORMS=cuda,cpu runs the tests on a GPU: with its own optimizations, with float32 products in full
# precision, as the tolerances of the tests require, and with memory that the test processes share.
os.environ['JAX_PLATFORMS'] = os.environ.get('RESNET_JAX_TEST_PLATFORMS', 'cpu')
if os.environ['JAX_PLATFORMS'] == 'cpu':
    os.environ['XLA_FLAGS'] = (
        '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 '
        + ('--xla_cpu_use_fusion_emitters=false ' * importlib.metadata.version('jaxlib').startswith('0.10.'))
        + os.environ.get('XLA_FLAGS', '')
    )
    os.environ['XLA_FLAGS'] += (
        f' --xla_force_host_platform_device_count={os.environ.get("RESNET_JAX_TEST_DEVICES", "2")}'
    )
else:
    os.environ.setdefault('XLA_FLAGS', '')
    os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import numpy as np
import pytest

from resnet_jax.data.examples import Dataset, Split

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tracing creates millions of objects, few of them in cycles: collecting less often saves an eighth of its time.
gc.freeze()
gc.set_threshold(100_000)

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def compilation_cache() -> Iterator[None]:
    """Turns the compilation cache on again after a test of a command that turns it off."""
    yield
    jax.config.update('jax_enable_compilation_cache', True)


@pytest.fixture(scope='session', autouse=True)
def compiled_programs() -> Iterator[None]:
    """Tests and their subprocesses share a compilation cache in the checkout, also with later runs."""
    settings = {'jax_compilation_cache_dir': str(ROOT / '.cache'), 'jax_persistent_cache_min_compile_time_secs': 0.3}
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))  # for subprocesses
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope='session', autouse=True)
def cache_home(tmp_path_factory) -> Iterator[pathlib.Path]:
    """A temporary cache folder in place of the user's."""
    folder = tmp_path_factory.mktemp('cache')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(folder))
        yield folder


@pytest.fixture(scope='session')
def root() -> pathlib.Path:
    """The root folder of the repository."""
    return ROOT


@pytest.fixture(scope='session')
def reference_data() -> pathlib.Path:
    """The folder of real data, which is not part of the repository."""
    path = pathlib.Path(os.environ.get('RESNET_JAX_REFERENCE_DATA', ROOT.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip('reference data not found; set RESNET_JAX_REFERENCE_DATA to their folder')
    return path


@pytest.fixture(scope='session')
def make_shades() -> Callable[[int], Dataset]:
    """Returns a function that makes a dataset with 21 test images; brightness determines the class."""

    def make(num_train: int) -> Dataset:
        rng = np.random.default_rng(0)

        def split(size: int) -> Split:
            labels = (np.arange(size) % 3).astype(np.int32)
            images = rng.integers(0, 60, (size, 6, 6, 1)) + 90 * labels[:, None, None, None]
            return Split(images.astype(np.uint8), labels)

        return Dataset('shades', split(num_train), split(21), ('a', 'b', 'c'), (0.3,), (0.3,))

    return make


@pytest.fixture
def under() -> Callable[..., Any]:
    """Returns a function that calls a function under other settings of JAX, and returns its arrays as NumPy arrays."""

    def call(function: Callable[[], Any], **settings: Any) -> Any:
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            return jax.device_get(function())
        finally:
            for name, value in before.items():
                jax.config.update(name, value)

    return call


@pytest.fixture
def small_disk(tmp_path) -> Iterator[pathlib.Path]:
    """A file system of 2 MB."""
    place = tmp_path / 'disk'
    place.mkdir()
    mount = shutil.which('mount')
    command = [mount, '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip('cannot mount a file system of limited size')
    try:
        yield place
    finally:
        subprocess.run(['umount', '-l', str(place)], check=True)


@pytest.fixture
def start(root) -> Iterator[Callable[..., subprocess.Popen]]:
    """Returns a function that starts Python code in a subprocess; it is killed at the end of the test."""
    processes = []

    def start_code(code: str, *args: object) -> subprocess.Popen:
        command = [sys.executable, '-c', code, *map(str, args)]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        flags = os.environ['XLA_FLAGS'].replace('device_count=2', 'device_count=1')
        environment = os.environ | {'XLA_FLAGS': flags}
        processes.append(subprocess.Popen(command, cwd=root, env=environment, **pipes))
        return processes[-1]

    yield start_code
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start) -> Callable[..., str]:
    """Returns a function that runs Python code in a subprocess and returns its output."""

    def run_code(code: str, *args: object) -> str:
        process = start(code, *args)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    return run_code
