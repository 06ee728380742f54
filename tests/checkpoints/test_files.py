"""The folder of a checkpoint: its format, and no waiting for other processes."""

import json
import os
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet_jax import InputError
from resnet_jax.checkpoints import files as checkpoint_files
from resnet_jax.checkpoints.checkpoint import best_step, restore_checkpoint, save_checkpoint
from resnet_jax.checkpoints.files import (
    DamageError,
    check_files,
    describe_arrays,
    read_arrays,
    read_manifest,
    write_step,
)
from tests.training.ports import free_address

STATE = {
    'step': np.array(7, np.int32),
    'params': {'w': np.linspace(-1, 1, 6000, dtype=np.float32).reshape(2, 3000)},
    'slots': (np.arange(5, dtype=ml_dtypes.bfloat16), None, [np.array([True, False])]),
}


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
    assert describe_arrays(left) == describe_arrays(right)


def test_the_manifest_describes_arrays_and_files(tmp_path):
    write_step(tmp_path / '7', 7, STATE, 0.5)
    manifest = json.loads((tmp_path / '7' / 'manifest.json').read_text())
    assert manifest['step'] == 7
    assert manifest['score'] == 0.5
    expected = {'step': 'int32[]', 'params/w': 'float32[2, 3000]', 'slots/0': 'bfloat16[5]', 'slots/2/0': 'bool[2]'}
    assert manifest['arrays'] == expected
    assert manifest['checksums']['params/w'] == zlib.crc32(STATE['params']['w'].tobytes())
    assert manifest['checksums'].keys() == expected.keys()
    paths = {str(path.relative_to(tmp_path / '7')): path for path in (tmp_path / '7').rglob('*') if path.is_file()}
    del paths['manifest.json']
    contents = {name: path.read_bytes() for name, path in paths.items()}
    assert manifest['files'] == {name: [len(data), zlib.crc32(data)] for name, data in contents.items()}


def test_fortran_order_does_not_change_checksums(tmp_path):
    state = {'w': np.asfortranarray(STATE['params']['w'])}
    save_checkpoint(tmp_path, 1, state, None)
    equal(restore_checkpoint(tmp_path, 1, state), state)


def test_orbax_reads_our_checkpoints(tmp_path):
    write_step(tmp_path / '7', 7, STATE, None)
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / '7' / 'state')
    assert describe_arrays(tree) == describe_arrays(STATE)
    np.testing.assert_array_equal(tree['params']['w'], STATE['params']['w'])


def test_arrays_of_another_orbax_checkpointer_are_read(tmp_path):
    """Of device arrays, with our manifest."""
    state = jax.tree.map(jnp.asarray, STATE)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / '7' / 'state', state)
    files = {
        str(path.relative_to(tmp_path / '7')): [path.stat().st_size, zlib.crc32(path.read_bytes())]
        for path in (tmp_path / '7').rglob('*')
        if path.is_file()
    }
    manifest = {'step': 7, 'score': 0.25, 'arrays': describe_arrays(STATE), 'files': files}
    manifest['checksums'] = checkpoint_files._checksums(STATE)
    signed = manifest | {'crc32': checkpoint_files._manifest_crc32(manifest)}
    (tmp_path / '7' / 'manifest.json').write_text(json.dumps(signed, indent=1))
    equal(restore_checkpoint(tmp_path, 7, jax.eval_shape(lambda: state)), STATE)
    assert best_step(tmp_path) == 7


def test_restored_arrays_have_the_sharding_of_like(tmp_path):
    save_checkpoint(tmp_path, 7, STATE, None)
    placed = jax.device_put(STATE, jax.devices()[1])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restore_checkpoint(tmp_path, 7, STATE)))
    for like in (placed, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)):
        restored = restore_checkpoint(tmp_path, 7, like)
        assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {jax.tree.leaves(placed)[0].sharding}
        equal(restored, STATE)


def test_an_array_with_another_checksum_is_damage(tmp_path, monkeypatch):
    """The files are intact, but an array is not: an error in memory or in the library."""
    flip = STATE['params']['w'].copy()
    flip[1, 7] += 1
    checksums = checkpoint_files._checksums
    monkeypatch.setattr(checkpoint_files, '_checksums', lambda tree: checksums(STATE | {'params': {'w': flip}}))
    save_checkpoint(tmp_path, 7, STATE, None)
    monkeypatch.undo()
    check_files(tmp_path / '7', read_manifest(tmp_path / '7'))
    with pytest.raises(DamageError, match=r'checkpoints?.* is damaged \(array params/w: checksum mismatch\)'):
        restore_checkpoint(tmp_path, 7, STATE)


def test_a_checkpoint_that_orbax_cannot_read_is_not_damage(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError('a format\nof the future')

    save_checkpoint(tmp_path, 7, STATE, None)
    monkeypatch.setattr(checkpoint_files, '_orbax', fail)
    with pytest.raises(InputError, match=r'7 cannot be read by Orbax [\d.]+: a format of the future$') as caught:
        restore_checkpoint(tmp_path, 7, STATE)
    assert not isinstance(caught.value, DamageError)


PROCESS = """
import pathlib, sys, time
import jax
index, address, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.distributed.initialize(address, 2, index)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.writer import CheckpointWriter

assert jax.process_count() == 2
folders = [folder / name for name in ('a', 'b')]
states = [{'w': np.arange(1000, dtype=np.float32) + i} for i in range(2)]
if index == 0:
    with CheckpointWriter() as writer:
        for step in (1, 2):
            writer.save(step, [(where, state, None) for where, state in zip(folders, states)])
    (folder / 'written').touch()
else:  # has no writer
    while not (folder / 'written').exists():
        time.sleep(0.02)
    # Before the other process reads.
    assert checkpoint.restore_newest(folders[1], states[1], print)[0] == 2
    (folder / 'read').touch()
while not (folder / 'read').exists():
    time.sleep(0.02)
step, found = checkpoint.restore_newest_of_all(folders, states[0], print)
for restored, state in zip(found, states):
    assert type(restored['w']) is np.ndarray
    np.testing.assert_array_equal(restored['w'], state['w'])
everywhere = NamedSharding(jax.make_mesh((2,), ('all',)), PartitionSpec())
if index == 0:  # the other process does not participate
    like = {'w': jax.ShapeDtypeStruct((1000,), np.float32, sharding=everywhere)}
    placed = checkpoint.restore_checkpoint(folders[0], 2, like)
    assert not placed['w'].is_fully_addressable
print('read', step)
"""


def test_two_processes_write_and_read_without_each_other(start, tmp_path):
    address = free_address()
    processes = [start(PROCESS, index, address, tmp_path) for index in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == ['read 2', 'read 2']


@pytest.mark.parametrize('name', [b'runs [1]', b'a*b?', b'back\\slash', b'caf\xe9', '猫 $_%'.encode(), b'new\nline'])
def test_a_folder_may_have_any_name(name, tmp_path):
    """Orbax takes brackets and backslashes for a pattern, and TensorStore refuses bytes that are not UTF-8."""
    folder = tmp_path / os.fsdecode(name)
    write_step(folder / '7', 7, STATE, 0.5)
    check_files(folder / '7', read_manifest(folder / '7'))
    equal(read_arrays(folder / '7', read_manifest(folder / '7'), STATE), STATE)
    assert [path.name for path in folder.iterdir()] == ['7']
