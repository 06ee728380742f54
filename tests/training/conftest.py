"""A disk that is soon full, and processes of their own."""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest


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
