"""The notebook, cell by cell, with settings that take less than a minute on a CPU."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types
from importlib import metadata

import jax
import numpy as np
import pytest
from PIL import Image

SMALL = {'ARCH': 'resnet20', 'EPOCHS': 1, 'TUNING_EPOCHS': 1}


@pytest.fixture
def notebook(root):
    return json.loads((root / 'experiments' / 'colab_tpu.ipynb').read_text(encoding='utf-8'))


def test_no_output_is_stored(notebook):
    for cell in notebook['cells']:
        assert cell['cell_type'] in ('markdown', 'code')
        assert not cell.get('outputs')
        assert cell.get('execution_count') is None


def cell_with(notebook, text):
    """The code of the first cell that contains a text."""
    return next(code for cell in notebook['cells'] if text in (code := ''.join(cell['source'])))


@pytest.fixture
def install(notebook, tmp_path, monkeypatch):
    """Runs the cell that finds and installs the code, in an empty folder; returns the commands that it runs."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    commands = []

    def pretend(command, **options):
        commands.append(command)
        if command[0] == 'git':
            package = pathlib.Path.cwd() / 'resnet_jax_code' / 'resnet_jax'
            package.mkdir(parents=True)
            (package / '__init__.py').touch()
        return subprocess.CompletedProcess(command, 0, '', '')

    def run(repository='', where=tmp_path):
        monkeypatch.chdir(where)
        exec(cell_with(notebook, 'git'), {'REPOSITORY': repository})
        return commands

    monkeypatch.setattr(subprocess, 'run', pretend)
    return run


def test_the_code_is_fetched_once(install, tmp_path):
    for _ in range(2):  # a new session starts in the same folder as the first one
        commands = install('https://there')
        assert pathlib.Path.cwd() == tmp_path / 'resnet_jax_code'
    assert commands == [('git', 'clone', '--depth=1', 'https://there', 'resnet_jax_code')]
    install('https://there', tmp_path / 'resnet_jax_code')  # the cell again, in the same session
    assert (len(commands), pathlib.Path.cwd()) == (1, tmp_path / 'resnet_jax_code')


def test_nothing_is_fetched_within_a_clone_or_for_a_folder(install, root, tmp_path):
    assert install(where=root / 'experiments') == []
    assert pathlib.Path.cwd() == root
    assert install(str(root), where=tmp_path) == []
    assert pathlib.Path.cwd() == root


def test_a_missing_repository_is_one_line(install, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match=r'^resnet_jax is not here: set REPOSITORY in the first cell') as raised:
        install()
    assert '\n' not in raised.value.code
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())  # the package is installed
    assert install() == []


def test_a_failed_command_is_one_line(install, monkeypatch):
    failed = subprocess.CompletedProcess((), 128, '', "Cloning into 'x'...\nfatal: repository 'there' does not exist\n")
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"^git clone .* resnet_jax_code: fatal: repository 'there' does not exist$"):
        install('there')


def test_pip_keeps_the_installed_jax_however_it_was_installed(install, root, monkeypatch):
    """The versions come from the installed packages: lines of ``pip freeze`` such as ``jax @ file:…`` have none."""
    versions = {'jax': '0.7.2', 'jaxlib': '0.7.2+cu121', 'jax_cuda12-plugin': '0.7.2', 'NumPy': '2.3.0', 'flax': '0.11'}
    packages = [types.SimpleNamespace(name=name) for name in (*versions, None)]
    monkeypatch.setattr(metadata, 'distributions', lambda: packages)
    plain = {name.lower().replace('_', '-'): version for name, version in versions.items()}
    monkeypatch.setattr(metadata, 'version', plain.__getitem__)
    monkeypatch.setenv('COLAB_RELEASE_TAG', 'x')
    (command,) = install(where=root)
    assert command[1:] == ('-m', 'pip', 'install', '-q', '-c', '/tmp/kept.txt', '-r', 'requirements.txt')
    lines = pathlib.Path('/tmp/kept.txt').read_text().splitlines()
    assert lines == ['jax==0.7.2', 'jax-cuda12-plugin==0.7.2', 'jaxlib==0.7.2+cu121', 'numpy==2.3.0']


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:a new head for 2 classes')
def test_every_cell_runs(root, notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    arrays, photographs = tmp_path / 'arrays', tmp_path / 'photographs'
    arrays.mkdir()
    random = np.random.default_rng(0)
    for split, size in (('train', 256), ('test', 20)):
        images = random.integers(0, 256, (size, 16, 16, 3), np.uint8)
        np.savez(arrays / f'{split}.npz', images=images, labels=np.arange(size) % 10)
    for index in range(20):
        path = photographs / 'ab'[index % 2] / f'{index}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    small = SMALL | {'DATASET': f'arrays:{arrays}', 'WORK': str(tmp_path / 'runs'), 'PHOTOGRAPHS': str(photographs)}
    pytest.importorskip('IPython')
    names: dict = {}
    cache = jax.config.jax_compilation_cache_dir

    def run_cells(settings):
        for cell in notebook['cells']:
            if cell['cell_type'] != 'code':
                continue
            exec(''.join(cell['source']), names)
            if 'parameters' in cell['metadata'].get('tags', ()):
                assert settings.keys() <= names.keys()
                names.update(settings)
        return names['first'], names['second'], names['result'], names['tuned']

    try:
        *folders, result, tuned = run_cells(small)
        assert tuned['num_test_examples'] == 4
        assert capsys.readouterr().out
        assert run_cells(small) == (*folders, result, tuned)  # finished runs return their results
        *changed, longer, _ = run_cells(small | {'EPOCHS': 2})
    finally:
        jax.config.update('jax_compilation_cache_dir', cache)
    assert longer['epochs'] == 2
    assert len({*folders, *changed}) == 4
    for folder in (*folders, *changed):
        assert (folder / 'report.png').exists()
