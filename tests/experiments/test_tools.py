"""The scripts that use a trained network, or many runs: predict, features, export, results, sweep."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import sweep
from resnet_jax import TrainConfig, load_dataset, load_predictor, make_spec, train_and_evaluate, with_changes
from tests.data import coloured
from tests.experiments.commands import ROOT, run

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """18 training and 6 test photographs, whose class is their color."""
    return coloured.write(tmp_path_factory.mktemp('photographs'), train=18, test=6, kinds=('jpg',))


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    """Folders of two runs that differ only in the seed."""
    runs = tmp_path_factory.mktemp('runs')
    dataset = load_dataset(f'folder:{folder}', image_size=16)
    for seed in (0, 1):
        config = TrainConfig().replace(
            dataset='folder', epochs=8, batch_size=6, learning_rate=0.05, image_size=16, crop_area=(0.5, 1.0), seed=seed
        )
        train_and_evaluate(SPEC, config, runs / f'seed{seed}', arch='tiny', dataset=dataset)
    return runs


def test_predict_as_json(folder, trained, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'nothing')
    given = (f'--init_from={trained / "seed0"}', f'--images={folder / "test"},{tmp_path / "broken.jpg"}')
    out, err = run('predict', *given, '--format=json', '--top=2')
    assert err.startswith('skipping ')
    assert 'broken.jpg: cannot be decoded' in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 6
    for line in lines:
        first, second = line['predictions']
        assert f'/{first["name"]}/' in line['image']
        assert 1 >= first['value'] > second['value'] >= 0


@pytest.mark.slow
def test_predict_draws_a_sheet_and_a_table(folder, trained, tmp_path):
    given = (f'--init_from={trained / "seed0"}', f'--images={folder / "test"}')
    out, _ = run('predict', *given)
    assert out.count('\n') == 8
    out, _ = run('predict', *given, '--format=sheet', '--explain', f'--out={tmp_path / "sheet.png"}')
    assert (tmp_path / 'sheet.png').stat().st_size > 10_000
    for flags, message in (
        (('--explain',), '--explain needs --format=sheet'),
        (('--images=/nowhere',), '/nowhere does not exist'),
        (('--init_from=/nowhere',), '/nowhere'),
    ):
        _, err = run('predict', *given, *flags, status=2)
        assert message in err


@pytest.mark.slow
def test_features_and_neighbors(folder, trained, tmp_path):
    file = tmp_path / 'features.npz'
    given = (f'--init_from={trained / "seed0"}', f'--images={folder}', f'--out={file}', '--neighbors=3')
    out, _ = run('features', *given)
    assert '24 embeddings of size 16' in out
    with np.load(file) as archive:
        names, features = archive['names'], archive['features']
    assert features.shape == (24, 16)
    predictor = load_predictor(trained / 'seed0')
    np.testing.assert_allclose(features[:1], predictor.embed(predictor.prepare(names[0])[None]), atol=1e-5)
    assert file.with_suffix('.png').stat().st_size > 10_000
    _, err = run('features', *given[:2], '--out=x.txt', status=2)
    assert err == 'error: out=x.txt must end in .npz or .parquet\n'


@pytest.mark.slow
def test_an_exported_network_predicts_without_the_package(folder, trained, tmp_path):
    file = tmp_path / 'network.stablehlo'
    out, _ = run('export', f'--init_from={trained / "seed0"}', f'--out={file}')
    assert 'verified: largest difference' in out
    record = json.loads((tmp_path / 'network.stablehlo.json').read_text())
    assert record['class_names'] == ['blue', 'green', 'red']
    code = (
        'import jax, sys, numpy as np\n'
        'network = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))\n'
        'images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)\n'
        'np.save(sys.argv[2], network.call(images))\n'
        'assert "resnet_jax" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code, str(file), str(tmp_path / 'found.npy')], check=True, cwd=tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    expected = load_predictor(trained / 'seed0')(images)
    np.testing.assert_allclose(np.load(tmp_path / 'found.npy'), expected, atol=1e-5)


def test_results_are_gathered_by_seeds(trained, tmp_path):
    out, _ = run('results', f'--runs={trained}')
    scores = [json.loads((trained / f'seed{seed}' / 'result.json').read_text())['test_accuracy'] for seed in (0, 1)]
    assert f'| tiny | folder | {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f} | 2 |' in out
    assert run('results', f'--runs={trained},{trained}/seed0')[0] == out  # each run once
    _, err = run('results', f'--runs={trained}', '--columns=color', status=2)
    assert "unknown column 'color'" in err
    _, err = run('results', f'--runs={tmp_path}', status=2)
    assert 'no finished run' in err


@pytest.mark.slow
def test_results_show_settings_that_differ(tmp_path):
    for rate in (0.0, 0.3):
        spec, folder = with_changes(SPEC, dropout_rate=rate).to_json(), tmp_path / str(rate)
        folder.mkdir()
        record = {'arch': 'tiny', 'spec': spec, 'config': {'seed': 0, 'epochs': 2, 'reporting': {}}}
        (folder / 'config.json').write_text(json.dumps(record))
        (folder / 'result.json').write_text(json.dumps({'test_accuracy': rate, 'train_seconds': 1.0, 'arch': 'tiny'}))
    out, _ = run('results', f'--runs={tmp_path}')
    assert out.splitlines()[0] == '| arch | dropout_rate | test_accuracy | seeds | minutes |'


def test_results_ignore_reporting_settings_and_duplicates(tmp_path):
    for name, seed, every, accuracy in (('a', 0, 10, 0.5), ('b', 1, 20, 0.7), ('c', 1, 20, 0.7)):
        (tmp_path / name).mkdir()
        config = TrainConfig().replace(seed=seed, epochs=2, dataset='some', checkpoint_every_steps=every)
        record = {'arch': 'tiny', 'spec': SPEC.to_json(), 'config': config.to_json()}
        (tmp_path / name / 'config.json').write_text(json.dumps(record))
        result = {'test_accuracy': accuracy, 'train_seconds': 60.0, 'arch': 'tiny', 'seed': seed}
        (tmp_path / name / 'result.json').write_text(json.dumps(result))
    out, err = run('results', f'--runs={tmp_path}')
    assert out.splitlines()[2:] == ['| tiny | some | 0.6000 ± 0.1414 | 2 | 1.0 |']
    assert err == f'skipping {tmp_path}/c: same settings and seed as {tmp_path}/b\n'


def test_results_do_not_mix_extended_runs_with_others(tmp_path):
    for name, extensions, epochs in (('a', [], 6), ('b', [{'from_epochs': 2}, {'from_epochs': 4}], 6), ('c', [], 2)):
        (tmp_path / name).mkdir()
        config = TrainConfig().replace(epochs=6, dataset='some').to_json()
        record = {'arch': 'tiny', 'spec': SPEC.to_json(), 'config': config, 'extensions': extensions}
        (tmp_path / name / 'config.json').write_text(json.dumps(record))
        result = {'test_accuracy': 0.5, 'train_seconds': 60.0, 'arch': 'tiny', 'seed': 0, 'epochs': epochs}
        (tmp_path / name / 'result.json').write_text(json.dumps(result))
    out, err = run('results', f'--runs={tmp_path}')
    assert out.splitlines()[0] == '| arch | dataset | extended_from | test_accuracy | seeds | minutes |'
    assert sorted(out.splitlines()[2:]) == [
        '| tiny | some |  | 0.5000 | 1 | 1.0 |',
        '| tiny | some | 2, 4 | 0.5000 | 1 | 1.0 |',
    ]
    assert err == f'skipping {tmp_path}/c: not finished\n'  # its extension to 6 epochs is not


def test_evaluation_matches_classes_by_name(folder, trained, tmp_path):
    """Green and red are classes 0 and 1 of the dataset, but 1 and 2 of the network."""
    for label in ('red', 'green'):
        for split in ('train', 'test'):
            shutil.copytree(folder / split / label, tmp_path / 'data' / split / label)
    given = (
        f'--init_from={trained / "seed0"}',
        f'--dataset=folder:{tmp_path / "data"}',
        f'--out={tmp_path / "out"}',
    )
    out, _ = run('evaluate', *given)
    predictor = load_predictor(trained / 'seed0')
    files = sorted((tmp_path / 'data' / 'test').rglob('*.jpg'))
    predicted = predictor.names(predictor(np.stack([predictor.prepare(file) for file in files])))
    right = sum(name == file.parent.name for name, file in zip(predicted, files, strict=True))
    assert f'{right} of 4 correct' in out
    assert 'classes without examples: 1' in out
    (tmp_path / 'data' / 'train' / 'red').rename(tmp_path / 'data' / 'train' / 'pink')
    (tmp_path / 'data' / 'test' / 'red').rename(tmp_path / 'data' / 'test' / 'pink')
    _, err = run('evaluate', *given, status=2)
    assert "the network has no class 'pink'; its classes are blue, green, red" in err


def test_evaluate_and_predict_agree_on_photographs(folder, tmp_path):
    random, labels = np.random.default_rng(0), np.arange(24) % 3
    images = random.integers(0, 60, (24, 16, 16, 3), np.uint8)
    images[np.arange(24), :, :, labels] += 150
    for split in ('train', 'test'):
        np.savez(tmp_path / f'{split}.npz', images=images, labels=labels)
    (tmp_path / 'classes.txt').write_text('\n'.join(coloured.COLOURS))
    config = TrainConfig().replace(dataset='arrays', epochs=2, batch_size=6, learning_rate=0.05)
    train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=load_dataset(f'arrays:{tmp_path}'))
    given = (f'--init_from={tmp_path / "run"}', f'--dataset=folder:{folder}', f'--out={tmp_path / "out"}')
    out, _ = run('evaluate', *given)
    assert json.loads((tmp_path / 'out' / 'result.json').read_text())['preprocessing']['size'] == 16
    predictor = load_predictor(tmp_path / 'run')
    files = sorted((folder / 'test').rglob('*.jpg'))
    predicted = predictor.names(predictor(np.stack([predictor.prepare(file) for file in files])))
    right = sum(name == file.parent.name for name, file in zip(predicted, files, strict=True))
    assert f'{right} of 6 correct' in out


def test_grid_parsing_and_folder_names():
    assert sweep.parse_grid('a=1,2; b=0.1,1|0.5,1') == {'a': ['1', '2'], 'b': ['0.1,1', '0.5,1']}
    assert sweep.folder_name({'a': '1', 'b': '0.1'}) == 'a=1_b=0.1'
    assert sweep.folder_name({'a': '0.1,1'}).startswith('a=0.1_1_')
    long = [sweep.folder_name({'a': 300 * 'x' + end}) for end in 'yz']
    assert len({*long, *(sweep.folder_name({'a': value}) for value in ('x/y', 'x_y', 'x,y'))}) == 5
    assert max(map(len, long)) < 130


def test_folder_names_differ_where_upper_and_lower_case_are_the_same():
    one, two, three = sweep.folder_names([{'shortcut': 'A'}, {'shortcut': 'B'}, {'shortcut': 'a'}])
    assert (one, two) == ('shortcut=A', 'shortcut=B')
    assert re.fullmatch('shortcut=a_[0-9a-f]{16}', three)


@pytest.mark.slow
@pytest.mark.parametrize('given', [['--grid=lr=0.1,0.2'], ['--grid=epochs=1', '--flags=--dataset=arrays:/nowhere']])
def test_a_sweep_of_which_no_run_started_leaves_nothing(tmp_path, given):
    _, err = run('sweep', *given, f'--workdir={tmp_path}/new/s', status=2)
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_input_benchmark_rejects_bad_flags():
    for given, message in (
        (['--dataset=digits'], 'dataset=digits must be folder:DIR'),
        (['--dataset=folder:/nowhere'], 'folder not found'),
        (['--dataset=folder:.', '--against=dali'], "against='dali' must be one of torchvision, tf_antialias, tf"),
    ):
        assert message in run('benchmark_input', *given, status=2)[1]


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_input_benchmark(folder, workers):
    given = [f'--dataset=folder:{folder}', '--batch_size=6', '--batches=4', '--warmup=1', '--rounds=1']
    out, _ = run('benchmark_input', *given, '--image_size=32', f'--num_workers={workers}')
    name, speed, per_core, ratio = out.splitlines()[-1].strip('| ').split(' | ')
    assert (name, ratio) == ('ours', '1.00')
    assert float(speed.replace(',', '')) >= float(per_core.replace(',', '')) > 0


@pytest.mark.slow
def test_an_interrupted_sweep_saves_its_run(tmp_path):
    workdir = tmp_path / 's'
    command = [sys.executable, '-m', 'experiments.sweep', '--grid=epochs=10000', f'--workdir={workdir}']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        run_folder, end = workdir / 'epochs=10000' / 'seed0', time.monotonic() + 200
        while not (run_folder / 'metrics.jsonl').exists() or not (run_folder / 'metrics.jsonl').stat().st_size:
            assert time.monotonic() < end
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.endswith(f'stopped in {run_folder}; the same command resumes there\n')
    assert list((run_folder / 'checkpoints').iterdir())


@pytest.mark.slow
def test_a_sweep_continues_after_a_failed_run(tmp_path):
    given = ('--grid=learning_rate=0.05,-1;epochs=1', '--keep_going', f'--workdir={tmp_path}')
    out, err = run('sweep', *given)
    assert 'failed' in out
    assert 'learning_rate' in err
    assert json.loads((tmp_path / 'result.json').read_text())['means'][1] is None


@pytest.mark.slow
def test_a_sweep_resumes(tmp_path):
    given = ('--grid=learning_rate=0.01,0.1;epochs=1', '--flags=--batch_size=360', f'--workdir={tmp_path}/s')
    out, _ = run('sweep', *given)
    assert '[2/2] learning_rate=0.1 epochs=1 seed 0: test accuracy' in out
    table = (tmp_path / 's' / 'table.md').read_text()
    result = tmp_path / 's' / 'learning_rate=0.1_epochs=1' / 'seed0' / 'result.json'
    before = result.stat().st_mtime_ns
    run('sweep', *given)
    assert (tmp_path / 's' / 'table.md').read_text() == table
    assert result.stat().st_mtime_ns == before
    assert (tmp_path / 's' / 'sweep.png').stat().st_size > 10_000
    _, err = run('sweep', *given, '--flags=--batch_size=180', status=2)
    assert f'workdir={tmp_path}/s contains another sweep (resnet --batch_size=360)' in err


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--grid=x'], "'x' must have the form FLAG=VALUE"),
        (['--grid=seed=1'], 'seed is set by the sweep'),
        (['--grid='], '--grid is required'),
        (['--grid=epochs=1', '--flags=--num_seeds=3'], "flags='--num_seeds=3': num_seeds is set by the sweep"),
        (
            ['--grid=epochs=1', '--script=degradation'],
            'script=degradation must be one of the training scripts: plain, ',
        ),
        (['--grid=epochs=1', '--script=shared/scripts'], 'script=shared/scripts must be one of the training scripts'),
    ],
)
def test_a_sweep_rejects_bad_flags(flags, message, tmp_path):
    _, err = run('sweep', *flags, f'--workdir={tmp_path}/s', status=2)
    assert message in err
    assert not (tmp_path / 's').exists()
