"""Whole runs on a few examples: files, resumption, devices, errors."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet_jax import (
    DivergenceError,
    InputError,
    Interrupted,
    ResNet,
    TrainConfig,
    load_variables,
    make_spec,
    train_and_evaluate,
    with_changes,
)
from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.writer import CheckpointWriter
from resnet_jax.data.examples import Dataset, Split, dataset_from_arrays
from resnet_jax.data.feeds import EvalArrays
from resnet_jax.tasks.base import Task
from resnet_jax.training import evaluation, loop, program
from resnet_jax.training.loop import is_due
from resnet_jax.training.plan import make_model, normalize_for_run
from resnet_jax.weights.files import write_safetensors
from resnet_jax.weights.sources import Source, open_source
from tests.training.runs import after_step, kill

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
CONFIG = TrainConfig().replace(
    dataset='shades', epochs=4, batch_size=8, learning_rate=0.05, crop_padding=1, log_every_steps=2
)


@pytest.fixture(scope='module')
def shades(make_shades):
    """37 training and 21 test examples, which the batch size does not divide."""
    return make_shades(37)


@pytest.fixture(scope='module')
def finished(shades, tmp_path_factory):
    """A finished run that tests must not change."""
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    return workdir, train_and_evaluate(SPEC, CONFIG, workdir, arch='tiny', dataset=shades)


def last_state(workdir):
    """Step of the last checkpoint, and the bytes of all its arrays by path."""
    folder = workdir / 'checkpoints'
    step = checkpoint.checkpoint_steps(folder)[-1]
    with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings(action='ignore', category=UserWarning):
        tree = checkpointer.restore(folder / str(step) / 'state')
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return step, {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def test_files_of_a_run(finished):
    workdir, result = finished
    assert {path.name for path in workdir.iterdir()} >= {
        'config.json',
        'metrics.jsonl',
        'result.json',
        'report.png',
        'checkpoints',
    }
    assert list(workdir.glob('events.out.tfevents.*'))
    assert not list(workdir.rglob('*.partial*'))
    assert json.loads((workdir / 'result.json').read_text()) == result
    expected = {
        'num_test_examples': 21,
        'num_train_examples': 37,
        'steps': 16,
        'epochs': 4,
        'seed': 0,
        'arch': 'tiny',
        'dataset': 'shades',
        'recipe': 'digits_quick',
    }
    assert {name: result[name] for name in expected} == expected
    assert {
        'test_accuracy',
        'test_loss',
        'train_seconds',
        'evaluation_seconds',
        'compile_seconds',
        'examples_per_second',
    } <= set(result)
    config = json.loads((workdir / 'config.json').read_text())
    assert config['config'] == json.loads(json.dumps(CONFIG.to_json()))
    assert [stage['size'] for stage in config['spec']['stages']] == [1, 1]
    assert config['versions']['jax'] == jax.__version__


def test_norms_and_profile(shades, tmp_path):
    """With checkpoints within epochs, which must not restart the trace."""
    config = CONFIG.replace(epochs=3, log_norms=True, checkpoint_every_steps=3)
    train_and_evaluate(SPEC, config, tmp_path, dataset=shades, profile_steps=2)
    (trace,) = (tmp_path / 'profile').rglob('*.xplane.pb')
    assert trace.stat().st_size > 1000
    norms = [json.loads(line) for line in (tmp_path / 'norms.jsonl').read_text().splitlines()]
    assert [record['step'] for record in norms] == [2, 3, 4, 6, 8, 9, 11, 12]
    assert all(len(values) == 3 and min(values) >= 0 for values in norms[0]['norms'].values())
    assert {'stem/conv', 'head'} <= set(norms[0]['norms'])
    assert checkpoint.checkpoint_steps(tmp_path / 'checkpoints')[-2:] == [9, 12]
    train = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [record['step'] for record in train if record['split'] == 'train'] == [r['step'] for r in norms]


def test_metrics_cover_every_step_once(finished):
    workdir, result = finished
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [record['step'] for record in records if record['split'] == 'train'] == [2, 4, 6, 8, 10, 12, 14, 16]
    tests = [record for record in records if record['split'] == 'test']
    assert [record['epoch'] for record in tests] == [1, 2, 3, 4]
    assert tests[-1]['accuracy'] == result['test_accuracy']
    train = [record['loss'] for record in records if record['split'] == 'train']
    assert train[-1] < 0.7 * train[0]
    assert (workdir / 'report.png').read_bytes()[:4] == b'\x89PNG'


def test_a_finished_run_is_not_changed(finished, shades, capsys):
    workdir, result = finished
    before = (workdir / 'metrics.jsonl').read_bytes()
    assert train_and_evaluate(SPEC, CONFIG, workdir, arch='tiny', dataset=shades) == result
    assert 'is already finished' in capsys.readouterr().out
    assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_another_configuration_raises_and_names_the_difference(finished, shades):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
    with pytest.raises(InputError, match=r'learning_rate=0.05 before, 0.1 now'):
        train_and_evaluate(SPEC, CONFIG.replace(learning_rate=0.1), workdir, dataset=shades)
    with pytest.raises(InputError, match=r"shortcut='A' before, 'B' now"):
        train_and_evaluate(with_changes(SPEC, shortcut='B'), CONFIG, workdir, dataset=shades)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before


@pytest.mark.parametrize('is_finished', [True, False])
def test_a_run_of_an_earlier_version_raises(finished, shades, tmp_path, is_finished):
    record = json.loads((finished[0] / 'config.json').read_text())
    del record['format']
    (tmp_path / 'config.json').write_text(json.dumps(record))
    if is_finished:
        (tmp_path / 'result.json').write_text('{"test_accuracy": 0.5}')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        InputError, match=r'is a run of another version of resnet_jax \(format 1, this version reads 2\)'
    ):
        train_and_evaluate(SPEC, CONFIG, tmp_path, dataset=shades)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_not_a_run_raises(shades, tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(InputError, match='is not empty and not a run'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, dataset=shades)
    with pytest.raises(InputError, match='must be a folder, not a file'):
        train_and_evaluate(SPEC, CONFIG, tmp_path / 'thesis.tex', dataset=shades)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_invalid_values_write_nothing(shades, tmp_path):
    workdir = tmp_path / 'run'
    with pytest.raises(InputError, match='batch_size=38 must be between 1 and 37'):
        train_and_evaluate(SPEC, CONFIG.replace(batch_size=38), workdir, dataset=shades)
    with pytest.raises(InputError, match=r'batch_size=7 must be a multiple of 2 \(the number of devices\)'):
        train_and_evaluate(SPEC, CONFIG.replace(batch_size=7), workdir, dataset=shades)
    identity = with_changes(SPEC, shortcut='identity')
    with pytest.raises(InputError, match='an identity shortcut cannot map 8 channels to 16'):
        train_and_evaluate(identity, CONFIG, workdir, dataset=shades)
    for path, message in (
        (tmp_path, 'is not the folder of a run'),
        (tmp_path / 'none', 'none does not exist'),
    ):
        with pytest.raises(InputError, match=message):
            train_and_evaluate(SPEC, CONFIG.replace(init_from=str(path)), workdir, dataset=shades)
    for fields, message in (
        ({'freeze': 'layer1'}, "freeze='layer1' matches none of the parameters; paths start with: head, stage1"),
        ({'freeze': ''}, "freeze='' matches all parameters"),
        ({'freeze': 'stem', 'scan_blocks': True}, 'scan_blocks=True is not supported with pruned or frozen blocks'),
        ({'mean': (0.5, 0.5)}, r'mean=\(0.5, 0.5\) must have one number per image channel \(1\)'),
        ({'std': ()}, r'std=\(\) must have one number per image channel \(1\)'),
    ):
        with pytest.raises(InputError, match=message):
            train_and_evaluate(SPEC, CONFIG.replace(**fields), workdir, dataset=shades)
    weights = tmp_path / 'weights.safetensors'
    write_safetensors(weights, {'conv1.weight': np.zeros((8, 1, 3, 3), np.float32)})
    with pytest.raises(InputError, match=r'weights.safetensors: the tensors do not fit the network: \d+ missing'):
        train_and_evaluate(SPEC, CONFIG.replace(init_from=str(weights)), workdir, dataset=shades)
    assert not workdir.exists()


def test_batch_size_is_checked_before_loading_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'load_dataset', lambda *_, **__: pytest.fail('loaded'))
    with pytest.raises(InputError, match=r'batch_size=7 must be a multiple of 2 \(the number of devices\)'):
        train_and_evaluate(SPEC, CONFIG.replace(batch_size=7), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def metrics_of(workdir):
    """Split, step and loss of every record."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [(r['split'], r['step'], r['loss']) for r in map(json.loads, lines)]


