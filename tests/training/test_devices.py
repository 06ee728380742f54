"""Training on one device, on eight, and in two processes gives the same results."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from resnet_jax import InputError, devices, load_variables
from resnet_jax.devices import data_mesh, in_main_process, join_processes, split_evenly
from tests.training.ports import free_address


def start(root, workdir, num_devices, *job):
    environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={num_devices}'}
    command = [sys.executable, '-m', 'tests.training.twenty_steps', str(workdir), *map(str, job)]
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes):
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope='module')
def one(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('devices') / 'one'
    finish(start(root, workdir, 1))
    return workdir


def assert_same(found, expected):
    """Compares the losses of twenty steps and of the evaluations, and the final weights."""
    records = [[json.loads(line) for line in (w / 'metrics.jsonl').read_text().splitlines()] for w in (found, expected)]
    assert [(r['split'], r['step']) for r in records[0]] == [(r['split'], r['step']) for r in records[1]]
    assert sum(r['split'] == 'train' for r in records[0]) == 20
    np.testing.assert_allclose(*([r['loss'] for r in part] for part in records), rtol=1e-4)
    trees = [jax.tree.leaves(load_variables(workdir)) for workdir in (found, expected)]
    for first, second in zip(*trees, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_eight_devices_agree_with_one(root, one, tmp_path):
    finish(start(root, tmp_path / 'run', 8))
    assert_same(tmp_path / 'run', one)


@pytest.mark.slow
def test_two_processes_agree_with_one(root, one, tmp_path):
    address = free_address()
    finish(*(start(root, tmp_path / 'run', 1, address, 2, index) for index in range(2)))
    assert_same(tmp_path / 'run', one)
    assert not list((tmp_path / 'run').rglob('*.partial*'))


def test_arguments_of_a_job_must_be_set_together():
    with pytest.raises(InputError, match=r'coordinator_address=here:1, num_processes=None and process_index=None must'):
        join_processes('here:1')
    with pytest.raises(InputError, match='process_index=2 must be from 0 to 1'):
        join_processes('here:1', 2, 2)
    join_processes()  # does nothing without a job
    assert jax.process_count() == 1


def test_a_job_is_detected_from_the_environment(monkeypatch):
    assert not devices._in_a_job()
    for name, value in (
        ('SLURM_STEP_NUM_TASKS', '4'),
        ('OMPI_COMM_WORLD_SIZE', '2'),
        ('TPU_WORKER_HOSTNAMES', 'a,b'),
        ('TPU_PROCESS_ADDRESSES', 'a:1,b:1'),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert devices._in_a_job(), name
    monkeypatch.setattr(devices, '_tpu_vm_workers', lambda: 'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2')
    assert devices._in_a_job()


def test_errors_in_process_0_are_raised():
    def fail():
        raise InputError('no')

    assert in_main_process(lambda: 7) == 7
    with pytest.raises(InputError, match=r'^no$'):
        in_main_process(fail)


def test_the_largest_divisible_axis_is_split():
    mesh = data_mesh()
    assert mesh.size == 2
    for shape, parts in (((3, 3, 8, 16), (3, 3, 8, 8)), ((4, 3), (2, 3)), ((3, 5), (3, 5)), ((), ())):
        assert split_evenly(mesh, shape).shard_shape(shape) == parts
