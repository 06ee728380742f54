"""Commands that load weights as other programs write them, and what they say about it."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from resnet_jax import TrainConfig, create_model, make_spec, train_and_evaluate
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.weights.files import read_tensors, write_safetensors
from resnet_jax.weights.names import tensors_from_variables
from tests.experiments.commands import run
from tests.weights.helpers import random_variables

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
CONFIG = TrainConfig().replace(dataset='shades', epochs=1, batch_size=8)
MODEL = create_model('test_resnet', 10)
TENSORS = {name: 0.1 * abs(value) for name, value in tensors_from_variables(random_variables(MODEL), MODEL).items()}
TRUNK = {name: value for name, value in TENSORS.items() if not name.startswith('fc.')}


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Two color images, one of them transparent, and a gray one."""
    folder = tmp_path_factory.mktemp('photographs')
    colors = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    for name, image in (('a', colors), ('b', colors.convert('RGBA')), ('c', colors.convert('L'))):
        image.save(folder / f'{name}.png')
    return folder


def test_two_networks_and_no_head(photographs, tmp_path):
    both = {f'student.{name}': value for name, value in TRUNK.items()}
    both |= {f'teacher.{name}': value + 0.01 for name, value in TRUNK.items()}
    path, out = tmp_path / 'weights.safetensors', tmp_path / 'features.npz'
    write_safetensors(path, both)
    given = (f'--init_from={path}', '--arch=test_resnet')
    for command, more in (('features', (f'--images={photographs}',)), ('convert', ())):
        target = out if command == 'features' else tmp_path / 'trunk.safetensors'
        _, err = run(command, *given, *more, f'--out={target}', status=2)
        assert err.startswith(
            f'error: {path}: 2 such networks are found, at student, teacher: choose one with --weights_'
        )
        assert not target.exists()
        _, err = run(command, *given, *more, f'--out={target}', '--weights_prefix=teacher')
        assert err.startswith(f'warning: {len(TRUNK)} tensors are left out as no part of the network: student.')
    found = read_tensors(tmp_path / 'trunk.safetensors')
    assert found.keys() == TRUNK.keys()
    np.testing.assert_array_equal(found['conv1.0.weight'], both['teacher.conv1.0.weight'])
    given = (f'--init_from={tmp_path / "trunk.safetensors"}', '--arch=test_resnet', f'--images={photographs}')
    _, err = run('features', *given, f'--out={tmp_path / "again.npz"}')
    converted = (
        'repeated the channel of 1 grayscale image, as the network takes 3 channels; dropped the transparency of 1'
    )
    assert err == f'{converted} image\n'
    np.testing.assert_array_equal(np.load(out)['features'], np.load(tmp_path / 'again.npz')['features'])
    _, err = run('predict', *given, status=2)
    assert err.startswith(
        'error: these weights of a test_resnet have no linear head, so they predict nothing: compute f'
    )
    assert err.count('\n') == 1


def shades():
    """Gray images of three shades."""
    labels = np.arange(24, dtype=np.int32) % 3
    images = np.broadcast_to(90 * labels[:, None, None, None], (24, 6, 6, 1)).astype(np.uint8)
    return Dataset('shades', Split(images, labels), Split(images, labels), ('a', 'b', 'c'), (0.4,), (0.3,))


def test_color_photographs_for_a_gray_network(photographs, tmp_path):
    train_and_evaluate(SPEC, CONFIG, tmp_path / 'run', dataset=shades())
    out, err = run('predict', f'--init_from={tmp_path / "run"}', f'--images={photographs}', '--format=json')
    assert len([json.loads(line) for line in out.splitlines()]) == 3
    assert err == (
        'converted 2 color images to grayscale, as the network takes 1 channel; dropped the transparency of 1 image;'
        ' resized 3 images to 6x6\n'
    )
    # A run of a version without the setting weights_prefix resumes.
    record = json.loads((tmp_path / 'run' / 'config.json').read_text())
    del record['config']['start']['weights_prefix']
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(record))
    (tmp_path / 'run' / 'result.json').unlink()
    assert train_and_evaluate(SPEC, CONFIG, tmp_path / 'run', dataset=shades())['num_test_examples'] == 24


def test_evaluate_says_what_it_converted(tmp_path):
    path, folder = tmp_path / 'weights.safetensors', tmp_path / 'photographs'
    write_safetensors(path, TENSORS)
    for name in map(str, range(10)):
        (folder / 'test' / name).mkdir(parents=True)
        (folder / 'train' / name).mkdir(parents=True)
        image = Image.fromarray(np.full((9, 9), 20 * int(name), np.uint8))
        image.save(folder / 'train' / name / 'a.png')
        (image if int(name) % 2 else image.convert('RGB')).save(folder / 'test' / name / 'a.png')
    given = (f'--init_from={path}', '--arch=test_resnet', f'--dataset=folder:{folder}', '--image_size=32')
    _, err = run('evaluate', *given, f'--out={tmp_path / "out"}', '--test_sizes=16')
    assert err == 'repeated the channel of 5 grayscale images, as the network takes 3 channels\n'


def test_training_starts_from_a_part_of_a_file(tmp_path):
    """The head is new, and the same command resumes."""
    spec = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
    model = create_model('resnet20', 3, stage_sizes=(1, 1), widths=(8, 16), strides=(1, 2), stem_width=8)
    tensors = tensors_from_variables(random_variables(model, 1), model)
    trunk = {name: abs(value) for name, value in tensors.items() if not name.startswith('fc.')}
    write_safetensors(tmp_path / 'w', {f'{net}.{k}': v for net in ('encoder_q', 'encoder_k') for k, v in trunk.items()})
    config = CONFIG.replace(init_from=str(tmp_path / 'w'), weights_prefix='encoder_k', learning_rate=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        train_and_evaluate(spec, config, tmp_path / 'run', dataset=shades())
    said = [str(warning.message) for warning in caught]
    assert 'the weights have no head: that for 3 classes is new and not trained yet' in said
    assert any(
        line.startswith(f'{len(trunk)} tensors are left out as no part of the network: encoder_q.') for line in said
    )
    (tmp_path / 'run' / 'result.json').unlink()
    assert train_and_evaluate(spec, config, tmp_path / 'run', dataset=shades())['num_test_examples'] == 24