@pytest.mark.parametrize('step', [3, 4, 10, 16])
def test_a_killed_run_resumes_bit_for_bit(step, finished, shades, tmp_path, monkeypatch):
    """Within an epoch, and between its last step and its evaluation; the metrics are equal too."""
    after_step(monkeypatch, step, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    monkeypatch.undo()
    assert not (tmp_path / 'result.json').exists()
    result = train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    workdir, whole = finished
    assert last_state(tmp_path) == last_state(workdir)
    assert result['test_loss'] == whole['test_loss']
    assert metrics_of(tmp_path) == metrics_of(workdir)


def test_resuming_on_other_devices_is_reported(finished, shades, tmp_path, monkeypatch, capsys):
    after_step(monkeypatch, 5, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    monkeypatch.undo()
    result = train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades, devices=jax.devices()[:1])
    out, err = capsys.readouterr()
    assert f'resuming {tmp_path} after step 4\n' in out
    change = "device='2 x cpu' before, '1 x cpu' now"
    assert err == f'{tmp_path} was started in another environment; numbers may differ, usually by rounding: {change}\n'
    assert result['test_loss'] == pytest.approx(finished[1]['test_loss'], rel=1e-4)
    assert result['device'] == '1 x cpu'


@pytest.mark.parametrize(('step', 'number'), [(3, signal.SIGTERM), (8, signal.SIGINT)], ids=['TERM', 'INT'])
def test_an_interrupted_run_saves_and_resumes_bit_for_bit(step, number, finished, shades, tmp_path, monkeypatch):
    after_step(monkeypatch, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f'stopped by {number.name} after step {step}, which is saved') as raised:
        train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    assert raised.value.signal == number
    monkeypatch.undo()
    assert checkpoint.checkpoint_steps(tmp_path / 'checkpoints')[-1] == step
    result = train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    assert last_state(tmp_path) == last_state(finished[0])
    assert result['test_loss'] == finished[1]['test_loss']
    assert [record for record in metrics_of(tmp_path) if record[0] == 'test'] == [
        record for record in metrics_of(finished[0]) if record[0] == 'test'
    ]


def test_an_interrupted_run_saves_before_closing_anything(shades, tmp_path, monkeypatch):
    """Closing may fail: here the trace."""
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda _: None)
    monkeypatch.setattr(jax.profiler, 'stop_trace', kill)
    after_step(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, dataset=shades, profile_steps=9)
    assert checkpoint.checkpoint_steps(tmp_path / 'checkpoints')[-1] == 5


