"""One checkpoint's folder: its format, and that no process waits for another."""

import json
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
from resnet_jax.checkpoints.files import DamageError, check_files, describe_arrays, read_manifest, write_step
from tests.training.ports import free_address

STATE = {
    'step': np.array(7, np.int32),
    'params': {'w': np.linspace(-1, 1, 6000, dtype=np.float32).reshape(2, 3000)},
    'slots': (np.arange(5, dtype=ml_dtypes.bfloat16), None, [np.array([True, False])]),
}


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
    assert describe_arrays(left) == describe_arrays(right)


def test_the_manifest_holds_shape_type_and_checksum_of_arrays_and_files(tmp_path):
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


def test_arrays_in_another_order_have_the_checksum_of_their_values(tmp_path):
    state = {'w': np.asfortranarray(STATE['params']['w'])}
    save_checkpoint(tmp_path, 1, state, None)
    equal(restore_checkpoint(tmp_path, 1, state), state)


def test_orbax_alone_reads_what_we_write(tmp_path):
    write_step(tmp_path / '7', 7, STATE, None)
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / '7' / 'state')
    assert describe_arrays(tree) == describe_arrays(STATE)
    np.testing.assert_array_equal(tree['params']['w'], STATE['params']['w'])


def test_what_another_checkpointer_of_orbax_wrote_is_read(tmp_path):
    """Device arrays; the manifest is ours."""
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


def test_arrays_come_back_where_like_has_them(tmp_path):
    save_checkpoint(tmp_path, 7, STATE, None)
    placed = jax.device_put(STATE, jax.devices()[1])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restore_checkpoint(tmp_path, 7, STATE)))
    for like in (placed, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)):
        restored = restore_checkpoint(tmp_path, 7, like)
        assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {jax.tree.leaves(placed)[0].sharding}
        equal(restored, STATE)


def test_an_array_that_orbax_gives_otherwise_is_damage(tmp_path, monkeypatch):
    """All files are as written, but an array is not: a fault in memory, or in the library."""
    flip = STATE['params']['w'].copy()
    flip[1, 7] += 1
    checksums = checkpoint_files._checksums
    monkeypatch.setattr(checkpoint_files, '_checksums', lambda tree: checksums(STATE | {'params': {'w': flip}}))
    save_checkpoint(tmp_path, 7, STATE, None)
    monkeypatch.undo()
    check_files(tmp_path / '7', read_manifest(tmp_path / '7'))
    with pytest.raises(DamageError, match=r'checkpoints?.* is damaged \(the array params/w is not as it was written\)'):
        restore_checkpoint(tmp_path, 7, STATE)


def test_a_library_that_cannot_read_is_not_damage(tmp_path, monkeypatch):
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
else:  # calls no writer at all
    while not (folder / 'written').exists():
        time.sleep(0.02)
    # Before the other one reads.
    assert checkpoint.restore_newest(folders[1], states[1], print)[0] == 2
    (folder / 'read').touch()
while not (folder / 'read').exists():
    time.sleep(0.02)
step, found = checkpoint.restore_newest_of_all(folders, states[0], print)
for there, state in zip(found, states):
    assert type(there['w']) is np.ndarray
    np.testing.assert_array_equal(there['w'], state['w'])
everywhere = NamedSharding(jax.make_mesh((2,), ('all',)), PartitionSpec())
if index == 0:  # the other one does not take part
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
