"""Images that are soon learnt, a disk that is soon full, and processes of their own."""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from resnet_jax.data.examples import Dataset, Split


@pytest.fixture(scope='session')
def make_shades() -> Callable[[int], Dataset]:
    """So many training images, and 21 test images, whose brightness tells their class."""

    def make(num_train: int) -> Dataset:
        rng = np.random.default_rng(0)

        def split(size: int) -> Split:
            labels = (np.arange(size) % 3).astype(np.int32)
            images = rng.integers(0, 60, (size, 6, 6, 1)) + 90 * labels[:, None, None, None]
            return Split(images.astype(np.uint8), labels)

        return Dataset('shades', split(num_train), split(21), ('a', 'b', 'c'), (0.3,), (0.3,))

    return make


@pytest.fixture
def small_disk(tmp_path) -> Iterator[pathlib.Path]:
    """A file system of 2 MB."""
    place = tmp_path / 'disk'
    place.mkdir()
    mount = shutil.which('mount')
    command = [mount, '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip('a file system of a given size cannot be mounted here')
    try:
        yield place
    finally:
        subprocess.run(['umount', '-l', str(place)], check=True)


@pytest.fixture
def start(root) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts Python code with arguments; what still runs at the end of the test is killed."""
    processes = []

    def start_code(code: str, *args: object) -> subprocess.Popen:
        command = [sys.executable, '-c', code, *map(str, args)]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        environment = os.environ | {'XLA_FLAGS': ''}  # one device
        processes.append(subprocess.Popen(command, cwd=root, env=environment, **pipes))
        return processes[-1]

    yield start_code
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start) -> Callable[..., str]:
    """Runs Python code with arguments and gives what it printed."""

    def run_code(code: str, *args: object) -> str:
        process = start(code, *args)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    return run_code