@pytest.mark.parametrize('where', ['compilation', 'evaluation'])
def test_a_signal_is_handled_during_compilation_and_evaluation(where, finished, shades, tmp_path, monkeypatch):
    owner, name = (program, 'make_feed') if where == 'compilation' else (EvalArrays, 'batches')
    plain, calls = getattr(owner, name), []

    def with_signal(*args):
        calls.append(args)
        if len(calls) == (1 if where == 'compilation' else 3):  # calls: compilation, first and second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(owner, name, with_signal)
    step = 0 if where == 'compilation' else 8
    message = f'after step {step}, which' if step else 'before the first step'
    with pytest.raises(Interrupted, match=message):
        train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    monkeypatch.undo()
    assert checkpoint.checkpoint_steps(tmp_path / 'checkpoints')[-1:] == ([step] if step else [])
    train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    assert last_state(tmp_path) == last_state(finished[0])
    assert metrics_of(tmp_path) == metrics_of(finished[0])


def test_a_damaged_checkpoint_is_moved_and_the_run_resumes(finished, shades, tmp_path, capsys):
    """The result is the same, and the damaged checkpoint is kept."""
    after = tmp_path / 'run'
    shutil.copytree(finished[0], after)
    (after / 'result.json').unlink()
    folder = after / 'checkpoints'
    newest = checkpoint.checkpoint_steps(folder)[-1]
    data = max((folder / str(newest)).rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    train_and_evaluate(SPEC, CONFIG, after, arch='tiny', dataset=shades)
    assert f'{newest} is damaged' in capsys.readouterr().err
    assert (folder / 'damaged' / str(newest)).is_dir()
    assert last_state(after) == last_state(finished[0])


@pytest.mark.slow
def test_checkpoints_do_not_depend_on_scan_blocks(shades, tmp_path, monkeypatch):
    """A scanned run resumes bit for bit; its weights load in stored form and initialize an unscanned run."""
    spec = with_changes(SPEC, stage_sizes=(3, 1))
    config = CONFIG.replace(epochs=2, scan_blocks=True)
    train_and_evaluate(spec, config, tmp_path / 'whole', dataset=shades)
    after_step(monkeypatch, 6, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(spec, config, tmp_path / 'run', dataset=shades)
    monkeypatch.undo()
    result = train_and_evaluate(spec, config, tmp_path / 'run', dataset=shades)
    assert last_state(tmp_path / 'run') == last_state(tmp_path / 'whole')

    variables = load_variables(tmp_path / 'run')
    assert {'stage1_block1', 'stage1_block2', 'stage1_block3'} <= set(variables['params'])
    for scan in (False, True):
        model = make_model(spec, config.replace(scan_blocks=scan))
        total = evaluation.Evaluator(model, shades.test, shades.mean, shades.std)(variables).total
        assert total['correct'] / total['count'] == pytest.approx(result['test_accuracy'])
    again = CONFIG.replace(epochs=1, learning_rate=0, scan_blocks=False, init_from=str(tmp_path / 'run'))
    train_and_evaluate(spec, again, tmp_path / 'again', dataset=shades)
    unchanged = load_variables(tmp_path / 'again')['params']
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables['params'])


def test_another_seed_gives_another_network(finished, shades, tmp_path):
    train_and_evaluate(SPEC, CONFIG.replace(seed=1), tmp_path / 'run', dataset=shades)
    assert last_state(tmp_path / 'run') != last_state(finished[0])


def test_one_device_agrees_with_two(finished, shades, tmp_path):
    """Up to rounding, because batch sums have another order."""
    one = train_and_evaluate(SPEC, CONFIG, tmp_path / 'one', dataset=shades, devices=jax.devices()[:1])
    assert len(jax.devices()) == 2
    np.testing.assert_allclose(one['test_loss'], finished[1]['test_loss'], rtol=1e-3)
    for first, second in zip(
        *(jax.tree.leaves(load_variables(folder)) for folder in (tmp_path / 'one', finished[0])), strict=True
    ):
        np.testing.assert_allclose(first, second, rtol=5e-3, atol=1e-4)


def test_a_run_can_start_from_another(finished, shades, tmp_path):
    config = CONFIG.replace(epochs=1, learning_rate=0.0, init_from=str(finished[0]))
    train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=shades)
    for first, second in zip(
        *(jax.tree.leaves(load_variables(folder)['params']) for folder in (tmp_path / 'run', finished[0])), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_a_run_can_start_from_other_classes_and_channels(finished, shades, tmp_path):
    """The head is new, the first kernel is adapted to the channels as in timm, and the rest is unchanged."""

    def in_color(split):
        return Split(np.repeat(split.images, 3, -1), split.labels % 2)

    colors = Dataset('colors', in_color(shades.train), in_color(shades.test), ('a', 'b'), (0.3,) * 3, (0.3,) * 3)
    config = CONFIG.replace(epochs=1, learning_rate=0.0, init_from=str(finished[0]))
    with (
        pytest.warns(UserWarning, match='a new head for 2 classes replaces that for 3'),
        pytest.warns(UserWarning, match='the first kernel is adapted from 1 to 3 channels'),
    ):
        result = train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=colors)
    assert result['num_test_examples'] == 21
    found, expected = (load_variables(folder)['params'] for folder in (tmp_path / 'run', finished[0]))
    kernel = np.repeat(expected['stem']['conv'].pop('kernel'), 3, 2) / 3
    np.testing.assert_allclose(found['stem']['conv'].pop('kernel'), kernel, rtol=1e-6)
    assert found.pop('head')['kernel'].shape == (16, 2)
    del expected['head']
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_network_without_running_statistics_trains_resumes_and_loads(shades, tmp_path):
    spec, config = with_changes(SPEC, stem_width=32, widths=(32, 32), norm='group'), CONFIG
    config = config.replace(epochs=1)
    train_and_evaluate(spec, config, tmp_path, dataset=shades)
    (tmp_path / 'result.json').unlink()
    result = train_and_evaluate(spec, config, tmp_path, dataset=shades)  # reads the checkpoint and evaluates
    variables = load_variables(tmp_path)
    assert variables['batch_stats'] == {}
    total = evaluation.Evaluator(ResNet(spec), shades.test, shades.mean, shades.std)(variables).total
    assert total['correct'] / total['count'] == pytest.approx(result['test_accuracy'])


