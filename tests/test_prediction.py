"""Every task on a few examples, from the data to what the network says of new images."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from resnet_jax import InputError, ResNetSpec, TrainConfig, load_predictor, train_and_evaluate
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.models.resnet import ResNet
from resnet_jax.training.evaluation import Evaluator, make_task, target_statistics
from resnet_jax.training.tasks import TASKS
from resnet_jax.weights import load_variables

SPEC = ResNetSpec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
CONFIG = TrainConfig(dataset='shades', epochs=12, batch_size=8, learning_rate=0.02, checkpoint_every_epochs=4)


def make_dataset(task):
    """Images whose brightness tells everything there is to know."""
    rng = np.random.default_rng(0)

    def split(size):
        shade = np.arange(size) % 3
        images = (rng.integers(0, 60, (size, 6, 6, 1)) + 90 * shade[:, None, None, None]).astype(np.uint8)
        targets = {
            'multiclass': shade.astype(np.int32),
            'binary': (shade == 2).astype(np.int32),
            'multilabel': np.stack([shade > 0, shade == 2], 1).astype(np.int32),
            'regression': (1000 + 50 * shade[:, None]).astype(np.float32),
        }
        return Split(images, targets[task])

    names = {
        'multiclass': ('a', 'b', 'c'),
        'binary': ('dark', 'bright'),
        'multilabel': ('not black', 'bright'),
        'regression': ('lumen',),
    }
    return Dataset('shades', split(40), split(21), names[task], (0.45,), (0.3,), task)


@pytest.fixture(scope='module', params=['multiclass', 'binary', 'multilabel', 'regression'])
def run(request, tmp_path_factory):
    """Folder, result and data of a run."""
    dataset = make_dataset(request.param)
    config = dataclasses.replace(CONFIG, task=request.param)
    workdir = tmp_path_factory.mktemp('runs') / request.param
    return workdir, train_and_evaluate(SPEC, config, workdir, dataset=dataset), dataset, config


def test_every_task_is_learnt(run):
    workdir, result, dataset, config = run
    best, headline = {'regression': 0.9}.get(config.task, 0.95), TASKS[config.task].headline
    assert result[f'test_{headline}'] >= best
    assert json.loads((workdir / 'result.json').read_text()) == result
    assert (workdir / 'report.png').read_bytes()[:4] == b'\x89PNG'
    record = json.loads((workdir / 'config.json').read_text())
    assert record['spec']['num_classes'] == {'multiclass': 3, 'multilabel': 2}.get(config.task, 1)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert all(headline in line for line in lines)
    if config.task == 'regression':
        assert result['test_mae'] < 15  # of 1,000 to 1,100
        assert record['dataset']['target_mean'] == pytest.approx([dataset.train.labels.mean()])


def test_a_predictor_says_what_the_evaluation_found(run):
    workdir, result, dataset, config = run
    predictor = load_predictor(workdir)
    predictions = predictor(dataset.test.images)
    task = make_task(config, *target_statistics(dataset))
    model = ResNet(dataclasses.replace(SPEC, num_classes=predictions.shape[1]))
    evaluate = Evaluator(model, dataset.test, dataset.mean, dataset.std, task=task, keep_outputs=True)
    evaluation = evaluate(load_variables(workdir))
    np.testing.assert_allclose(predictions, task.predictions(evaluation.outputs), rtol=1e-4, atol=1e-5)
    assert evaluation.summary[task.headline] == pytest.approx(result[f'test_{task.headline}'], abs=1e-6)
    names, targets = predictor.names(predictions), dataset.test.labels
    if config.task == 'multiclass':
        assert np.mean([name == dataset.class_names[t] for name, t in zip(names, targets, strict=True)]) >= 0.95
    elif config.task == 'binary':
        assert np.mean([(name == 'bright') == t for name, t in zip(names, targets, strict=True)]) >= 0.95
    elif config.task == 'multilabel':
        assert set(names) <= {(), ('not black',), ('not black', 'bright')}
    else:
        assert abs(names[2][0] - 1100) < 60


def test_the_script_scores_it_and_writes_every_prediction(run, root, tmp_path):
    workdir, result, dataset, config = run
    if config.task == 'multiclass':
        pytest.skip('with the other scripts')
    for name, split in (('train', dataset.train), ('test', dataset.test)):
        np.savez(tmp_path / f'{name}.npz', images=split.images, labels=split.labels)
    (tmp_path / 'classes.txt').write_text('\n'.join(dataset.class_names))
    flags = [f'--init_from={workdir}', f'--dataset=arrays:{tmp_path}', f'--workdir={tmp_path / "out"}']
    command = [sys.executable, '-m', 'experiments.evaluate', *flags]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    headline = TASKS[config.task].headline
    assert done.stdout.splitlines()[-1].startswith(f'test {headline} {result[f"test_{headline}"]:.4f}')
    found = json.loads((tmp_path / 'out' / 'result.json').read_text())
    for name, value in found.items():
        if name.startswith('test_'):
            assert value == pytest.approx(result[name], rel=1e-4, abs=1e-6), name
    assert (tmp_path / 'out' / f'{config.task}.png').read_bytes()[:4] == b'\x89PNG'
    with (tmp_path / 'out' / 'predictions.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    predictions = load_predictor(workdir)(dataset.test.images)
    columns = dataset.class_names[1:] if config.task == 'binary' else dataset.class_names
    written = [[float(row[name]) for name in columns] for row in rows]
    np.testing.assert_allclose(written, predictions, rtol=1e-3, atol=1e-5)
    if config.task == 'binary':
        assert [row['true'] for row in rows] == [dataset.class_names[label] for label in dataset.test.labels]
    elif config.task == 'regression':
        np.testing.assert_allclose([float(row['true']) for row in rows], dataset.test.labels[:, 0])


def test_predictions_do_not_depend_on_the_batch(run):
    workdir, _, dataset, _ = run
    predictor = load_predictor(workdir, 'best')
    together = predictor(dataset.test.images)
    np.testing.assert_allclose(predictor(dataset.test.images[:3]), together[:3], rtol=1e-4, atol=1e-5)
    assert predictor(dataset.test.images[:0]).shape == (0, together.shape[1])


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((2, 6, 6, 1)), "images must be uint8 ['N', 6, 6, 1], found float64 [2, 6, 6, 1]"),
        (np.zeros((6, 6, 1), np.uint8), 'images[None] makes a batch of one'),
        (np.zeros((2, 6, 6), np.uint8), 'images[..., None] has a channel'),
        (np.zeros((2, 8, 8, 1), np.uint8), 'found uint8 [2, 8, 8, 1]'),
    ],
)
def test_other_images_are_refused(run, images, message):
    with pytest.raises(InputError) as error:
        load_predictor(run[0])(images)
    assert message in str(error.value)


def test_data_of_another_task_are_refused(tmp_path):
    with pytest.raises(InputError, match='task=binary cannot be learned of shades, which was loaded for regression'):
        train_and_evaluate(
            SPEC, dataclasses.replace(CONFIG, task='binary'), tmp_path / 'run', dataset=make_dataset('regression')
        )
    assert not (tmp_path / 'run').exists()
