"""Nothing requires what only some systems have: /proc, CPU affinity, glibc, syncable folders, array_record."""

import ast
import builtins
import ctypes
import ctypes.util
import io
import json
import os
import sys

import numpy as np
import pytest

from experiments import benchmark
from experiments.shared import environment, scripts, steps
from resnet_jax import InputError, load_dataset, make_spec
from resnet_jax.checkpoints import storage
from resnet_jax.checkpoints.files import MANIFEST
from resnet_jax.devices import usable_cores
from resnet_jax.tasks.kinds import TASKS
from tests.experiments.commands import ROOT, run

OURS = ('resnet_jax', 'experiments')
TINY = make_spec('basic', (1,), (8,), (1,), 'cifar', 8, 'A', num_classes=10)


def called_by_us():
    """Whether the project calls the patched function, directly or through pathlib.

    Other libraries see everything: for another system they come in another build.
    """
    frame = sys._getframe(2)
    while frame.f_globals['__name__'].split('.')[0] == 'pathlib':
        frame = frame.f_back
    return frame.f_globals['__name__'].split('.')[0] in OURS


@pytest.fixture
def bare(monkeypatch):
    """A system with less than any real one: nothing of Linux's own, and files as strict as those of Windows."""
    open_file, open_descriptor, stat, fsync, library = io.open, os.open, os.stat, os.fsync, ctypes.CDLL
    read_only = set()

    def without_proc(function):
        def call(path, *args, **kwargs):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith('/proc') and called_by_us():
                raise FileNotFoundError(2, 'no /proc here', path)
            return function(path, *args, **kwargs)

        return call

    def open_as_windows(path, flags, *args, **kwargs):
        if called_by_us() and os.path.isdir(path):
            raise PermissionError(13, 'Windows opens no folders', path)
        descriptor = open_descriptor(path, flags, *args, **kwargs)
        (read_only.discard if flags & os.O_RDWR else read_only.add)(descriptor)
        return descriptor

    def sync_as_windows(descriptor):
        if sys._getframe(1).f_code is storage.sync.__code__ and descriptor in read_only:
            raise OSError(9, 'Windows syncs only what may be written')
        fsync(descriptor)

    def library_without_libc(name, *args, **kwargs):
        if name is None or 'libc' in str(name):
            raise OSError('no glibc here')
        return library(name, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', without_proc(open_file))
    monkeypatch.setattr(io, 'open', without_proc(open_file))
    monkeypatch.setattr(os, 'stat', without_proc(stat))
    monkeypatch.setattr(os, 'open', open_as_windows)
    monkeypatch.setattr(os, 'fsync', sync_as_windows)
    monkeypatch.setattr(storage, '_IS_WINDOWS', True)
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'process_cpu_count', os.cpu_count, raising=False)  # Python 3.13's asks for the affinity
    monkeypatch.setattr(ctypes, 'CDLL', library_without_libc)
    monkeypatch.setattr(ctypes.util, 'find_library', lambda name: None)
    for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios', 'array_record'):
        monkeypatch.setitem(sys.modules, name, None)


class InProcess:
    """A contender of the benchmark in this process, where ``bare`` is in force."""

    def __init__(self, name, work, *arguments):
        self._answers = work(*arguments)
        self.prepared = next(self._answers)

    def ask(self, request):
        return self._answers.send(request)

    def close(self):
        self._answers.close()


def test_two_steps_on_digits(bare, monkeypatch, tmp_path):
    monkeypatch.setattr(scripts, 'get_spec', lambda name, **chosen: TINY)
    out, err = run(
        'resnet', '--epochs=1', '--batch_size=718', f'--workdir={tmp_path / "run"}', f'--data_dir={tmp_path / "data"}'
    )
    assert out.splitlines()[-1].endswith(f'on 360 examples; results in {tmp_path / "run"}')
    assert err == ''
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['steps'] == 2
    assert (tmp_path / 'run' / 'checkpoints' / '2' / MANIFEST).is_file()
    assert not (tmp_path / 'data').exists()  # digits are made in memory where files cannot be


def test_the_benchmark_prints_its_table(bare, monkeypatch):
    monkeypatch.setattr(benchmark, 'get_spec', lambda name, **chosen: TINY)
    monkeypatch.setattr(steps, 'get_spec', lambda name, **chosen: TINY)
    monkeypatch.setattr(benchmark, 'Contender', InProcess)
    out, _ = run('benchmark', '--mode=eval', '--batch_size=2', '--image_size=8', '--rounds=1', '--steps=1')
    assert out.split()[:5] == ['resnet20', 'eval', '2', 'x', '8²']
    assert 'images/s' in out


def test_the_memory_of_pytorch_is_left_out(bare, monkeypatch, capsys):
    torch = pytest.importorskip('torch')
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    monkeypatch.setattr('experiments.shared.baseline_networks.torch_network', lambda *_: network)
    monkeypatch.setattr(steps, 'get_spec', lambda name, **chosen: TINY)
    monkeypatch.setattr(benchmark, 'Contender', InProcess)
    case = steps.Case('resnet20', 'eval', 2, 8, 'float32', 'auto', False, None, None)
    result = benchmark.measure(case, ['torch'], rounds=1, steps=1)
    assert result['torch']['peak_memory_bytes'] is None
    benchmark.print_row(result)
    assert 'torch' in capsys.readouterr().out


def test_there_are_cores_and_no_vector_width(bare, monkeypatch):
    monkeypatch.delenv('XLA_FLAGS')
    assert usable_cores() == os.cpu_count()
    assert environment._vector_width() == {}


@pytest.mark.parametrize('task', TASKS)
def test_digits_without_array_record_are_the_same(task, monkeypatch, tmp_path):
    expected = load_dataset('digits', task=task, data_dir=str(tmp_path))
    monkeypatch.setitem(sys.modules, 'array_record', None)
    found = load_dataset('digits', task=task, data_dir=str(tmp_path / 'none'))
    assert not (tmp_path / 'none').exists()
    assert (found.class_names, found.mean, found.std) == (expected.class_names, expected.mean, expected.std)
    for split, like in ((found.train, expected.train), (found.test, expected.test)):
        np.testing.assert_array_equal(split.images, like.images)
        np.testing.assert_array_equal(split.labels, like.labels, strict=True)


def test_other_datasets_of_tfds_name_the_package_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'array_record', None)
    with pytest.raises(InputError, match=r"^preparing 'cifar10' needs the package array_record, .* without it$"):
        load_dataset('cifar10', data_dir=str(tmp_path))


def test_paths_of_windows_make_one_folder():
    assert scripts.as_file_name(r'folder:C:\Users\photographs') == 'folder_C__Users_photographs'


def test_a_stream_without_a_character_prints_its_code():
    stream = io.TextIOWrapper(io.BytesIO(), encoding='cp1251')
    scripts.print_any_character(stream)
    print('8²', file=stream, flush=True)
    assert stream.buffer.getvalue().split() == [rb'8\xb2']


def test_text_is_utf_8_whatever_the_system_prefers():
    for path in (path for name in OURS for path in sorted((ROOT / name).rglob('*.py'))):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            assert not opens_text(node) or 'encoding' in [keyword.arg for keyword in node.keywords], (path, node.lineno)


def opens_text(node):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ('read_text', 'write_text')
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'open':
        return not any(isinstance(value, ast.Constant) and 'b' in str(value.value) for value in node.args[1:])
    return False