WEIGHTS = Source({}, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
WEIGHTS_WITHOUT_MEAN = Source({})


@pytest.mark.parametrize(
    ('fields', 'source', 'mean', 'std'),
    [
        ({}, None, (0.7, 0.8, 0.9), (0.2, 0.2, 0.2)),
        ({}, WEIGHTS_WITHOUT_MEAN, (0.7, 0.8, 0.9), (0.2, 0.2, 0.2)),
        ({}, WEIGHTS, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({'mean': (0, 0, 0)}, WEIGHTS, (0, 0, 0), (0.4, 0.5, 0.6)),
        ({'mean': [0.5, 0.5, 0.5], 'std': [1, 1, 1]}, WEIGHTS, (0.5, 0.5, 0.5), (1, 1, 1)),
    ],
    ids=['dataset', 'weights without mean', 'weights', 'mean', 'both'],
)
def test_precedence_of_mean_and_std(fields, source, mean, std):
    """The configuration's, otherwise the weights', otherwise the dataset's."""
    nothing = Split(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int32))
    dataset = Dataset('none', nothing, nothing, ('a',), (0.7, 0.8, 0.9), (0.2, 0.2, 0.2))
    found = normalize_for_run(dataset, TrainConfig().replace(**fields), source, None)
    assert (found.mean, found.std) == (mean, std)


def test_gray_images_ignore_the_mean_of_color_weights(shades):
    found = normalize_for_run(shades, CONFIG, WEIGHTS, None)
    assert (found.mean, found.std) == (shades.mean, shades.std)


def test_mean_and_std_of_a_run_are_used(finished, shades):
    other = dataclasses.replace(shades, mean=(0.5,), std=(0.5,))
    found = normalize_for_run(other, CONFIG, open_source(finished[0]), None)
    assert (found.mean, found.std) == (shades.mean, shades.std)


STILL = {'epochs': 1, 'learning_rate': 0.0, 'weight_decay': 0.0, 'head_learning_rate': None}


@pytest.mark.parametrize('case', ['kept', 'other names', 'new_head', 'other task'])
def test_which_head_a_run_starts_with(case, finished, shades, tmp_path):
    """At learning rate zero the weights keep their initial values."""
    config = CONFIG.replace(init_from=str(finished[0]), new_head=case == 'new_head', **STILL)
    dataset = shades
    if case == 'other names':
        dataset = dataclasses.replace(shades, class_names=('x', 'y', 'z'))
    elif case == 'other task':
        config = config.replace(task='multilabel')
        columns = [Split(part.images, np.eye(3, dtype=np.int32)[part.labels]) for part in (shades.train, shades.test)]
        dataset = dataclasses.replace(shades, train=columns[0], test=columns[1], task='multilabel')
    notes = {
        'other names': 'keeping the head although its classes are a, b, c, those of shades x, y, z',
        'other task': 'replacing the head: it was trained for multiclass, not multilabel',
    }
    with pytest.warns(match=notes[case]) if case in notes else contextlib.nullcontext():
        train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=dataset)
    before, after = (load_variables(folder)['params'] for folder in (finished[0], tmp_path / 'run'))
    np.testing.assert_array_equal(before['stem']['conv']['kernel'], after['stem']['conv']['kernel'])
    same = np.array_equal(before['head']['kernel'], after['head']['kernel'])
    assert same == (case in ('kept', 'other names'))
    assert after['head']['kernel'].shape == before['head']['kernel'].shape


