"""Runs that are extended, and resumptions under other settings, versions or data."""

import json
import os
import re

import numpy as np
import pytest

from resnet_jax import InputError, Interrupted, TrainConfig, get_config, make_spec, train_and_evaluate
from resnet_jax.training import claims
from resnet_jax.training.log import Log

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
CONFIG = TrainConfig().replace(dataset='shades', epochs=2, batch_size=8, learning_rate=0.05, log_every_steps=2)
LONGER = CONFIG.replace(epochs=4)
EPOCH_STEPS = 4


@pytest.fixture(scope='module')
def shades(make_shades):
    return make_shades(37)


@pytest.fixture(scope='module')
def template(shades, tmp_path_factory):
    """A finished run of two epochs that tests must copy."""
    workdir = tmp_path_factory.mktemp('runs') / 'short'
    return workdir, train_and_evaluate(SPEC, CONFIG, workdir, dataset=shades)


@pytest.fixture
def short(template, tmp_path):
    """A copy of the finished run."""
    import shutil

    return shutil.copytree(template[0], tmp_path / 'short')


def record_of(workdir):
    return json.loads((workdir / 'config.json').read_text())


def records_of(workdir, split):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [record for record in map(json.loads, lines) if record['split'] == split]


def change_record(workdir, change):
    record = record_of(workdir)
    change(record)
    (workdir / 'config.json').write_text(json.dumps(record))
    (workdir / 'result.json').unlink()


def cosine(step, epochs):
    return 0.05 * (1 + np.cos(np.pi * step / (epochs * EPOCH_STEPS))) / 2


def test_a_finished_run_is_extended_on_the_longer_schedule(short, template, shades, capsys):
    result = train_and_evaluate(SPEC, LONGER, short, dataset=shades, extend=True)
    assert (result['epochs'], result['steps']) == (4, 16)
    assert json.loads((short / 'result.json').read_text()) == result
    out = capsys.readouterr().out
    assert f'extending {short} from 2 to 4 epochs after step 8' in out
    assert f'the learning rate was {cosine(7, 2):.3g} and continues at {cosine(8, 4):.3g}' in out
    rates = {record['step']: record['learning_rate'] for record in records_of(short, 'train')}
    expected = {step: cosine(step - 1, 2 if step <= 8 else 4) for step in range(2, 17, 2)}
    assert rates == pytest.approx(expected, rel=1e-5)
    assert [record['epoch'] for record in records_of(short, 'test')] == [1, 2, 3, 4]
    record = record_of(short)
    assert record['config']['epochs'] == 4
    (entry,) = record['extensions']
    assert (entry['from_step'], entry['from_epochs'], entry['to_epochs']) == (8, 2, 4)
    assert entry['config_before'] == record_of(template[0])['config']
    assert entry['result_before'] == template[1]
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', entry['time'])


def test_the_steps_of_an_extension_are_those_of_the_longer_run(short, template, shades, tmp_path, monkeypatch):
    """Same examples and draws: from the same state, the third epoch is that of a run of four epochs."""
    whole = tmp_path / 'whole'
    train_and_evaluate(SPEC, LONGER.replace(learning_rate=1e-20), whole, dataset=shades)
    frozen = tmp_path / 'frozen'
    train_and_evaluate(SPEC, CONFIG.replace(learning_rate=1e-20), frozen, dataset=shades)
    train_and_evaluate(SPEC, LONGER.replace(learning_rate=1e-20), frozen, dataset=shades, extend=True)
    assert [r['loss'] for r in records_of(whole, 'train')] == [r['loss'] for r in records_of(frozen, 'train')]


def test_an_interrupted_extension_keeps_the_old_result_and_resumes(
    short, template, shades, tmp_path, monkeypatch, capsys
):
    whole = tmp_path / 'whole'
    import shutil

    shutil.copytree(template[0], whole)
    expected = train_and_evaluate(SPEC, LONGER, whole, dataset=shades, extend=True)
    plain = Log.step

    def interrupt(self, step, *args):
        plain(self, step, *args)
        if step == 11:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(Log, 'step', interrupt)
    with pytest.raises(Interrupted):
        train_and_evaluate(SPEC, LONGER, short, dataset=shades, extend=True)
    monkeypatch.undo()
    assert json.loads((short / 'result.json').read_text()) == template[1]
    assert record_of(short)['extensions'][0]['result_before'] == template[1]
    result = train_and_evaluate(SPEC, LONGER, short, dataset=shades, extend=True)
    assert f'resuming {short} after step 11\n' in capsys.readouterr().out
    assert result['test_loss'] == expected['test_loss']
    assert len(record_of(short)['extensions']) == 1
    for extend in (False, True):
        assert train_and_evaluate(SPEC, LONGER, short, dataset=shades, extend=extend) == result
        assert f'{short} is already finished' in capsys.readouterr().out
    with pytest.raises(InputError, match='epochs=4 before, 2 now'):
        train_and_evaluate(SPEC, CONFIG, short, dataset=shades)
    with pytest.raises(InputError, match='epochs=4 before, 3 now'):
        train_and_evaluate(SPEC, CONFIG.replace(epochs=3), short, dataset=shades, extend=True)
    again = train_and_evaluate(SPEC, CONFIG.replace(epochs=5), short, dataset=shades, extend=True)
    assert again['epochs'] == 5
    extensions = record_of(short)['extensions']
    assert [(one['from_epochs'], one['to_epochs'], one['from_step']) for one in extensions] == [(2, 4, 8), (4, 5, 16)]
    assert extensions[1]['result_before'] == result


