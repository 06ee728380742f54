"""Checkpoints: saving, retention, restoring, and refusal of damaged or foreign ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.checkpoint import (
    arrays_of,
    best_step,
    checkpoint_steps,
    remove_partial_checkpoints,
    restore_checkpoint,
    restore_newest_of_all,
    save_checkpoint,
    save_checkpoints,
)
from resnet_jax.checkpoints.files import DamageError
from tests.checkpoints.states import NEWER, STATE


def test_restored_states_are_bit_identical(folder):
    restored = restore_checkpoint(folder, 7, jax.eval_shape(lambda: STATE))
    jax.tree.map(np.testing.assert_array_equal, restored, STATE)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, STATE)


def test_the_last_and_the_best_step_are_kept(tmp_path):
    kept = []
    for step, accuracy in [(1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, 0.9)]:
        save_checkpoint(tmp_path, step, STATE, accuracy)
        kept.append(checkpoint_steps(tmp_path))
    assert kept == [[1], [2], [2, 3], [2, 4], [5]]  # the later of two equal scores is the best
    assert best_step(tmp_path) == 5


@pytest.mark.parametrize('missing', ['checksums', 'crc32', 'score'])
def test_a_manifest_without_a_field_is_damaged(folder, missing):
    """As in earlier versions; without its own checksum, the rest of a manifest cannot be trusted."""
    path = folder / '7' / 'manifest.json'
    manifest = json.loads(path.read_text())
    del manifest[missing]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamageError, match=r"missing field 'crc32'|checksum mismatch"):
        restore_checkpoint(folder, 7, STATE)
    assert best_step(folder) is None


def test_a_part_of_a_state_can_be_restored(folder):
    like = {'params': STATE['params']}
    found = restore_checkpoint(folder, 7, like, part=True)
    assert found.keys() == {'params'}
    np.testing.assert_array_equal(found['params']['w'], STATE['params']['w'])
    assert arrays_of(folder, 7) == {'params/w': 'float32[10000]', 'step': 'int32[]'}
    with pytest.raises(InputError, match=r'params/v is missing in the file'):
        restore_checkpoint(folder, 7, {'params': STATE['params'] | {'v': jnp.zeros(5)}}, part=True)
    with pytest.raises(InputError, match=r'params/w is float32\[10000\] in the file, missing now'):
        restore_checkpoint(folder, 7, {'params': {}}, part=True)
    with pytest.raises(InputError, match=r'step is int32\[\] in the file, missing now'):
        restore_checkpoint(folder, 7, like)
    damage(max((folder / '7' / 'state').rglob('d/*'), key=lambda path: path.stat().st_size), 'flipped')
    with pytest.raises(DamageError, match='mismatch'):
        restore_checkpoint(folder, 7, like, part=True)


def test_a_step_moved_for_replacement_is_restored(folder):
    """As after a kill between the two renames that replace a step."""
    (folder / '7').rename(folder / '7.removed.partial')
    (folder / '7.partial').mkdir()
    remove_partial_checkpoints(folder)
    assert checkpoint_steps(folder) == [7]
    assert [path.name for path in folder.iterdir()] == ['7']
    jax.tree.map(np.testing.assert_array_equal, restore_checkpoint(folder, 7, STATE), STATE)


def test_a_folder_without_checkpoints(tmp_path):
    assert checkpoint_steps(tmp_path / 'none') == []
    assert best_step(tmp_path / 'none') is None
    with pytest.raises(InputError, match='has no step 3; steps: none'):
        restore_checkpoint(tmp_path, 3, STATE)


def damage(path, kind):
    data = path.read_bytes()
    if kind == 'missing':
        path.unlink()
    else:
        path.write_bytes(
            {
                'truncated': data[: len(data) // 2],
                'empty': b'',
                'flipped': data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
            }[kind]
        )


# No flipped bit in the manifest: it may leave the JSON unchanged.
@pytest.mark.parametrize(
    ('target', 'kind'),
    [
        *[('largest', kind) for kind in ('truncated', 'empty', 'flipped', 'missing')],
        *[('manifest', kind) for kind in ('truncated', 'empty', 'missing')],
    ],
)
def test_a_damaged_checkpoint_is_refused(folder, kind, target):
    save_checkpoint(folder, 9, STATE, 0.4)
    files = [path for path in (folder / '9').rglob('*') if path.is_file()]
    path = folder / '9' / 'manifest.json' if target == 'manifest' else max(files, key=lambda p: p.stat().st_size)
    damage(path, kind)
    with pytest.raises(InputError, match=r'checkpoints/9 is damaged \(.*move it away to resume from step 7') as caught:
        restore_checkpoint(folder, 9, STATE)
    assert '\n' not in str(caught.value)
    restore_checkpoint(folder, 7, STATE)


@pytest.mark.parametrize(
    ('like', 'message'),
    [
        (
            STATE | {'params': {'w': jnp.zeros(5)}},
            r'params/w is float32\[10000\] in the file, float32\[5\] now',
        ),
        (STATE | {'params': {'v': jnp.zeros(5)}}, r'params/v is missing in the file'),
        (STATE | {'step': jnp.zeros(())}, r'step is int32\[\] in the file, float32\[\] now'),
    ],
)
def test_a_checkpoint_of_another_state_is_refused(folder, like, message):
    with pytest.raises(InputError, match=f'another network or optimizer: {message}'):
        restore_checkpoint(folder, 7, like)


def test_partial_checkpoints_are_ignored_and_removed(folder):
    (folder / '8.partial' / 'state').mkdir(parents=True)
    assert checkpoint_steps(folder) == [7]
    remove_partial_checkpoints(folder)
    assert [path.name for path in folder.iterdir()] == ['7']


def test_a_partially_removed_step_is_harmless(folder):
    """As an earlier process may have left it: a step without its manifest."""
    save_checkpoint(folder, 9, STATE, 0.4)
    (folder / '7' / 'manifest.json').unlink()
    assert best_step(folder) == 9
    save_checkpoint(folder, 11, STATE, 0.3)
    assert checkpoint_steps(folder) == [9, 11]
    assert not list(folder.glob('*.partial'))


@pytest.fixture
def seeds(tmp_path):
    """Folders of two runs that were saved together, up to step 2; the second was best at step 1."""
    folders = [tmp_path / name / 'checkpoints' for name in ('seed0', 'seed1')]
    for run_folder in folders:
        run_folder.parent.mkdir()
    save_checkpoints(1, [(folders[0], STATE, 0.3), (folders[1], NEWER, 0.9)])
    save_checkpoints(2, [(folders[0], STATE, 0.5), (folders[1], NEWER, 0.5)])
    assert [checkpoint_steps(folder) for folder in folders] == [[2], [1, 2]]
    return folders


def test_runs_saved_together_resume_at_a_common_step(seeds):
    step, states = restore_newest_of_all(seeds, STATE, pytest.fail)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, states, [STATE, NEWER])
    save_checkpoint(seeds[0], 3, STATE, 0.1)
    assert restore_newest_of_all(seeds, STATE, pytest.fail)[0] == 2
    save_checkpoint(seeds[1], 3, NEWER, 0.1)
    assert [checkpoint_steps(folder) for folder in seeds] == [[2, 3], [1, 3]]
    (seeds[1] / '3' / 'manifest.json').unlink()
    lines = []
    assert restore_newest_of_all(seeds, STATE, lines.append) is None
    assert len(lines) == 1
    assert [checkpoint_steps(folder) for folder in seeds] == [[2, 3], [1]]


@pytest.mark.parametrize('operation', ['write_step', '_commit', '_remove'])
@pytest.mark.parametrize('moment', [1, 2])
def test_a_stop_at_any_point_leaves_a_common_step(seeds, monkeypatch, operation, moment):
    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return original(*args)

    original = getattr(checkpoint, operation)
    monkeypatch.setattr(checkpoint, operation, stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoints(3, [(seeds[0], NEWER, 0.6), (seeds[1], STATE, 0.95)])
    step, states = restore_newest_of_all(seeds, STATE, pytest.fail)
    assert step == (3 if operation == '_remove' else 2)
    expected = [NEWER, STATE] if step == 3 else [STATE, NEWER]
    jax.tree.map(np.testing.assert_array_equal, states, expected)


def test_keep_is_the_number_of_last_steps(tmp_path):
    kept = []
    for step, accuracy in [(1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, 0.95), (3, None)]:
        save_checkpoints(step, [(tmp_path, STATE, accuracy)], keep=2)
        kept.append(checkpoint_steps(tmp_path))
    assert kept == [
        [1],
        [1, 2],
        [2, 3],
        [2, 3, 4],
        [4, 5],
        [3, 5],
    ]  # the last: a resumed run
    with pytest.raises(ValueError, match='keep=0 must be at least 1'):
        save_checkpoints(6, [(tmp_path, STATE, None)], keep=0)
    assert checkpoint_steps(tmp_path) == [3, 5]


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match='must be distinct'):
        save_checkpoints(1, [(tmp_path, STATE, None), (tmp_path, STATE, None)])