DROPPING = with_changes(SPEC, drop_path_rate=0.5, dropout_rate=0.3)
PREFIX = 'stem|stage1'


@pytest.fixture(scope='module')
def tuning(finished):
    """Fine-tuning with four steps per epoch, frozen layers, and dropout in the rest."""
    return CONFIG.replace(epochs=2, weight_decay=0.1, init_from=str(finished[0]), freeze=PREFIX)


@pytest.fixture(scope='module')
def tuned(tuning, shades, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'tuned'
    return workdir, train_and_evaluate(DROPPING, tuning, workdir, dataset=shades)


def test_frozen_layers_stay_and_others_train(finished, tuned):
    before, after = (load_variables(folder) for folder in (finished[0], tuned[0]))
    for collection in ('params', 'batch_stats'):
        for name in before[collection]:
            pairs = zip(*(jax.tree.leaves(tree[collection][name]) for tree in (before, after)), strict=True)
            same = [np.array_equal(*pair) for pair in pairs]
            assert all(same) if name in ('stem', 'stage1_block1') else not any(same), (collection, name)
    slots = [path for path in last_state(tuned[0])[1] if 'opt_state' in path]
    assert any('stage2_block1' in path for path in slots)
    assert not any('stem' in path or 'stage1' in path for path in slots)


def test_a_run_with_frozen_layers_and_dropout_resumes_bit_for_bit(tuning, tuned, shades, tmp_path, monkeypatch):
    after_step(monkeypatch, 6, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(DROPPING, tuning, tmp_path, dataset=shades)
    monkeypatch.undo()
    # The initial weights may be gone: the checkpoints contain everything.
    monkeypatch.setattr(loop, 'open_weights', lambda *_: pytest.fail('opened the initial weights again'))
    result = train_and_evaluate(DROPPING, tuning, tmp_path, dataset=shades)
    assert last_state(tmp_path) == last_state(tuned[0])
    assert result['test_loss'] == tuned[1]['test_loss']


def test_dropout_does_not_depend_on_the_number_of_devices(tuning, tuned, shades, tmp_path):
    one = train_and_evaluate(DROPPING, tuning, tmp_path, dataset=shades, devices=jax.devices()[:1])
    np.testing.assert_allclose(one['test_loss'], tuned[1]['test_loss'], rtol=1e-3)
    for first, second in zip(*(jax.tree.leaves(load_variables(path)) for path in (tmp_path, tuned[0])), strict=True):
        np.testing.assert_allclose(first, second, rtol=5e-3, atol=1e-4)


def test_a_non_finite_loss_stops_the_run(shades, tmp_path):
    config = CONFIG.replace(learning_rate=1e20, max_skipped_steps=3, eval_every_epochs=4)
    message = (
        r'was not finite in 3 consecutive steps, up to step \d+ \(learning rate [\d.]+e\+19, gradient norm (nan|inf)\)'
    )
    with pytest.raises(DivergenceError, match=message):
        train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=shades)
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get('loss', 0)) for line in lines)


