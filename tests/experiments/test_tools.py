"""The scripts that use a trained network, or many runs: predict, features, export, results, sweep."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnet_jax import ResNetSpec, TrainConfig, load_dataset, load_predictor, train_and_evaluate

SPEC = ResNetSpec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """18 photographs for training and 6 for testing, whose colour tells their class."""
    root = tmp_path_factory.mktemp('photographs')
    random = np.random.default_rng(0)
    for split, size in (('train', 18), ('test', 6)):
        for index in range(size):
            kind = index % 3
            path = root / split / ('red', 'green', 'blue')[kind] / f'{index:02}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 60, (20 + index, 25, 3), np.uint8)
            pixels[..., kind] += 150
            Image.fromarray(pixels).save(path, quality=95)
    return root


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    """Folders of two runs that differ in their seeds."""
    runs = tmp_path_factory.mktemp('runs')
    dataset = load_dataset(f'folder:{folder}', image_size=16)
    for seed in (0, 1):
        config = TrainConfig(
            dataset='folder', epochs=8, batch_size=6, learning_rate=0.05, image_size=16, crop_area=(0.5, 1.0), seed=seed
        )
        train_and_evaluate(SPEC, config, runs / f'seed{seed}', arch='tiny', dataset=dataset)
    return runs


def run(root, script, *flags, status=0, cwd=None):
    """Output and errors of a script."""
    command = [sys.executable, '-m', f'experiments.{script}', *flags]
    done = subprocess.run(command, cwd=cwd or root, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_predict_in_every_form(root, folder, trained, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'nothing')
    given = (f'--init_from={trained / "seed0"}', f'--images={folder / "test"},{tmp_path / "broken.jpg"}')
    out, err = run(root, 'predict', *given, '--format=json', '--top=2')
    assert err.endswith('it is left out\n')
    assert 'broken.jpg: cannot be decoded' in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 6
    for line in lines:
        first, second = line['predictions']
        assert f'/{first["name"]}/' in line['image']
        assert 1 >= first['value'] > second['value'] >= 0


@pytest.mark.slow
def test_predict_draws_a_sheet_and_a_table(root, folder, trained, tmp_path):
    given = (f'--init_from={trained / "seed0"}', f'--images={folder / "test"}')
    out, _ = run(root, 'predict', *given)
    assert out.count('\n') == 8
    out, _ = run(root, 'predict', *given, '--format=sheet', '--explain', f'--out={tmp_path / "sheet.png"}')
    assert (tmp_path / 'sheet.png').stat().st_size > 10_000
    for flags, said in (
        (('--explain',), '--explain draws into a sheet'),
        (('--images=/nowhere',), '/nowhere does not exist'),
        (('--init_from=/nowhere',), '/nowhere'),
    ):
        _, err = run(root, 'predict', *given, *flags, status=2)
        assert said in err


@pytest.mark.slow
def test_features_and_neighbours(root, folder, trained, tmp_path):
    file = tmp_path / 'features.npz'
    given = (f'--init_from={trained / "seed0"}', f'--images={folder}', f'--out={file}', '--neighbours=3')
    out, _ = run(root, 'features', *given)
    assert '24 embeddings of 16 numbers' in out
    with np.load(file) as archive:
        names, features = archive['names'], archive['features']
    assert features.shape == (24, 16)
    predictor = load_predictor(trained / 'seed0')
    np.testing.assert_allclose(features[:1], predictor.embed(predictor.prepare(names[0])[None]), atol=1e-5)
    assert file.with_suffix('.png').stat().st_size > 10_000
    _, err = run(root, 'features', *given[:2], '--out=x.txt', status=2)
    assert err == 'error: out=x.txt must end with .npz or .parquet\n'


@pytest.mark.slow
def test_an_exported_network_predicts_without_the_package(root, folder, trained, tmp_path):
    file = tmp_path / 'network.stablehlo'
    out, _ = run(root, 'export', f'--init_from={trained / "seed0"}', f'--out={file}')
    assert 'read back: largest difference' in out
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


def test_results_are_gathered_by_seeds(root, trained, tmp_path):
    out, _ = run(root, 'results', f'--runs={trained}')
    scores = [json.loads((trained / f'seed{seed}' / 'result.json').read_text())['test_accuracy'] for seed in (0, 1)]
    assert f'| tiny | {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f} | 2 |' in out
    _, err = run(root, 'results', f'--runs={trained}', '--columns=colour', status=2)
    assert "column 'colour' is in no result" in err
    _, err = run(root, 'results', f'--runs={tmp_path}', status=2)
    assert 'no finished run' in err


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(root, tmp_path):
    given = ('--grid=learning_rate=0.01,0.1;epochs=1', '--flags=--batch_size=360', f'--workdir={tmp_path}/s')
    out, _ = run(root, 'sweep', *given)
    assert '[2/2] learning_rate=0.1 epochs=1 seed 0: test accuracy' in out
    table = (tmp_path / 's' / 'table.md').read_text()
    result = tmp_path / 's' / 'learning_rate=0.1_epochs=1' / 'seed0' / 'result.json'
    before = result.stat().st_mtime_ns
    run(root, 'sweep', *given)
    assert (tmp_path / 's' / 'table.md').read_text() == table
    assert result.stat().st_mtime_ns == before
    assert (tmp_path / 's' / 'sweep.png').stat().st_size > 10_000
    for grid, said in (
        ('x', "'x' must be FLAG=VALUE"),
        ('seed=1', 'seed is set by the sweep'),
        ('', '--grid must name'),
    ):
        _, err = run(root, 'sweep', f'--grid={grid}', status=2)
        assert said in err
