"""The notebook, cell by cell, with settings that take less than a minute on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

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


def test_the_code_is_fetched_once(notebook, tmp_path, monkeypatch):
    source = next(''.join(cell['source']) for cell in notebook['cells'] if 'git' in ''.join(cell['source']))
    fetch = source[: source.index('root = ')]
    fetched = []

    def clone(command, check):
        fetched.append(command)
        (pathlib.Path.cwd() / 'resnet_jax_code' / 'resnet_jax').mkdir(parents=True)

    monkeypatch.setattr(subprocess, 'run', clone)
    for _ in range(2):  # a new session starts in the same folder as the first one
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            exec(fetch, {'REPOSITORY': 'there'})
            assert pathlib.Path.cwd() == tmp_path / 'resnet_jax_code'
    assert len(fetched) == 1


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
    try:
        for cell in notebook['cells']:
            if cell['cell_type'] != 'code':
                continue
            exec(''.join(cell['source']), names)
            if 'parameters' in cell['metadata'].get('tags', ()):
                assert small.keys() <= names.keys()
                names |= small
    finally:
        jax.config.update('jax_compilation_cache_dir', cache)
    assert names['tuned']['num_test_examples'] == 4
    assert os.path.exists(tmp_path / 'runs' / 'first' / 'report.png')
    assert capsys.readouterr().out