def test_non_finite_weights_are_not_saved(shades, tmp_path):
    """The only step of this run has a finite loss, but the weights after it do not."""
    config = CONFIG.replace(epochs=1, batch_size=36, learning_rate=1e38)
    with pytest.raises(DivergenceError, match=r'the test loss is (nan|inf) after step 1'):
        train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=shades)
    assert checkpoint.checkpoint_steps(tmp_path / 'run' / 'checkpoints') == []


def test_a_folder_is_usable_after_a_kill_while_claiming_it(finished, shades, tmp_path):
    (tmp_path / 'config.json.partial').write_text('{')
    config = CONFIG.replace(epochs=1)
    assert train_and_evaluate(SPEC, config, tmp_path, dataset=shades)['steps'] == 4


def test_training_time_accumulates(finished):
    records = [json.loads(line) for line in (finished[0] / 'metrics.jsonl').read_text().splitlines()]
    seconds = [record['train_seconds'] for record in records]
    assert seconds == sorted(seconds)
    assert finished[1]['train_seconds'] == seconds[-1] > 0


def test_label_smoothing_reaches_the_loss(finished, shades, tmp_path):
    config = CONFIG.replace(epochs=1, learning_rate=0.0, label_smoothing=0.9, crop_padding=0)
    smooth = train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=shades)
    records = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    # Without learning, train and test losses differ by batch statistics and smoothing, which moves the loss to log 3.
    plain = config.replace(label_smoothing=0.0)
    train_and_evaluate(SPEC, plain, tmp_path / 'plain', dataset=shades)
    first = json.loads((tmp_path / 'plain' / 'metrics.jsonl').read_text().splitlines()[0])
    assert records[0]['loss'] != first['loss']
    assert smooth['steps'] == 4


@pytest.mark.slow
def test_a_run_with_policy_and_mixing_resumes_bit_for_bit(shades, tmp_path, monkeypatch):
    """Random draws depend on seed, epoch, example and copy, or on the step."""
    fields = {'epochs': 2, 'policy': 'rand_augment', 'mixup': 0.2, 'cutmix': 1.0, 'loss': 'sigmoid_cross_entropy'}
    fields |= {'augmentation_repeats': 2, 'random_erasing': 0.5}
    config = CONFIG.replace(**fields, target_threshold=0.2)
    whole, halved = tmp_path / 'whole', tmp_path / 'halved'
    train_and_evaluate(SPEC, config, whole, dataset=shades)
    after_step(monkeypatch, 6, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, config, halved, dataset=shades)
    monkeypatch.undo()
    train_and_evaluate(SPEC, config, halved, dataset=shades)
    assert last_state(halved) == last_state(whole)
    plain = config.replace(policy=None)
    train_and_evaluate(SPEC, plain, tmp_path / 'plain', dataset=shades)
    assert last_state(tmp_path / 'plain') != last_state(whole)


