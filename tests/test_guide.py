"""Commands, flags, links and Python of the README, the guide and the list of commands, in English and Turkish."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from resnet_jax import RECIPES, TrainConfig, list_models
from resnet_jax.settings import all_settings

TRANSLATED = [
    ('README.md', 'README.tr.md'),
    ('docs/guide.md', 'docs/guide.tr.md'),
    ('docs/commands.md', 'docs/commands.tr.md'),
]
DOCUMENTS = [document for pair in TRANSLATED for document in pair]
# What makes a command short; a script takes the last of two equal flags.
BRIEF = {
    'resnet': ['--epochs=1'],
    'preact_resnet': ['--epochs=1'],
    'tasks': ['--epochs=1', '--num_seeds=1'],
    'transfer': ['--epochs=1', '--pretraining_epochs=1', '--num_seeds=1'],
    'degradation': ['--epochs=1', '--num_seeds=1', '--warmup_epochs=0', '--depths=20', '--train_examples=140'],
    'cardinality': ['--epochs=5', '--num_seeds=1', '--stage_sizes=1'],
    'residual_block': ['--depth=20'],
}


def text_of(root, document):
    return (root / document).read_text(encoding='utf-8')


def blocks_of(text, language='python'):
    return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def is_flag(name, scripts):
    """Whether a flag belongs to a setting that has a flag, or is defined by a script."""
    settings = all_settings(TrainConfig).keys() - {'function', 'views'}
    return name in settings or f"'{name}'" in scripts or f"'--{name}'" in scripts


def commands_of(text):
    return re.findall(r'^    (python -m experiments\..*)$', text, re.MULTILINE)


@pytest.mark.slow
def test_the_guide_runs_from_the_first_block_to_the_last(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes files
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        for block in blocks_of(text_of(root, 'docs/guide.md')):
            exec(block, names)
    printed = out.getvalue()
    assert '(1437, 8, 8, 1)' in printed
    assert 'train.npz: task=binary expects labels 0 and 1, found 2' in printed
    assert '269434\n' in printed  # parameters for 8 x 8 images with one channel, in ten classes
    assert names['result']['epochs'] == 2
    np.testing.assert_array_equal(names['mine'].train.images, names['digits'].train.images)
    for name, leaf in names['again']['params']['head'].items():
        np.testing.assert_array_equal(leaf, names['trained']['params']['head'][name])
    assert names['outputs'].shape == (1, 28, 28, 128)
    assert names['maps']['stage4'].shape == (1, 4, 4, 2048)


@pytest.mark.filterwarnings('ignore:.*pmap.*:DeprecationWarning')
def test_networks_work_in_your_programs(root):
    """Each way to compute a loss gives the loss of one device."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks_of(text_of(root, 'docs/your-programs.md')):
            exec(block, names)
    for name in ('loss_on_mesh', 'loss_of_shards', 'loss_of_parts', 'losses', 'loss_in_nnx'):
        np.testing.assert_allclose(names[name], names['loss'], rtol=1e-5, err_msg=name)
    sums = names['sums']
    np.testing.assert_allclose(sums['loss'] / sums['count'], names['loss'], rtol=1e-5)
    for name in ('stats', 'grads'):
        found, expected = (jax.tree.leaves(names[key]) for key in (f'{name}_of_parts', name))
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    assert names['logits'].shape == (3, 8, 10)
    assert names['tangents'].shape == (8, 10)


@pytest.mark.parametrize(('english', 'turkish'), TRANSLATED)
def test_both_languages_say_the_same(root, english, turkish):
    one, other = text_of(root, english), text_of(root, turkish)
    assert blocks_of(one) == blocks_of(other)
    assert commands_of(one) == commands_of(other)
    assert re.findall(r'^(#+) ', one, re.MULTILINE) == re.findall(r'^(#+) ', other, re.MULTILINE)
    assert re.findall(r'[("](\S+\.png)[)"]', one) == re.findall(r'[("](\S+\.png)[)"]', other)
    # Turkish has a decimal comma.
    texts = one, re.sub(r'(?<=\d),(?=\d)', '.', other)
    rows = [re.findall(r'(?<![\d.])(?:0\.\d+|\d+\.\d\d)(?!\d)', text) for text in texts]
    assert rows[0] == rows[1]


@pytest.mark.parametrize('document', DOCUMENTS)
def test_commands_flags_and_links_exist(root, document):
    text = text_of(root, document)
    shared = ''.join(path.read_text() for path in (root / 'experiments' / 'shared').glob('*.py'))
    for command in commands_of(text):
        _, _, module, *flags = shlex.split(command.split('  ')[0].replace('…', ''))
        script = (root / (module.replace('.', '/') + '.py')).read_text()
        for flag in flags:
            name = re.fullmatch(r'--(\w+)(=.*)?', flag)
            assert name, command
            assert is_flag(name[1], script + shared), command
    for name in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert ((root / document).parent / name).exists(), name


@pytest.mark.parametrize('document', ['docs/training.md', 'docs/recipes.md', 'docs/commands.md'])
def test_flags_and_names_in_tables_exist(root, document):
    text = text_of(root, document)
    files = [*(root / 'experiments').rglob('*.py'), root / 'tests' / 'training' / 'kill_harness.py']
    scripts = ''.join(path.read_text() for path in files)
    for name in set(re.findall(r'--(\w+)', text)):
        assert is_flag(name, scripts), name
    for recipe in re.findall(r'--recipe=(\w+)', text):
        assert recipe in (*RECIPES, 'NAME'), recipe
    for script, arch in re.findall(r'experiments\.(\w+) --arch=(\w+)', text):
        assert arch in list_models(), arch
        assert (root / 'experiments' / f'{script}.py').exists(), script


# In commands that need a file or a repository that does not exist here.
ELSEWHERE = ('…', 'resnet20.th', 'hf:')


@pytest.mark.slow
@pytest.mark.parametrize('document', ['README.md', 'docs/guide.md'])
def test_commands_run_in_order(root, document, tmp_path, rng):
    (tmp_path / 'DIR').mkdir()
    for name in ('train', 'test'):
        images = rng.integers(0, 256, (150, 32, 32, 3), np.uint8)
        np.savez(tmp_path / 'DIR' / f'{name}.npz', images=images, labels=np.arange(150) % 10)
    environment = os.environ | {'PYTHONPATH': str(root)}
    for command in commands_of(text_of(root, document)):
        if any(word in command for word in ELSEWHERE):
            continue
        _, _, module, *flags = shlex.split(command)
        brief = BRIEF.get(module.removeprefix('experiments.'), [])
        arguments = [sys.executable, '-m', module, *flags, *brief]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f'{command}\n{done.stderr}'
    if document == 'docs/guide.md':
        assert (tmp_path / 'resnet20-digits.safetensors').exists()
        scores = tmp_path / 'runs' / 'resnet20-digits-seed0' / 'evaluation-digits-test-last'
        assert (scores / 'predictions.csv').exists()
