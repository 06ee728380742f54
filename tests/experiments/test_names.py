"""Any names that a file system allows, from the training to the last table."""

import csv
import itertools
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, predict, results
from resnet_jax import TrainConfig, load_dataset, make_spec, train_and_evaluate
from resnet_jax.tasks.kinds import TASKS
from resnet_jax.text import unescaped
from tests.experiments.commands import ROOT, run

CLASSES = (b'$0_$9', b'caf\xe9', b'a|b\n<b>*x* {0} %s \x1b[31m', '猫\u202e,犬'.encode(), 155 * b'x' + 100 * b'y')
FILES = (b'1.png', b'\xff$_$ [1],"q"\r.png', '_ş,|\n.png'.encode(), b'=1+1.png', 251 * b'f' + b'.png')


@pytest.fixture
def folder(tmp_path, rng):
    """Two splits of five classes of five images."""
    root = os.path.join(os.fsencode(tmp_path), b'data, [1] $a_$b \xe9')
    for split, (number, name), file in itertools.product((b'train', b'test'), enumerate(CLASSES), FILES):
        os.makedirs(os.path.join(root, split, name), exist_ok=True)
        pixels = rng.integers(0, 50, (16, 16, 3), np.uint8) + np.uint8(40 * number)
        with open(os.path.join(root, split, name, file), 'wb') as written:
            Image.fromarray(pixels).save(written, 'png')
    return os.fsdecode(root)