def test_results_of_several_seeds(shades, tmp_path):
    config = CONFIG.replace(epochs=1)
    result = train_and_evaluate(SPEC, config, tmp_path, num_seeds=2, dataset=shades)
    accuracies = [run['test_accuracy'] for run in result['runs']]
    assert [run['seed'] for run in result['runs']] == result['seeds'] == [0, 1]
    assert result['test_accuracy_mean'] == pytest.approx(sum(accuracies) / 2)
    assert result['test_accuracy_std'] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    with pytest.raises(InputError, match='num_seeds=0'):
        train_and_evaluate(SPEC, config, tmp_path, num_seeds=0, dataset=shades)


def test_seeds_without_a_common_checkpoint_resume_separately(finished, shades, tmp_path, monkeypatch, capsys):
    """The seed without an intact checkpoint starts over; the other one resumes from its own."""
    after_step(monkeypatch, 10, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, num_seeds=2, dataset=shades)
    monkeypatch.undo()
    for manifest in (tmp_path / 'seed1' / 'checkpoints').glob('*/manifest.json'):
        manifest.write_bytes(b'')
    capsys.readouterr()
    result = train_and_evaluate(SPEC, CONFIG, tmp_path, num_seeds=2, dataset=shades)
    output = capsys.readouterr()
    assert f'resuming {tmp_path / "seed0"} after step 8' in output.out
    assert output.err.count('is damaged') == len(list((tmp_path / 'seed1' / 'checkpoints' / 'damaged').iterdir())) > 0
    assert [run['steps'] for run in result['runs']] == [16, 16]
    assert result['runs'][0]['test_loss'] == pytest.approx(finished[1]['test_loss'], rel=1e-3)


