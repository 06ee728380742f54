"""Runs that are extended, and resumptions under other settings, versions or data."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

from resnet_jax import InputError, Interrupted, TrainConfig, get_config, make_spec, train_and_evaluate
from resnet_jax.data.examples import Split
from resnet_jax.training import claims
from tests.training.runs import after_step, kill

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
CONFIG = TrainConfig().replace(dataset='shades', epochs=2, batch_size=8, learning_rate=0.05, log_every_steps=2)
LONGER = CONFIG.replace(epochs=4)
EPOCH_STEPS = 4


@pytest.fixture(scope='module')
def shades(make_shades):
    return make_shades(37)


@pytest.fixture(scope='module')
def template(shades, tmp_path_factory):
    """A finished run of two epochs: its folder, which tests must not change, and its result."""
    workdir = tmp_path_factory.mktemp('runs') / 'short'
    return workdir, train_and_evaluate(SPEC, CONFIG, workdir, dataset=shades)


@pytest.fixture
def short(template, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(template[0], tmp_path / 'short')


@pytest.fixture(scope='module')
def extended(template, shades, tmp_path_factory):
    """A run that was extended to four epochs: its folder, which tests must not change, its result and output."""
    workdir, output = tmp_path_factory.mktemp('runs') / 'longer', io.StringIO()
    shutil.copytree(template[0], workdir)
    with contextlib.redirect_stdout(output):
        result = train_and_evaluate(SPEC, LONGER, workdir, dataset=shades, extend=True)
    return workdir, result, output.getvalue()


def record_of(workdir):
    return json.loads((workdir / 'config.json').read_text())


def records_of(workdir, split):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [record for record in map(json.loads, lines) if record['split'] == split]


def contents(workdir):
    return {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def cosine(step, epochs):
    return 0.05 * (1 + np.cos(np.pi * step / (epochs * EPOCH_STEPS))) / 2


def test_a_finished_run_is_extended_on_the_longer_schedule(template, extended):
    workdir, result, output = extended
    assert (result['epochs'], result['steps']) == (4, 16)
    assert json.loads((workdir / 'result.json').read_text()) == result
    assert f'extending {workdir} from 2 to 4 epochs after step 8' in output
    assert f'the learning rate was {cosine(7, 2):.3g} and continues at {cosine(8, 4):.3g}' in output
    rates = {record['step']: record['learning_rate'] for record in records_of(workdir, 'train')}
    expected = {step: cosine(step - 1, 2 if step <= 8 else 4) for step in range(2, 17, 2)}
    assert rates == pytest.approx(expected, rel=1e-5)
    assert [record['epoch'] for record in records_of(workdir, 'test')] == [1, 2, 3, 4]
    record = record_of(workdir)
    assert record['config']['epochs'] == 4
    (entry,) = record['extensions']
    assert (entry['from_step'], entry['from_epochs'], entry['to_epochs']) == (8, 2, 4)
    assert entry['config_before'] == record_of(template[0])['config']
    assert entry['result_before'] == template[1]
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', entry['time'])


def test_an_interrupted_extension_keeps_the_result_and_resumes(short, template, extended, shades, monkeypatch, capsys):
    after_step(monkeypatch, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train_and_evaluate(SPEC, LONGER, short, dataset=shades, extend=True)
    monkeypatch.undo()
    assert json.loads((short / 'result.json').read_text()) == template[1]
    assert record_of(short)['extensions'][0]['result_before'] == template[1]
    with pytest.raises(InputError, match='has not finished its 4 epochs; add --extend to train it to 5'):
        train_and_evaluate(SPEC, CONFIG.replace(epochs=5), short, dataset=shades)
    result = train_and_evaluate(SPEC, LONGER, short, dataset=shades, extend=True)
    assert f'resuming {short} after step 11\n' in capsys.readouterr().out
    assert result['test_loss'] == extended[1]['test_loss']
    assert len(record_of(short)['extensions']) == 1


def test_an_extended_run_can_be_shown_and_extended_again(extended, shades, tmp_path, capsys):
    workdir, result, _ = extended
    for extend in (False, True):
        assert train_and_evaluate(SPEC, LONGER, workdir, dataset=shades, extend=extend) == result
        assert f'{workdir} is already finished' in capsys.readouterr().out
    with pytest.raises(InputError, match='epochs=4 before, 2 now'):
        train_and_evaluate(SPEC, CONFIG, workdir, dataset=shades)
    with pytest.raises(InputError, match='has epochs=4; set epochs to more'):
        train_and_evaluate(SPEC, CONFIG.replace(epochs=3), workdir, dataset=shades, extend=True)
    again = shutil.copytree(workdir, tmp_path / 'again')
    assert train_and_evaluate(SPEC, CONFIG.replace(epochs=5), again, dataset=shades, extend=True)['epochs'] == 5
    extensions = record_of(again)['extensions']
    assert [(one['from_epochs'], one['to_epochs'], one['from_step']) for one in extensions] == [(2, 4, 8), (4, 5, 16)]
    assert extensions[1]['result_before'] == result


def test_without_extend_the_refusal_names_the_way(short, shades, tmp_path):
    before = contents(short)
    with pytest.raises(InputError) as error:
        train_and_evaluate(SPEC, LONGER, short, dataset=shades)
    assert str(error.value) == (
        f'workdir={short} finished after 2 epochs; add --extend to train it to 4 (extend=True in Python), or choose'
        ' another --workdir'
    )
    for config, message in (
        (CONFIG, f'extend: workdir={short} has epochs=2 already; set epochs to more'),
        (LONGER.replace(learning_rate=0.1), 'a run of another configuration: epochs=2 before, 4 now; learning_rate='),
        (LONGER.replace(warmup_epochs=1), 'another configuration: epochs=2 before, 4 now; warmup_epochs absent before'),
        (CONFIG.replace(epochs=1), f'extend: workdir={short} has epochs=2; set epochs to more'),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            train_and_evaluate(SPEC, config, short, dataset=shades, extend=True)
    assert contents(short) == before
    with pytest.raises(InputError, match=f'extend: workdir={tmp_path / "new"} holds no run yet'):
        train_and_evaluate(SPEC, CONFIG, tmp_path / 'new', dataset=shades, extend=True)
    assert not (tmp_path / 'new').exists()


def test_a_finished_run_without_checkpoints_is_not_extended(short, shades):
    shutil.rmtree(short / 'checkpoints')
    before = contents(short)
    with pytest.raises(InputError, match='short has no intact checkpoint to continue from'):
        train_and_evaluate(SPEC, LONGER, short, dataset=shades, extend=True)
    assert contents(short) == before


def test_an_unfinished_run_is_extended_from_its_last_checkpoint(shades, tmp_path, monkeypatch):
    after_step(monkeypatch, 6, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, dataset=shades)
    monkeypatch.undo()
    with pytest.raises(InputError, match='has not finished its 2 epochs; add --extend to train it to 4'):
        train_and_evaluate(SPEC, LONGER, tmp_path, dataset=shades)
    assert train_and_evaluate(SPEC, LONGER, tmp_path, dataset=shades, extend=True)['epochs'] == 4
    (entry,) = record_of(tmp_path)['extensions']
    assert (entry['from_step'], entry['result_before']) == (4, None)
    rates = {record['step']: record['learning_rate'] for record in records_of(tmp_path, 'train')}
    assert rates[6] == pytest.approx(cosine(5, 4), rel=1e-5)


def test_several_seeds_are_extended_and_joined_by_another(shades, tmp_path):
    one, two = CONFIG.replace(epochs=1), CONFIG.replace(epochs=2)
    train_and_evaluate(SPEC, one, tmp_path, dataset=shades, num_seeds=2)
    with pytest.raises(InputError, match='seed0 finished after 1 epoch; add --extend to train it to 2'):
        train_and_evaluate(SPEC, two, tmp_path, dataset=shades, num_seeds=2)
    result = train_and_evaluate(SPEC, two, tmp_path, dataset=shades, num_seeds=3, extend=True)
    assert [run['epochs'] for run in result['runs']] == [2, 2, 2]
    assert train_and_evaluate(SPEC, two, tmp_path, dataset=shades, num_seeds=3, extend=True) == result
    found = [record_of(tmp_path / f'seed{seed}') for seed in range(3)]
    assert [record['config']['seed'] for record in found] == [0, 1, 2]
    assert [len(record.get('extensions', ())) for record in found] == [1, 1, 0]


def json_of(config):
    return json.loads(json.dumps(config.to_json()))


@pytest.mark.parametrize('recipe', ['cifar_fast', 'he2015_cifar', 'torchvision_v2', 'bit_cifar10'])
def test_settings_that_recipes_scale_with_the_epochs_may_differ(recipe):
    """Warmup, decay epochs and the span of the average."""
    old, new = get_config(recipe, epochs=40), get_config(recipe, epochs=50)
    record = {'spec': {}, 'config': json_of(old)}

    def epochs_of(config):
        return claims._epochs(record, {'spec': {}, 'config': json_of(config)}, ())

    assert epochs_of(new) == (40, 50)
    assert epochs_of(old.replace(epochs=50)) == (40, 50)
    assert epochs_of(new.replace(batch_size=64)) is None
    if old.averaging is not None:
        assert epochs_of(new.replace(ema_decay=0.5)) is None


def test_a_run_is_not_resumed_with_other_examples(short, shades):
    (short / 'result.json').unlink()
    before, images = contents(short), shades.train.images.copy()
    images[5, 0, 0, 0] += 1
    other = dataclasses.replace(shades, train=Split(images, shades.train.labels))
    with pytest.raises(InputError, match='the content of train has changed'):
        train_and_evaluate(SPEC, CONFIG, short, dataset=other)
    assert contents(short) == before


def test_a_run_of_an_earlier_version_resumes_and_says_nothing(short, template, shades, capsys):
    record = record_of(short)
    for name in ('settings', 'platform', 'fingerprints'):
        del record[name]
    (short / 'config.json').write_text(json.dumps(record | {'git_commit': None}))
    (short / 'result.json').unlink()
    assert train_and_evaluate(SPEC, CONFIG, short, dataset=shades)['test_loss'] == template[1]['test_loss']
    assert capsys.readouterr().err == ''


def test_processes_that_compute_something_else_are_refused(shades, tmp_path, monkeypatch):
    """As if another process had other training examples."""
    names = []

    def differing(values):
        names.extend(values)
        return ['train']

    monkeypatch.setattr(claims, 'differing_entries', differing)
    with pytest.raises(InputError, match='the processes of this job differ in: train; start all of them with the same'):
        train_and_evaluate(SPEC, CONFIG, tmp_path / 'run', dataset=shades)
    assert names == ['configuration', 'settings of JAX', 'train', 'test']
    assert not (tmp_path / 'run').exists()
