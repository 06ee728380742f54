"""Every task end to end on a few examples, from the data to predictions."""

import csv
import json

import numpy as np
import pytest

from resnet_jax import (
    InputError,
    Preprocessing,
    TrainConfig,
    create_model,
    load_predictor,
    make_spec,
    train_and_evaluate,
    with_changes,
)
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.inference.export import export
from resnet_jax.models.resnet import ResNet
from resnet_jax.tasks.kinds import TASKS
from resnet_jax.training.evaluation import Evaluator
from resnet_jax.training.plan import objective_task
from resnet_jax.weights.files import write_safetensors
from resnet_jax.weights.names import tensors_from_variables
from resnet_jax.weights.runs import load_variables
from tests.experiments import commands
from tests.weights.helpers import random_variables

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
CONFIG = TrainConfig().replace(
    dataset='shades', epochs=12, batch_size=8, learning_rate=0.02, checkpoint_every_epochs=4, eval_every_epochs=4
)


def make_dataset(task):
    """Images whose brightness determines the targets."""
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
    config = CONFIG.replace(task=request.param)
    workdir = tmp_path_factory.mktemp('runs') / request.param
    return workdir, train_and_evaluate(SPEC, config, workdir, dataset=dataset), dataset, config


def test_every_task_is_learned(run):
    workdir, result, dataset, config = run
    name = config.objective.task
    best, primary_metric = {'regression': 0.9}.get(name, 0.95), TASKS[name].primary_metric
    assert result[f'test_{primary_metric}'] >= best
    assert json.loads((workdir / 'result.json').read_text()) == result
    assert (workdir / 'report.png').read_bytes()[:4] == b'\x89PNG'
    record = json.loads((workdir / 'config.json').read_text())
    assert record['spec']['head']['num_classes'] == {'multiclass': 3, 'multilabel': 2}.get(name, 1)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert all(primary_metric in line for line in lines)
    if name == 'regression':
        assert result['test_mae'] < 15  # of 1,000 to 1,100
        assert record['dataset']['target_statistics']['mean'] == pytest.approx([dataset.train.labels.mean()])


def test_predictor_and_evaluation_agree(run):
    workdir, result, dataset, config = run
    predictor = load_predictor(workdir)
    predictions = predictor(dataset.test.images)
    task = objective_task(config, dataset.target_statistics())
    model = ResNet(with_changes(SPEC, num_classes=predictions.shape[1]))
    evaluate = Evaluator(model, dataset.test, dataset.mean, dataset.std, task=task, keep_outputs=True)
    evaluation = evaluate(load_variables(workdir))
    np.testing.assert_allclose(predictions, task.predictions(evaluation.outputs), rtol=1e-4, atol=1e-5)
    metric = task.primary_metric
    assert evaluation.summary[metric] == pytest.approx(result[f'test_{metric}'], abs=1e-6)
    names, targets = predictor.names(predictions), dataset.test.labels
    if config.objective.task == 'multiclass':
        assert np.mean([name == dataset.class_names[t] for name, t in zip(names, targets, strict=True)]) >= 0.95
    elif config.objective.task == 'binary':
        assert np.mean([(name == 'bright') == t for name, t in zip(names, targets, strict=True)]) >= 0.95
    elif config.objective.task == 'multilabel':
        assert set(names) <= {(), ('not black',), ('not black', 'bright')}
    else:
        assert abs(names[2][0] - 1100) < 60


