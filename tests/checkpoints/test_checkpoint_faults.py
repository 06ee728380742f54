"""Damaged checkpoints, full disks and killed processes."""

import collections
import errno
import json
import os
import pathlib
import re
import stat
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError, StorageError
from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints import files as checkpoint_files
from resnet_jax.checkpoints.checkpoint import (
    best_step,
    checkpoint_steps,
    remove_partial_checkpoints,
    restore_newest,
    restore_newest_of_all,
    save_checkpoint,
    save_checkpoints,
)
from tests.checkpoints.states import NEWER, STATE


def largest(step):
    return max((path for path in (step / 'state').rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def replace(path, put):
    """Moves a file or folder away and puts something else in its place."""
    folder = next(parent for parent in path.parents if parent.name == 'checkpoints')
    path.rename(folder / 'elsewhere')
    put(path)


def edit(**changes):
    """Changes fields of the manifest; functions are applied to the old value, None removes a field."""

    def damage_manifest(step):
        path = step / 'manifest.json'
        content = json.loads(path.read_text())
        for name, change in changes.items():
            content[name] = change(content[name]) if callable(change) else change
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return damage_manifest


def edit_and_sign(**changes):
    """Changes fields of the manifest and updates its checksum."""

    def damage_manifest(step):
        edit(**changes)(step)
        content = json.loads((step / 'manifest.json').read_text())
        del content['crc32']
        edit(crc32=checkpoint_files._manifest_crc32(content))(step)

    return damage_manifest


def with_another_checksum(files):
    name = next(name for name in files if '/d/' in name)
    return files | {name: [files[name][0], files[name][1] ^ 1]}


def put(find, what):
    return lambda step: replace(find(step), what)


def change(find, how):
    return lambda step: rewrite(find(step), how)


def manifest_of(step):
    return step / 'manifest.json'


def itself(step):
    return step


DATA = r'state/\S+ '
CHANGED_DATA = r'state/\S+: size or checksum mismatch'
OTHER = r'checksum mismatch'
MANIFEST = r'manifest.json: .*'
# Damage to the newest step, and the reported reason.
DAMAGES = {
    'truncated data': (change(largest, lambda data: data[: len(data) // 2]), CHANGED_DATA),
    'longer data': (change(largest, lambda data: data + b'0'), CHANGED_DATA),
    'empty data': (change(largest, lambda _: b''), CHANGED_DATA),
    'flipped bit': (change(largest, lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]), CHANGED_DATA),
    'missing data': (put(largest, lambda _: None), DATA + 'is missing'),
    'missing metadata': (put(lambda step: step / 'state' / '_METADATA', lambda _: None), 'state/_METADATA is missing'),
    'folder for data': (put(largest, pathlib.Path.mkdir), DATA + 'cannot be read: not a file'),
    'pipe for data': (put(largest, os.mkfifo), DATA + 'cannot be read: not a file'),
    'dangling data': (put(largest, lambda path: path.symlink_to('nowhere')), DATA + 'is missing'),
    'circular data': (
        put(largest, lambda path: path.symlink_to(path.name)),
        DATA + 'cannot be read: Too many levels of symbolic links',
    ),
    'missing state': (put(lambda step: step / 'state', lambda _: None), DATA + 'is missing'),
    'empty step': (put(itself, pathlib.Path.mkdir), 'manifest.json is missing'),
    'file for step': (put(itself, pathlib.Path.touch), 'cannot be read: not a folder'),
    'dangling step': (put(itself, lambda path: path.symlink_to('nowhere')), 'broken link'),
    'missing manifest': (put(manifest_of, lambda _: None), 'manifest.json is missing'),
    'folder for manifest': (put(manifest_of, pathlib.Path.mkdir), 'manifest.json cannot be read: not a file'),
    'manifest cut off': (change(manifest_of, lambda data: data[: len(data) // 2]), MANIFEST + '(Expect|Untermin)'),
    'manifest empty': (change(manifest_of, lambda _: b''), MANIFEST + 'Expecting value'),
    'manifest no text': (change(manifest_of, lambda _: b'\xff\x00\xfe'), MANIFEST + 'decode'),
    'manifest a list': (change(manifest_of, lambda _: b'[]'), MANIFEST + 'list'),
    'manifest a number': (change(manifest_of, lambda _: b'7'), MANIFEST + 'int'),
    'manifest too deep': (change(manifest_of, lambda _: b'[' * 100_000), MANIFEST + 'recursion'),
    'manifest without fields': (change(manifest_of, lambda _: b'{"score": null}'), MANIFEST + "missing field 'crc32'"),
    'signed without a field': (edit_and_sign(arrays=None), MANIFEST + "missing field 'arrays'"),
    'flipped score': (edit(score=0.75), MANIFEST + OTHER),
    'flipped checksum': (edit(files=with_another_checksum), MANIFEST + OTHER),
    'other array': (edit(arrays=lambda old: old | {'params/w': 'float32[9999]'}), MANIFEST + OTHER),
    'wrong checksum of a file': (edit_and_sign(files=with_another_checksum), CHANGED_DATA),
    'wrong checksum of an array': (
        edit_and_sign(checksums=lambda old: old | {'params/w': old['params/w'] ^ 1}),
        f'array params/w: {OTHER}',
    ),
    'files of wrong type': (edit_and_sign(files=['state']), MANIFEST + 'wrong type of a field'),
    'no files': (edit_and_sign(files={}), MANIFEST + 'wrong type of a field'),
    'score of wrong type': (edit_and_sign(score='high'), MANIFEST + 'wrong type of a field'),
    'zero byte in a name': (edit_and_sign(files={'a\0b': [1, 2]}), MANIFEST + 'embedded null'),
}


def contents_of(folder):
    """Counts the contents of all files, links and other non-folders, regardless of their place."""
    counts = collections.Counter()
    for path in folder.rglob('*'):
        kind = stat.S_IFMT(path.lstat().st_mode)
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        if kind != stat.S_IFDIR:
            counts[kind, content] += 1
    return counts


@pytest.fixture
def two_steps(folder):
    save_checkpoint(folder, 9, NEWER, 0.4)
    return folder


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_step_is_moved_away_and_the_previous_one_restored(two_steps, name):
    damage_step, reason = DAMAGES[name]
    damage_step(two_steps / '9')
    before, lines = contents_of(two_steps), []
    step, state = restore_newest(two_steps, STATE, lines.append)
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    path = re.escape(str(two_steps))
    assert len(lines) == 1
    assert re.fullmatch(rf'checkpoint {path}/9 is damaged \({reason}.*\); moved to {path}/damaged/9', lines[0]), lines
    assert contents_of(two_steps) == before
    assert checkpoint_steps(two_steps) == [7]
    assert best_step(two_steps) == 7
    assert restore_newest(two_steps, STATE, pytest.fail)[0] == 7
    save_checkpoint(two_steps, 9, NEWER, 0.4)
    assert restore_newest(two_steps, STATE, pytest.fail)[0] == 9
    assert os.path.lexists(two_steps / 'damaged' / '9')


@pytest.mark.skipif(os.geteuid() == 0, reason='root can read everything')
@pytest.mark.parametrize('find', [largest, manifest_of, lambda step: step / 'state'])
def test_unreadable_files_are_damage(two_steps, find):
    path = find(two_steps / '9')
    path.chmod(0)
    lines = []
    try:
        assert restore_newest(two_steps, STATE, lines.append)[0] == 7
        assert 'cannot be read: Permission denied' in lines[0]
    finally:
        (two_steps / 'damaged' / path.relative_to(two_steps)).chmod(0o700)


def test_a_disk_error_is_damage_but_too_many_open_files_is_not(two_steps, monkeypatch):
    def failing_with(number):
        def fail(path):
            if '/9/' in str(path):
                raise OSError(number, os.strerror(number))
            return crc32(path)

        return fail

    crc32 = checkpoint_files._crc32
    monkeypatch.setattr(checkpoint_files, '_crc32', failing_with(errno.EMFILE))
    with pytest.raises(StorageError, match=r'cannot read .*/9/state/.*: Too many open files'):
        restore_newest(two_steps, STATE, pytest.fail)
    assert checkpoint_steps(two_steps) == [7, 9]
    monkeypatch.setattr(checkpoint_files, '_crc32', failing_with(errno.EIO))
    lines = []
    assert restore_newest(two_steps, STATE, lines.append)[0] == 7
    assert re.search(r'\(state/\S+ cannot be read: Input/output error\)', lines[0])


def test_additional_files_are_ignored(two_steps):
    (two_steps / '9' / 'state' / 'garbage').write_bytes(b'abc')
    for name in ('9/notes', 'notes', '09', '-3', '1.5', '\u00b2', 'damaged'):
        (two_steps / name).mkdir()
    step, state = restore_newest(two_steps, STATE, pytest.fail)
    assert step == 9
    jax.tree.map(np.testing.assert_array_equal, state, NEWER)
    assert checkpoint_steps(two_steps) == [7, 9]


def test_a_linked_step_is_read_and_its_target_never_removed(two_steps, tmp_path):
    (two_steps / '9').rename(tmp_path / 'away')
    (two_steps / '9').symlink_to(tmp_path / 'away')
    assert restore_newest(two_steps, STATE, pytest.fail)[0] == 9
    save_checkpoint(two_steps, 11, STATE, 0.6)
    assert checkpoint_steps(two_steps) == [11]
    assert (tmp_path / 'away' / 'manifest.json').exists()


def test_without_intact_steps_nothing_is_restored(two_steps):
    for step in (7, 9):
        (two_steps / str(step) / 'manifest.json').write_text('{')
    before, lines = contents_of(two_steps), []
    assert restore_newest(two_steps, STATE, lines.append) is None
    assert [re.search(r'checkpoints/(\d+) is damaged', line)[1] for line in lines] == ['9', '7']
    assert contents_of(two_steps) == before
    assert checkpoint_steps(two_steps) == []
    assert restore_newest(two_steps / 'none', STATE, pytest.fail) is None


def test_damaged_steps_moved_away_earlier_are_kept(two_steps):
    for text in ('first', 'second', 'third'):
        (two_steps / '9' / 'manifest.json').write_text(text)
        restore_newest(two_steps, STATE, str)
        save_checkpoint(two_steps, 9, NEWER, 0.4)
    (two_steps / 'damaged' / '9-4').mkdir()  # an empty folder, which a plain rename would replace
    (two_steps / '9' / 'manifest.json').write_text('fifth')
    restore_newest(two_steps, STATE, str)
    found = {path.parent.name: path.read_text() for path in (two_steps / 'damaged').glob('*/manifest.json')}
    assert found == {'9': 'first', '9-2': 'second', '9-3': 'third', '9-5': 'fifth'}


def test_a_damaged_step_that_cannot_be_moved_is_ignored(two_steps):
    (two_steps / 'damaged').write_text('a file')
    (two_steps / '9' / 'manifest.json').write_text('{')
    before, lines = contents_of(two_steps), []
    assert restore_newest(two_steps, STATE, lines.append)[0] == 7
    assert re.search(r'\); ignored, but could not be moved to \S+/damaged: File exists$', lines[0])
    assert contents_of(two_steps) == before


def test_another_network_is_not_damage(two_steps):
    more = STATE | {'average': jnp.zeros(3)}
    with pytest.raises(
        InputError, match=r'/9 is of another network or optimizer: average is missing in the file, float32'
    ):
        restore_newest(two_steps, more, pytest.fail)
    assert checkpoint_steps(two_steps) == [7, 9]


def test_a_failed_rename_leaves_the_previous_step_of_that_name(folder, monkeypatch):
    def fail(path, target):
        if path.name == '7.partial':
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    rename = pathlib.Path.rename
    monkeypatch.setattr(pathlib.Path, 'rename', fail)
    with pytest.raises(StorageError, match=r'checkpoints/7: Input/output error; last intact step: 7$'):
        save_checkpoint(folder, 7, NEWER, None)
    monkeypatch.undo()
    assert os.listdir(folder) == ['7']
    jax.tree.map(np.testing.assert_array_equal, restore_newest(folder, STATE, pytest.fail)[1], STATE)


@pytest.mark.skipif(not pathlib.Path('/proc/self/fd').exists(), reason='needs /proc/self/fd')
def test_a_step_is_on_disk_before_it_is_renamed(folder, monkeypatch):
    """After a power failure, a rename may survive without the contents, unless they were synced before."""
    events = []
    sync, rename = os.fsync, pathlib.Path.rename
    monkeypatch.setattr(os, 'fsync', lambda file: (events.append(os.readlink(f'/proc/self/fd/{file}')), sync(file)))
    monkeypatch.setattr(pathlib.Path, 'rename', lambda *paths: (events.append(paths), rename(*paths))[1])
    monkeypatch.setattr(checkpoint, '_remove', lambda path: events.append(f'remove {path}'))
    save_checkpoint(folder, 9, STATE, 0.9)
    partial, final = folder / '9.partial', folder / '9'
    named = events.index((partial, final))
    inside = {str(partial / path.relative_to(final)) for path in final.rglob('*')}
    assert inside | {str(partial)} <= set(events[:named])
    assert events.index(str(folder), named) < events.index(f'remove {folder / "7"}')


LIMITED = """
import pathlib, resource, sys
import numpy as np
from resnet_jax import StorageError
from resnet_jax.checkpoints.checkpoint import save_checkpoint

folder = pathlib.Path(sys.argv[1])
state = {'w': np.random.default_rng(0).standard_normal(100_000).astype(np.float32)}
save_checkpoint(folder, 1, state, None)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for step in (2, 3):
    try:
        save_checkpoint(folder, step, state, None)
    except StorageError as error:
        print(error)
"""


def test_a_file_size_limit_leaves_the_earlier_steps(start, tmp_path):
    out, err = start(LIMITED, tmp_path / 'checkpoints').communicate(timeout=120)
    where = f'cannot write checkpoint {tmp_path}/checkpoints'
    assert out.splitlines() == [f'{where}/{n}: File too large; last intact step: 1' for n in (2, 3)]
    assert 'Traceback' not in err
    assert os.listdir(tmp_path / 'checkpoints') == ['1']
    like = {'w': jax.ShapeDtypeStruct((100_000,), np.float32)}
    assert restore_newest(tmp_path / 'checkpoints', like, pytest.fail)[0] == 1


def test_a_full_disk_leaves_the_earlier_steps(small_disk):
    """No run of several loses a step if the disk is too small for the second run."""
    state = {'w': np.random.default_rng(0).standard_normal(100_000).astype(np.float32)}
    folders = [small_disk / 'a', small_disk / 'b']
    save_checkpoints(1, [(folder, state, None) for folder in folders])
    (small_disk / 'filling').write_bytes(bytes(600_000))
    for _ in range(2):
        with pytest.raises(StorageError, match=r'/b/2: No space left on device; last intact step: 1$'):
            save_checkpoints(2, [(folder, state, None) for folder in folders])
        assert [os.listdir(folder) for folder in folders] == [['1'], ['1']]
        jax.tree.map(np.testing.assert_array_equal, restore_newest_of_all(folders, state, pytest.fail)[1], [state] * 2)
    with pytest.raises(StorageError, match=r'last intact step: none$'):
        save_checkpoint(small_disk / 'c', 1, {'w': np.concatenate([state['w']] * 9)}, None)
    save_checkpoint(folders[0], 2, state, None)
    assert checkpoint_steps(folders[0]) == [2]


MANY = """
import pathlib, sys
import numpy as np
from resnet_jax import StorageError
from resnet_jax.checkpoints.checkpoint import save_checkpoint

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)
state = {f'w{index}': rng.standard_normal(5000).astype(np.float32) for index in range(150)}
save_checkpoint(folder, 1, {name: array[:500] for name, array in state.items()}, None)
for step in (2, 3):
    try:
        save_checkpoint(folder, step, state, None)
    except StorageError as error:
        print(error)
    print(*sorted(path.name for path in folder.iterdir()))
"""


def test_a_full_disk_prints_nothing_but_the_error(start, small_disk):
    """Writes of other arrays are still running when the first one fails."""
    process = start(MANY, small_disk / 'checkpoints')
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, '')
    where = f'cannot write checkpoint {small_disk}/checkpoints'
    full = 'No space left on device; last intact step: 1'
    assert out.splitlines() == [f'{where}/2: {full}', '1', f'{where}/3: {full}', '1']


def test_the_folder_of_a_deleted_run_is_not_made_again(tmp_path):
    with pytest.raises(StorageError, match=r'cannot write checkpoint .*/run/checkpoints/1: No such file or directory'):
        save_checkpoint(tmp_path / 'run' / 'checkpoints', 1, STATE, None)
    assert not (tmp_path / 'run').exists()


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(StorageError, match=r'cannot write checkpoint .*/file/1: File exists; last .*: none$'):
        save_checkpoint(tmp_path / 'file', 1, STATE, None)


KILLED = """
import pathlib, sys
import numpy as np
from resnet_jax.checkpoints.writer import CheckpointWriter

folders = [pathlib.Path(sys.argv[1]) / name for name in ('a', 'b')]
folders[0].parent.mkdir()
writer = CheckpointWriter()
for step in range(1, 1000):
    state = {'w': np.random.default_rng(step).standard_normal(400_000).astype(np.float32)}
    writer.save(step, [(folder, state, 1 / step if step % 3 else step) for folder in folders])
    print(step, flush=True)
"""


def test_a_kill_while_writing_leaves_the_previous_step(start, tmp_path):
    like = {'w': jax.ShapeDtypeStruct((400_000,), np.float32)}
    rng = np.random.default_rng()
    processes = [start(KILLED, tmp_path / str(number)) for number in range(3)]
    for number, process in enumerate(processes):
        while int(process.stdout.readline()) < 2 + number:
            pass
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        rest = process.stdout.read().split()  # includes lines that readline had buffered
        process.wait()
        begun = int(rest[-1]) if rest else 2 + number
        folders = [tmp_path / str(number) / name for name in ('a', 'b')]
        step, states = restore_newest_of_all(folders, like, pytest.fail)
        assert begun - 1 <= step <= begun + 1  # the next one may have begun before it was printed
        expected = np.random.default_rng(step).standard_normal(400_000).astype(np.float32)
        for folder, state in zip(folders, states, strict=True):
            np.testing.assert_array_equal(state['w'], expected)
            assert all(checkpoint._is_intact(folder / str(other)) for other in checkpoint_steps(folder))
            remove_partial_checkpoints(folder)
            assert all(name.isdigit() for name in os.listdir(folder))