def test_a_checkpoint_without_score_gets_it_later(finished, shades, tmp_path, monkeypatch):
    """The run is interrupted in the last evaluation, and killed before saving the step again with its score."""
    plain, calls = EvalArrays.batches, []

    def with_signal(self, *args):
        calls.append(args)
        if len(calls) == 1 + CONFIG.epochs:  # after the compilation
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, *args)

    monkeypatch.setattr(EvalArrays, 'batches', with_signal)
    with pytest.raises(Interrupted, match='after step 16'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    monkeypatch.undo()
    monkeypatch.setattr(CheckpointWriter, 'save', lambda *_: kill())
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    monkeypatch.undo()
    assert metrics_of(tmp_path) == metrics_of(finished[0])
    assert checkpoint.score_of(tmp_path / 'checkpoints', 16) is None
    train_and_evaluate(SPEC, CONFIG, tmp_path, arch='tiny', dataset=shades)
    assert checkpoint.score_of(tmp_path / 'checkpoints', 16) is not None
    assert metrics_of(tmp_path) == metrics_of(finished[0])
    assert last_state(tmp_path) == last_state(finished[0])


@pytest.mark.parametrize(('epoch', 'due'), [(1, False), (3, True), (6, True), (7, True)])
def test_is_due(epoch, due):
    assert is_due(epoch, every=3, last=7) == due


def raises(error):
    def draw(*_):
        raise error

    return draw


@pytest.mark.parametrize(
    ('module', 'why'),
    [
        (types.SimpleNamespace(draw_report=raises(ValueError('no such\ncolor'))), 'no such color'),
        (types.SimpleNamespace(draw_report=raises(OSError(28, 'No space left on device'))), 'No space left on device'),
        (None, 'import of resnet_jax.training.report halted; None in sys.modules'),  # as if Matplotlib were missing
    ],
)
def test_a_report_that_cannot_be_drawn_does_not_affect_the_result(shades, tmp_path, monkeypatch, capsys, module, why):
    monkeypatch.setitem(sys.modules, 'resnet_jax.training.report', module)
    config = CONFIG.replace(epochs=1)
    result = train_and_evaluate(SPEC, config, tmp_path, dataset=shades)
    written = (tmp_path / 'result.json').read_bytes()
    assert json.loads(written) == result
    line = f'{tmp_path / "report.png"} could not be drawn: {why}; the result is not affected\n'
    assert capsys.readouterr().err == line
    assert not (tmp_path / 'report.png').exists()
    monkeypatch.undo()
    before = last_state(tmp_path)
    assert train_and_evaluate(SPEC, config, tmp_path, dataset=shades) == result
    out, err = capsys.readouterr()
    finished = f'{tmp_path} is already finished'
    assert f'{finished}; its report.png is missing and is drawn after another evaluation' in out.splitlines()
    assert (err, (tmp_path / 'report.png').exists()) == ('', True)
    assert ((tmp_path / 'result.json').read_bytes(), last_state(tmp_path)) == (written, before)
    assert train_and_evaluate(SPEC, config, tmp_path, dataset=shades) == result
    assert capsys.readouterr().out == f'{finished}\n'


def test_a_finished_run_without_checkpoints_is_not_trained_again(shades, tmp_path, capsys):
    config = CONFIG.replace(epochs=1)
    result = train_and_evaluate(SPEC, config, tmp_path, dataset=shades)
    (tmp_path / 'report.png').unlink()
    shutil.rmtree(tmp_path / 'checkpoints')
    capsys.readouterr()
    assert train_and_evaluate(SPEC, config, tmp_path, dataset=shades) == result
    assert capsys.readouterr().out == f'{tmp_path} is already finished\n'


def test_sinks_get_every_record_and_hooks_add_to_tests(shades, tmp_path):
    received, seen = [], []

    def hook(state):
        seen.append(int(state.step))
        return {'weight_norm': float(np.linalg.norm(state.params['head']['kernel'])), 'useless': float('nan')}

    config = CONFIG.replace(epochs=2, ema_decay=0.5)
    train_and_evaluate(SPEC, config, tmp_path, num_seeds=2, dataset=shades, sinks=[received.append], hooks=[hook])
    assert seen == [4, 4, 8, 8]
    for seed in (0, 1):
        lines = (tmp_path / f'seed{seed}' / 'metrics.jsonl').read_text().splitlines()
        records = [json.loads(line) | {'seed': seed} for line in lines]
        assert [record for record in received if record['seed'] == seed] == records
        tests = [record for record in records if record['split'] == 'test']
        assert all(record['weight_norm'] > 0 and 'useless' not in record for record in tests)
        assert all(record['unaveraged_loss'] != record['loss'] for record in tests)


def test_a_duplicate_metric_of_a_hook_raises(shades, tmp_path):
    hooks = [lambda _: {'norm': 1.0}, lambda _: {'norm': 2.0}]
    with pytest.raises(InputError, match="a hook returns 'norm', which every test record already has"):
        train_and_evaluate(SPEC, CONFIG.replace(epochs=1), tmp_path, dataset=shades, hooks=hooks)


def test_a_given_dataset_is_resized(shades, tmp_path):
    train_and_evaluate(SPEC, CONFIG.replace(epochs=1, image_size=5), tmp_path, dataset=shades)
    record = json.loads((tmp_path / 'config.json').read_text())
    assert record['config']['data']['image_size'] == 5
    assert record['dataset']['image_shape'] == [5, 5, 1]


class Small(Task):
    """A useless task without targets: outputs should be small."""

    name = 'small'
    needs_targets = False

    def training_loss(self):
        return lambda outputs, targets: jnp.square(outputs).mean(-1)


def distance_from_one(outputs, batch):
    """A custom loss without labels."""
    assert 'label' not in batch
    return jnp.square(outputs - 1).mean(-1)


@pytest.mark.parametrize('loss', ['custom', "task's"])
def test_a_run_without_labels_trains_evaluates_and_resumes(loss, shades, tmp_path, monkeypatch):
    """The number of outputs is that of the architecture."""
    dataset = dataset_from_arrays('bare', (shades.train.pixels, None), (shades.test.pixels, None), task=Small)
    config = CONFIG.replace(epochs=2, task=Small, loss=distance_from_one if loss == 'custom' else None)
    whole = train_and_evaluate(SPEC, config, tmp_path / 'whole', dataset=dataset)
    assert np.isfinite(whole['test_loss'])
    after_step(monkeypatch, 6, kill)
    with pytest.raises(SystemError, match='killed'):
        train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=dataset)
    monkeypatch.undo()
    result = train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=dataset)
    assert result['test_loss'] == whole['test_loss']
    assert last_state(tmp_path / 'run') == last_state(tmp_path / 'whole')
    assert load_variables(tmp_path / 'run')['params']['head']['bias'].shape == (3,)


def test_mixing_without_targets_raises(shades, tmp_path):
    dataset = dataset_from_arrays('bare', (shades.train.pixels, None), (shades.test.pixels, None), task=Small)
    with pytest.raises(InputError, match=r'mixup=0.2 mixes targets, but dataset bare has none'):
        train_and_evaluate(SPEC, CONFIG.replace(task=Small, mixup=0.2), tmp_path / 'run', dataset=dataset)
    assert not (tmp_path / 'run').exists()