@pytest.mark.slow
def test_any_names_survive_training_and_every_command(folder, tmp_path, capfd):
    names = sorted(map(os.fsdecode, CLASSES))
    spec = make_spec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=5)
    workdir = tmp_path / os.fsdecode(b'run, [2] $a_$b caf\xe9\n')
    source = f'folder:{folder}'
    config = TrainConfig().replace(dataset=source, epochs=1, batch_size=10, image_size=16)
    train_and_evaluate(spec, config, workdir, arch='tiny', dataset=load_dataset(source, image_size=16))
    assert capfd.readouterr().err == ''
    assert (workdir / 'report.png').stat().st_size > 10_000
    assert json.loads((workdir / 'config.json').read_text())['dataset']['class_names'] == names

    def silent(name, *flags):
        out, err = run(name, *flags)
        assert err == ''
        assert all(line.isprintable() for line in out.splitlines())
        return out

    silent('evaluate', f'--init_from={workdir}', f'--out={tmp_path / "scores"}')
    with (tmp_path / 'scores' / 'predictions.csv').open(newline='', encoding='utf-8') as file:
        rows = [{unescaped(key): unescaped(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 25
    assert list(rows[0]) == ['example', 'true', 'predicted', *names]
    assert all(os.path.isfile(row['example']) for row in rows)
    assert all(row['true'] == os.path.basename(os.path.dirname(row['example'])) for row in rows)
    assert all(row['predicted'] == max(names, key=lambda name, row=row: float(row[name])) for row in rows)
    assert (tmp_path / 'scores' / 'confusion.png').stat().st_size > 10_000
    assert set(json.loads((tmp_path / 'scores' / 'result.json').read_text())['class_accuracy']) == set(names)

    given = (f'--init_from={workdir}', f'--images={folder}/test')
    assert len(silent('predict', *given).splitlines()) == 2 + 25
    lines = [json.loads(line) for line in silent('predict', *given, '--format=json').splitlines()]
    assert {line['image'] for line in lines} == {row['example'] for row in rows}
    assert all(line['predictions'][0]['name'] in names for line in lines)
    silent('predict', *given, '--format=sheet', '--explain', f'--out={tmp_path / "sheet.png"}')
    silent('features', *given, '--neighbors=2', f'--out={tmp_path / "features.npz"}')
    with np.load(tmp_path / 'features.npz') as archive:
        assert set(archive['names'].tolist()) == {row['example'] for row in rows}
    pytest.importorskip('pyarrow')
    import pyarrow.parquet

    silent('features', *given, f'--out={tmp_path / "features.parquet"}')
    table = pyarrow.parquet.read_table(tmp_path / 'features.parquet')
    assert {*map(unescaped, table['name'].to_pylist())} == {row['example'] for row in rows}
    table = silent('results', f'--runs={workdir}', '--format=csv', '--columns=arch,dataset')
    assert unescaped(table.splitlines()[1]) == f'tiny,"{source}"'
    assert '| tiny | folder:' in silent('results', f'--runs={workdir}')
    silent('export', *given[:1], f'--out={tmp_path / "network"}')
    assert json.loads((tmp_path / 'network.json').read_text())['class_names'] == names


@pytest.mark.slow
def test_a_terminal_without_unicode_shows_escapes(tmp_path):
    (tmp_path / 'ş猫').mkdir()
    environment = os.environ | {'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C'}
    command = [sys.executable, '-m', 'experiments.results', f'--runs={tmp_path}/ş猫']
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f'error: runs={tmp_path}/\\u015f\\u732b: no finished run found\n'.encode()


@pytest.mark.parametrize(
    ('command', 'flag'),
    [
        ('results', '--runs='),
        ('predict', '--init_from='),
        ('evaluate', '--init_from='),
        ('resnet', '--arch='),
    ],
)
def test_an_error_is_one_line_whatever_it_names(command, flag):
    name = '/nowhere\n[1] $a_$b\x1b[31m\u202e' + os.fsdecode(b'\xe9')
    _, err = run(command, flag + name, status=2)
    assert err.endswith('\n')
    assert err[:-1].isprintable()
    assert '\\x1b[31m\\u202e' in err


@pytest.mark.parametrize(
    ('task', 'names', 'targets', 'outputs', 'expected'),
    [
        (
            'multiclass',
            ['true', 'example', '$0_$9'],
            [0, 2],
            [[9, 0, 0], [0, 0, 9]],
            ['example,true,predicted,true (2),example (2),$0_$9', '0,true,true,0.999753,', '1,$0_$9,$0_$9,0.0001233'],
        ),
        ('binary', ['false', 'true'], [1, 0], [[0], [-9]], ['example,true,predicted,true (2)', '0,true,false,0.5']),
        (
            'multilabel',
            ['a', 'true a'],
            [[1, 0], [0, 1]],
            [[9, -9], [0, 0]],
            ['example,true a,true true a,predicted a,predicted true a,a,true a (2)', '0,1,0,1,0,0.999877,0.000123395'],
        ),
        ('regression', ['value'], [[1.5], [2]], [[3], [4]], ['example,true,value', '0,1.5,3']),
    ],
)
def test_columns_of_predictions(task, names, targets, outputs, expected, tmp_path):
    evaluation = types.SimpleNamespace(
        outputs=np.array(outputs, np.float32), targets=np.array(targets), examples=np.arange(2)
    )
    split = types.SimpleNamespace(images=np.zeros((2, 1, 1, 1), np.uint8))
    evaluate.write_predictions(tmp_path / 'predictions.csv', TASKS[task](), evaluation, split, names)
    lines = (tmp_path / 'predictions.csv').read_text().splitlines()
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=False)), lines
    assert len(lines) == 3


def test_the_class_of_a_photograph_is_the_name_of_a_folder():
    def found(names, file, task='multiclass'):
        return predict.true_class(types.SimpleNamespace(task=TASKS[task](), class_names=names), file)

    assert found(('cat', 'dog'), '/cat/dog/1.jpg') == 'dog'
    assert found(('cat', 'dog'), '/cat/x/1.jpg') == 'cat'
    assert found(('cat', 'dog'), '/x/cat.jpg') is None
    assert found(('cat', 'dog'), 'cat/1.jpg', 'binary') == 'cat'
    assert found(('cat', 'dog'), 'cat/1.jpg', 'multilabel') is None
    assert found(('Caf\u00e9', 'x'), 'Cafe\u0301/1.jpg') == 'Caf\u00e9'
    assert found(('tench', 'goldfish'), 'n01440764/1.jpg') == 'tench'


def test_captions_show_file_truth_and_predictions():
    row = predict.Row(f'/a/{100 * "f"}.jpg', '$0_$9', [('a\nb', 0.75), (40 * 'x' + 'y', 0.2), (41 * 'x' + 'y', 0.05)])
    lines = predict.caption(row, 20).splitlines()
    assert lines[:3] == ['ffffffffff…fffff.jpg', 'true: $0_$9', 'a\\x0ab 0.750']
    assert lines[3:] == ['xxxxxxx…xxxxxy 0.200', 'xxxxxxx…xxxxxy (2) 0.050']
    assert predict.caption(row._replace(true=None), 20).count('\n') == 3


def test_an_image_stands_beside_its_overlay(rng):
    images = rng.integers(0, 256, (2, 48, 48, 1), np.uint8)
    overlays = rng.integers(0, 256, (2, 48, 48, 3), np.uint8)
    pair = predict.beside(images, overlays)[1]
    assert pair.shape == (48, 98, 4)
    np.testing.assert_array_equal(pair[:, :48, :3], np.broadcast_to(images[1], (48, 48, 3)))
    np.testing.assert_array_equal(pair[:, 50:, :3], overlays[1])
    assert pair[:, :, 3].min(0).tolist() == 48 * [255] + 2 * [0] + 48 * [255]


def test_tables_of_runs_name_architecture_and_dataset():
    first = {'row': json.dumps(['tiny', {}, {'epochs': 1}]), 'arch': 'tiny', 'dataset': 'some', 'epochs': 1}
    second = first | {'row': json.dumps(['tiny', {}, {'epochs': 2}]), 'epochs': 2}
    assert results.columns_of([[first]]) == ['arch', 'dataset', 'seeds', 'minutes']
    assert results.columns_of([[first], [second]]) == ['arch', 'dataset', 'epochs', 'seeds', 'minutes']