def test_evaluate_writes_metrics_and_predictions(run, tmp_path):
    workdir, result, dataset, config = run
    if config.objective.task == 'multiclass':
        pytest.skip('tested in test_scripts.py')
    for name, split in (('train', dataset.train), ('test', dataset.test)):
        np.savez(tmp_path / f'{name}.npz', images=split.images, labels=split.labels)
    (tmp_path / 'classes.txt').write_text('\n'.join(dataset.class_names))
    flags = [f'--init_from={workdir}', f'--dataset=arrays:{tmp_path}', f'--out={tmp_path / "out"}']
    out, _ = commands.run('evaluate', *flags)
    primary_metric = TASKS[config.objective.task].primary_metric
    assert out.splitlines()[-1].startswith(f'test {primary_metric} {result[f"test_{primary_metric}"]:.4f}')
    found = json.loads((tmp_path / 'out' / 'result.json').read_text())
    for name, value in found.items():
        if name.startswith('test_'):
            assert value == pytest.approx(result[name], rel=1e-4, abs=1e-6), name
    assert (tmp_path / 'out' / f'{config.objective.task}.png').read_bytes()[:4] == b'\x89PNG'
    with (tmp_path / 'out' / 'predictions.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    predictions = load_predictor(workdir)(dataset.test.images)
    columns = dataset.class_names[1:] if config.objective.task == 'binary' else dataset.class_names
    written = [[float(row[name]) for name in columns] for row in rows]
    np.testing.assert_allclose(written, predictions, rtol=1e-3, atol=1e-5)
    if config.objective.task == 'binary':
        assert [row['true'] for row in rows] == [dataset.class_names[label] for label in dataset.test.labels]
        assert [row['predicted'] for row in rows] == load_predictor(workdir).names(predictions)
    elif config.objective.task == 'multilabel':
        assert list(rows[0])[: 2 * len(columns) + 1] == ['example'] + [
            f'{kind} {name}' for kind in ('true', 'predicted') for name in columns
        ]
        decided = [[int(row[f'predicted {name}']) for name in columns] for row in rows]
        np.testing.assert_array_equal(decided, predictions > 0.5)
    elif config.objective.task == 'regression':
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
        (np.zeros((2, 6, 6, 1)), 'images must be uint8 [N, 6, 6, 1], found float64 [2, 6, 6, 1]'),
        (np.zeros((6, 6, 1), np.uint8), 'use images[None] for a single image'),
        (np.zeros((2, 6, 6), np.uint8), 'use images[..., None] to add the channel axis'),
        (np.zeros((2, 8, 8, 1), np.uint8), 'found uint8 [2, 8, 8, 1]'),
    ],
)
def test_images_of_another_shape_or_dtype_raise(run, images, message):
    with pytest.raises(InputError) as error:
        load_predictor(run[0])(images)
    assert message in str(error.value)


@pytest.mark.parametrize('classes', ['ab', None, [0.5, 1.0], [0], [0, -1], 0])
def test_classes_to_explain_that_do_not_exist_raise(tmp_path, classes):
    model = create_model('test_resnet')
    write_safetensors(tmp_path / 'w.safetensors', tensors_from_variables(random_variables(model), model))
    predictor = load_predictor(tmp_path / 'w.safetensors', arch='test_resnet', preprocessing=Preprocessing(32))
    with pytest.raises(InputError, match=r'^classes must be 2 integers from 0 to '):
        predictor.explain(np.zeros((2, 32, 32, 3), np.uint8), classes)


def test_weights_without_a_head_give_features(tmp_path):
    """Also if timm's config.json names the network; with a head, the features are the same."""
    model = create_model('test_resnet')
    tensors = tensors_from_variables(random_variables(model), model)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = None
    for name, start in (('whole', ''), ('trunk', 'model.'), ('named', 'encoder.')):
        folder = tmp_path / name
        folder.mkdir()
        given = {f'{start}{k}': v for k, v in tensors.items() if name == 'whole' or not k.startswith('fc.')}
        write_safetensors(folder / 'weights.safetensors', given)
        if name == 'named':
            (folder / 'config.json').write_text('{"architecture": "test_resnet", "num_classes": 0}')
        arch = None if name == 'named' else 'test_resnet'
        predictor = load_predictor(folder / 'weights.safetensors', arch=arch, preprocessing=Preprocessing(32))
        found = predictor.embed(images)
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)
        assert predictor.embed(images[:0]).shape == (0, 96)
        if name == 'whole':
            continue
        assert predictor.class_names == ()
        message = 'these weights of a test_resnet have no linear head, so they predict nothing: compute features'
        with pytest.raises(InputError, match=message):
            predictor(images)
        with pytest.raises(InputError, match=message):
            predictor.explain(images, [0, 0])
        with pytest.raises(InputError, match=message):
            export(predictor, folder / 'x')
        assert not (folder / 'x').exists()


def test_a_dataset_of_another_task_raises(tmp_path):
    with pytest.raises(InputError, match='dataset shades was loaded for task=regression; got task=binary'):
        train_and_evaluate(SPEC, CONFIG.replace(task='binary'), tmp_path / 'run', dataset=make_dataset('regression'))
    assert not (tmp_path / 'run').exists()
