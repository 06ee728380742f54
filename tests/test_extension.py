"""Extension points, used from outside the package: every program of docs/extend.md is run, resumed and loaded."""

import importlib
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from resnet_jax import InputError, load_dataset, load_predictor, load_variables, train_and_evaluate
from resnet_jax.checkpoints import checkpoint
from resnet_jax.training import report

EXTEND = pathlib.Path(__file__).parent.parent / 'docs' / 'extend.md'
TEXT = EXTEND.read_text()
PROGRAMS = dict(re.findall(r'^## An? (\w+)\n.*?```python\n(.*?)```', TEXT, re.M | re.S))
NUMBERS = re.findall(r'^## Experiment trackers.*?```python\n(.*?)```', TEXT, re.M | re.S)[0]
# One block is enough, and compiles in a third of the time.
SMALL = ('stage_sizes=(1, 1, 1)', 'stage_sizes=(1,), widths=(16,), strides=(1,)')
KINDS = ('block', 'optimizer', 'schedule', 'loss', 'task', 'augmentation', 'dataset')
# Where each object is recorded; a dataset by its own name.
RECORDED = {
    'block': lambda record: record['spec']['stages'][0]['block'],
    'optimizer': lambda record: record['config']['optimizer']['name'],
    'schedule': lambda record: record['config']['schedule']['name'],
    'loss': lambda record: record['config']['objective']['loss'],
    'task': lambda record: record['config']['objective']['task'],
    'augmentation': lambda record: record['config']['augmentation']['function'],
    'dataset': lambda record: record['config']['data']['dataset'],
}
NAMES = {
    'block': 'program_block:ScaledBlock',
    'optimizer': 'optax._src.alias:adamw(b2=0.95, weight_decay=0.05)',
    'schedule': 'program_schedule:inverse_square_root',
    'loss': 'program_loss:contrast',
    'task': 'program_task:Counts',
    'augmentation': 'program_augmentation:noise',
    'dataset': 'stripes',
}


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """Returns a function that runs a program and returns its module and its workdir."""
    folder, modules = tmp_path_factory.mktemp('programs'), {}

    def run(kind):
        if kind not in modules:
            (folder / f'program_{kind}.py').write_text(PROGRAMS[kind].replace(*SMALL))
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.syspath_prepend(folder)
                modules[kind] = importlib.import_module(f'program_{kind}')
        return modules[kind], folder / 'runs' / kind

    yield run
    for kind in modules:
        del sys.modules[f'program_{kind}']


def test_every_extension_point_has_a_program():
    assert tuple(PROGRAMS) == KINDS
    assert all(SMALL[0] in program for program in (*PROGRAMS.values(), NUMBERS))


@pytest.mark.parametrize('kind', KINDS)
def test_a_user_supplied_object(kind, ran, monkeypatch):
    """Trained for two steps, saved, resumed to the same result, evaluated, and loaded for predictions."""
    program, workdir = ran(kind)
    result = program.result
    assert result['steps'] == 2
    assert np.isfinite(result['test_loss'])
    record = json.loads((workdir / 'config.json').read_text())
    assert RECORDED[kind](record) == NAMES[kind]
    assert checkpoint.checkpoint_steps(workdir / 'checkpoints') == [2]

    (workdir / 'result.json').unlink()
    monkeypatch.setattr(report, 'draw_report', lambda *_: None)  # already drawn by the first run
    options = {'dataset': program.dataset} if hasattr(program, 'dataset') else {}
    again = train_and_evaluate(program.spec, program.config, workdir, **options)
    assert again['test_loss'] == result['test_loss']

    images = (program.dataset if options else load_dataset('digits')).test.images
    found = program.predictor(images)
    outputs = 1 if kind == 'task' else 2 if kind == 'dataset' else 10
    assert found.shape == (len(images), outputs)
    assert np.isfinite(found).all()
    if kind != 'task':
        accuracy = np.mean(found.argmax(1) == (program.dataset if options else load_dataset('digits')).test.labels)
        assert accuracy == pytest.approx(result['test_accuracy'])


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind not in ('block', 'task', 'dataset')])
def test_a_run_resumes_only_with_the_same_object(kind, ran):
    program, workdir = ran(kind)
    before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    setting = {'augmentation': 'function'}.get(kind, kind)
    others = {'optimizer': 'adam', 'schedule': 'cosine', 'loss': None, 'augmentation': None}
    config = program.config.replace(**{'views': 1} if kind == 'loss' else {})
    config = config.replace(**{setting: others[kind]})
    name = re.escape(NAMES[kind])
    with pytest.raises(InputError, match=f'{setting}=.{name}. before, ') as error:
        train_and_evaluate(program.spec, config, workdir)
    assert '\n' not in str(error.value)
    assert {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before


def test_loading_a_network_needs_its_block_and_task(ran):
    _, with_block = ran('block')
    _, with_task = ran('task')
    for load in (load_predictor, load_variables):
        with pytest.raises(
            InputError, match='was trained with block program_block:ScaledBlock: pass block=ScaledBlock'
        ):
            load(with_block)
        with pytest.raises(InputError, match=r'was trained with block program_block:ScaledBlock, not with .*Other'):
            load(with_block, block=type('Other', (ran('block')[0].ScaledBlock,), {}))
    with pytest.raises(InputError, match='was trained with task program_task:Counts: pass task=Counts'):
        load_predictor(with_task)
    with pytest.raises(InputError, match='was trained with task program_task:Counts, not with multiclass'):
        load_predictor(with_task, task='multiclass')


def test_a_user_supplied_block_is_trained(ran):
    program, workdir = ran('block')
    gains = load_variables(workdir, block=program.ScaledBlock)['params']['stage1_block1']['gain']
    assert gains.shape == (16,)
    assert not np.allclose(gains, 0.5)


def test_sinks_and_hooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {'__name__': 'numbers'}
    exec(NUMBERS.replace(*SMALL), names)
    assert {record['split'] for record in names['records']} == {'train', 'test'}
    (tested,) = (record for record in names['records'] if record['split'] == 'test')
    assert tested['weight_norm'] > 0
    assert tested['seed'] == names['config'].seed
