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
DOORS = ('block', 'optimizer', 'schedule', 'loss', 'task', 'augmentation', 'dataset')
# How each value is recorded; a dataset by the name that it has.
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
    """A function: the module that a program is, after it ran."""
    folder, modules = tmp_path_factory.mktemp('programs'), {}

    def run(door):
        if door not in modules:
            (folder / f'program_{door}.py').write_text(PROGRAMS[door].replace(*SMALL))
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.syspath_prepend(folder)
                modules[door] = importlib.import_module(f'program_{door}')
        return modules[door], folder / 'runs' / door

    yield run
    for door in modules:
        del sys.modules[f'program_{door}']


def test_every_door_has_its_program():
    assert tuple(PROGRAMS) == DOORS
    assert all(SMALL[0] in program for program in (*PROGRAMS.values(), NUMBERS))


@pytest.mark.parametrize('door', DOORS)
def test_what_is_given_as_a_value(door, ran, monkeypatch):
    """Trained for two steps, saved, resumed to the same result, evaluated, and loaded for predictions."""
    program, workdir = ran(door)
    result = program.result
    assert result['steps'] == 2
    assert np.isfinite(result['test_loss'])
    record = json.loads((workdir / 'config.json').read_text())
    assert RECORDED[door](record) == NAMES[door]
    assert checkpoint.checkpoint_steps(workdir / 'checkpoints') == [2]

    (workdir / 'result.json').unlink()
    monkeypatch.setattr(report, 'draw_report', lambda *_: None)  # it was drawn by the first
    options = {'dataset': program.dataset} if hasattr(program, 'dataset') else {}
    again = train_and_evaluate(program.spec, program.config, workdir, **options)
    assert again['test_loss'] == result['test_loss']

    images = (program.dataset if options else load_dataset('digits')).test.images
    found = program.predictor(images)
    outputs = 1 if door == 'task' else 2 if door == 'dataset' else 10
    assert found.shape == (len(images), outputs)
    assert np.isfinite(found).all()
    if door != 'task':
        accuracy = np.mean(found.argmax(1) == (program.dataset if options else load_dataset('digits')).test.labels)
        assert accuracy == pytest.approx(result['test_accuracy'])


@pytest.mark.parametrize('door', [door for door in DOORS if door not in ('block', 'task', 'dataset')])
def test_a_run_goes_on_with_the_same_value_alone(door, ran):
    program, workdir = ran(door)
    before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    setting = {'augmentation': 'function'}.get(door, door)
    others = {'optimizer': 'adam', 'schedule': 'cosine', 'loss': None, 'augmentation': None}
    config = program.config.replace(**{'views': 1} if door == 'loss' else {})
    config = config.replace(**{setting: others[door]})
    name = re.escape(NAMES[door])
    with pytest.raises(InputError, match=f'{setting}=.{name}. there, ') as error:
        train_and_evaluate(program.spec, config, workdir)
    assert '\n' not in str(error.value)
    assert {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before


def test_a_network_is_loaded_with_its_own_block_and_task(ran):
    _, with_block = ran('block')
    _, with_task = ran('task')
    for load in (load_predictor, load_variables):
        with pytest.raises(
            InputError, match='was trained with block program_block:ScaledBlock: give block=ScaledBlock'
        ):
            load(with_block)
        with pytest.raises(InputError, match=r'was trained with block program_block:ScaledBlock, not with .*Other'):
            load(with_block, block=type('Other', (ran('block')[0].ScaledBlock,), {}))
    with pytest.raises(InputError, match='was trained with task program_task:Counts: give task=Counts'):
        load_predictor(with_task)
    with pytest.raises(InputError, match='was trained with task program_task:Counts, not with multiclass'):
        load_predictor(with_task, task='multiclass')


def test_a_block_of_ones_own_decays_by_role_and_learns(ran):
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