def test_without_extend_the_refusal_names_the_way(short, shades, tmp_path):
    before = {path: path.read_bytes() for path in short.rglob('*') if path.is_file()}
    with pytest.raises(InputError) as error:
        train_and_evaluate(SPEC, LONGER, short, dataset=shades)
    assert str(error.value) == (
        f'workdir={short} finished after 2 epochs; add --extend to train it to 4 (extend=True in Python), or choose'
        ' another --workdir'
    )
    for config, message in (
        (CONFIG, f'extend: workdir={short} has epochs=2 already; set epochs to more'),
        (
            LONGER.replace(learning_rate=0.1),
            'holds a run of another configuration: epochs=2 before, 4 now; learning_ra',
        ),
        (LONGER.replace(warmup_epochs=1), 'another configuration: epochs=2 before, 4 now; warmup_epochs absent before'),
        (CONFIG.replace(epochs=1), 'epochs=2 before, 1 now'),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            train_and_evaluate(SPEC, config, short, dataset=shades, extend=True)
    assert {path: path.read_bytes() for path in short.rglob('*') if path.is_file()} == before
    with pytest.raises(InputError, match=f'extend: workdir={tmp_path / "new"} holds no run yet'):
        train_and_evaluate(SPEC, CONFIG, tmp_path / 'new', dataset=shades, extend=True)
    assert not (tmp_path / 'new').exists()


def test_an_unfinished_run_is_extended_from_its_last_checkpoint(shades, tmp_path, monkeypatch):
    plain = Log.step

    def kill(self, step, *args):
        plain(self, step, *args)
        if step == 6:
            raise SystemError('killed')

    monkeypatch.setattr(Log, 'step', kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, dataset=shades)
    monkeypatch.undo()
    with pytest.raises(InputError, match='is not finished; add --extend to train it to 4'):
        train_and_evaluate(SPEC, LONGER, tmp_path, dataset=shades)
    assert train_and_evaluate(SPEC, LONGER, tmp_path, dataset=shades, extend=True)['epochs'] == 4
    (entry,) = record_of(tmp_path)['extensions']
    assert (entry['from_step'], entry['result_before']) == (4, None)
    rates = {record['step']: record['learning_rate'] for record in records_of(tmp_path, 'train')}
    assert rates[6] == pytest.approx(cosine(5, 4), rel=1e-5)


def test_several_seeds_are_extended(shades, tmp_path):
    train_and_evaluate(SPEC, CONFIG, tmp_path, dataset=shades, num_seeds=2)
    with pytest.raises(InputError, match='seed0 finished after 2 epochs; add --extend to train it to 3'):
        train_and_evaluate(SPEC, CONFIG.replace(epochs=3), tmp_path, dataset=shades, num_seeds=2)
    result = train_and_evaluate(SPEC, CONFIG.replace(epochs=3), tmp_path, dataset=shades, num_seeds=3, extend=True)
    assert [one['epochs'] for one in result['runs']] == [3, 3, 3]
    found = [record_of(tmp_path / f'seed{seed}') for seed in range(3)]
    assert [one['config']['seed'] for one in found] == [0, 1, 2]
    assert [len(one.get('extensions', ())) for one in found] == [1, 1, 0]


@pytest.mark.parametrize('recipe', ['cifar_fast', 'cifar_sgd', 'torchvision_v2', 'a1', 'wide_resnet'])
def test_settings_that_recipes_scale_with_the_epochs_may_differ(recipe):
    if recipe not in claims.TrainConfig.__dict__ and recipe not in __import__('resnet_jax').training.recipes.RECIPES:
        pytest.skip('no such recipe')
    old, new = get_config(recipe, epochs=40), get_config(recipe, epochs=50)
    record = {'spec': {}, 'config': old.to_json()}
    record = json.loads(json.dumps(record))
    assert claims._epochs(record, {'spec': {}, 'config': new.to_json()}, ()) == (40, 50)
    assert claims._epochs(record, {'spec': {}, 'config': new.replace(batch_size=64).to_json()}, ()) is None
