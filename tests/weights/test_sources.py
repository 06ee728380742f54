"""Loading weights and metadata from files, saving weights, and errors."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import types
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax import (
    InputError,
    Preprocessing,
    ResNet,
    from_pretrained,
    load_weights,
    save_weights,
)
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.models.scanned import stack_blocks
from resnet_jax.weights.files import read_tensors, write_safetensors
from resnet_jax.weights.matching import variables_from_tensors
from resnet_jax.weights.sources import Source, normalization_of
from tests.weights.helpers import HALF_BIT, SPEC, assert_equal, random_variables, timm_config


def test_preprocessing_is_read_from_timms_configuration(small, tmp_path):
    write_safetensors(tmp_path / 'model.safetensors', small[2])
    (tmp_path / 'config.json').write_text(json.dumps(timm_config('test_resnet.mine', 1000, HALF_BIT)))
    loaded = from_pretrained(tmp_path / 'model.safetensors')
    assert (loaded.arch, loaded.preprocessing, loaded.test_preprocessing) == ('test_resnet', HALF_BIT, None)
    config = timm_config('test_resnet.mine', 1000, HALF_BIT)
    config['pretrained_cfg'] |= {'test_input_size': [3, 128, 128], 'test_crop_pct': 1.0}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    loaded = from_pretrained(tmp_path / 'model.safetensors')
    assert loaded.preprocessing == HALF_BIT
    assert loaded.test_preprocessing == dataclasses.replace(HALF_BIT, size=128, crop_pct=1.0)


@pytest.mark.parametrize('config', ['{', '[]', '{"spec": {}, "config": {}}', '{"architectures": ["ResNet"]}'])
def test_other_config_files_are_ignored(small, tmp_path, config):
    """Such as that of a run whose weights were exported to its folder."""
    write_safetensors(tmp_path / 'model.safetensors', small[2])
    (tmp_path / 'config.json').write_text(config)
    assert from_pretrained(tmp_path / 'model.safetensors', 'test_resnet').preprocessing is None


def test_a_plain_file_needs_the_architecture(small, tmp_path):
    model, variables, tensors = small
    write_safetensors(tmp_path / 'weights', tensors)
    with pytest.raises(InputError, match='does not name its architecture: pass arch'):
        from_pretrained(tmp_path / 'weights')
    loaded = from_pretrained(tmp_path / 'weights', 'test_resnet')
    assert (loaded.model, loaded.arch, loaded.preprocessing) == (model, 'test_resnet', None)
    assert_equal(loaded.variables, variables)
    with pytest.raises(
        InputError,
        match=r'weights: the tensors do not fit the network: .*layer1\.0\.conv1\.weight \(32, 32, 3, 3\) instead',
    ):
        from_pretrained(tmp_path / 'weights', 'resnet18')
    with pytest.raises(InputError, match="unknown architecture 'resnet19'"):
        from_pretrained(tmp_path / 'weights', 'resnet19')
    with pytest.raises(InputError, match='num_classes=0 must be at least 1'):
        from_pretrained(tmp_path / 'weights', 'test_resnet', 0)
    with pytest.raises(InputError, match='nowhere does not exist'):
        from_pretrained(tmp_path / 'nowhere', 'test_resnet')


def test_another_number_of_classes_gives_a_new_head(small, tmp_path):
    _, variables, tensors = small
    write_safetensors(tmp_path / 'weights', tensors)
    with pytest.warns(UserWarning, match='a new head for 7 classes replaces that for 1000'):
        loaded = from_pretrained(tmp_path / 'weights', 'test_resnet', 7, key=jax.random.key(1))
    assert loaded.variables['params']['head']['kernel'].shape[1] == loaded.model.spec.head.num_classes == 7
    for name in ('stem', 'stage1_block1'):
        assert_equal(loaded.variables['params'][name], variables['params'][name])


@pytest.mark.parametrize('layout', ['torch', 'flax'])
@pytest.mark.parametrize('scanned', [False, True])
def test_saved_weights_are_loaded_bit_by_bit(tmp_path, layout, scanned):
    model, path = ResNet(SPEC, scan_blocks=scanned), tmp_path / 'weights.safetensors'
    variables = random_variables(ResNet(SPEC))
    save_weights(path, model, stack_blocks(variables) if scanned else variables, layout=layout)
    names = set(read_tensors(path, headers_only=True))
    assert ('layer1.2.conv1.weight' if layout == 'torch' else 'params/stage1_block3/conv1/kernel') in names
    assert_equal(load_weights(path, model), variables)


@pytest.mark.parametrize('layout', ['torch', 'flax'])
def test_bfloat16_becomes_float32(tmp_path, layout):
    variables = random_variables(ResNet(SPEC), dtype=jnp.bfloat16)
    save_weights(tmp_path / 'weights', ResNet(SPEC), variables, layout=layout)
    assert_equal(
        load_weights(tmp_path / 'weights', ResNet(SPEC)), jax.tree.map(lambda x: x.astype('float32'), variables)
    )


FORMS = {
    'FrozenDict': flax.core.freeze,
    'FrozenDict within a dict': lambda tree: {name: flax.core.freeze(below) for name, below in tree.items()},
    'read-only mapping': types.MappingProxyType,
    'NumPy': lambda tree: jax.tree.map(np.asarray, tree),
    'on another device': lambda tree: jax.device_put(tree, jax.devices()[-1]),
    'one part on another device': lambda tree: tree | {'params': jax.device_put(tree['params'], jax.devices()[-1])},
    'NumPy in bfloat16': lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), tree),
    'without a head': lambda tree: tree | {'params': {k: v for k, v in tree['params'].items() if k != 'head'}},
}


@pytest.mark.parametrize('layout', ['torch', 'flax'])
@pytest.mark.parametrize('form', FORMS)
def test_variables_of_any_form_are_saved(tmp_path, layout, form):
    path, variables = tmp_path / 'weights.safetensors', random_variables(ResNet(SPEC))
    if form == 'NumPy in bfloat16':
        variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
    save_weights(path, ResNet(SPEC), FORMS[form](variables), layout=layout)
    expected = FORMS[form](variables) if form == 'without a head' else variables
    assert_equal(variables_from_tensors(read_tensors(path), ResNet(SPEC), headless=True), expected)


@pytest.mark.parametrize('layout', ['torch', 'flax'])
def test_other_collections_and_variables_are_not_saved(tmp_path, layout):
    path, variables = tmp_path / 'weights.safetensors', random_variables(ResNet(SPEC))
    more = variables | {'intermediates': {'last_map': (np.ones(3),)}, 'opt_state': {}}
    with pytest.warns(
        UserWarning, match='collections that the network does not have are left out: intermediates, opt_s'
    ):
        save_weights(path, ResNet(SPEC), more, layout=layout)
    assert_equal(load_weights(path, ResNet(SPEC)), variables)
    path.unlink()
    less = {name: tree for name, tree in variables['params'].items() if name != 'stem'}
    for wrong, message in (
        (variables | {'params': less}, 'params/stem/conv/kernel, params/stem/norm/bias.* missing'),
        (variables | {'params': variables['params'] | {'x': np.ones(3)}}, 'unexpected params/x'),
        (variables['params'], 'batch_stats/stage1_block1.* and 42 more missing'),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with pytest.raises(InputError, match=f'the variables are not those of the network: .*{message}'):
                save_weights(path, ResNet(SPEC), wrong, layout=layout)
    assert not path.exists()


def test_errors_of_saving(tmp_path):
    variables = random_variables(ResNet(SPEC))
    with pytest.raises(InputError, match="layout='keras' must be torch or flax"):
        save_weights(tmp_path / 'weights', ResNet(SPEC), variables, layout='keras')
    with pytest.raises(InputError, match=r'cannot write .*nowhere/weights'):
        save_weights(tmp_path / 'nowhere' / 'weights', ResNet(SPEC), variables)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope='session')
def cifar_test(reference_data):
    """The ten thousand test images of CIFAR-10 and their labels."""
    folder = reference_data / 'cifar10'
    labels = np.load(folder / 'test_labels.npz')['labels']
    tiles = []
    for path in sorted(folder.glob('test_*.webp')):
        with Image.open(path) as mosaic:  # 25 rows and 40 columns
            tiles.append(np.asarray(mosaic.convert('RGB')).reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4))
    return np.concatenate(tiles).reshape(-1, 32, 32, 3), labels


def test_a_published_network_gives_its_published_logits(reference_data, cifar_test):
    folder = reference_data / 'akamaster'
    loaded = from_pretrained(folder / 'resnet20-12fca82f.th', 'resnet20')
    assert_equal(from_pretrained(folder / 'resnet20.safetensors', 'resnet20').variables, loaded.variables)
    normalization = Preprocessing(32)  # ImageNet's mean and deviation
    images = (cifar_test[0][:500] / np.float32(255) - np.float32(normalization.mean)) / np.float32(normalization.std)
    logits = jax.jit(lambda x: loaded.model.apply(loaded.variables, x, train=False))(images)
    np.testing.assert_allclose(logits, np.load(folder / 'logits_resnet20.npy')[:500], atol=1e-3)


@pytest.mark.slow
def test_a_published_network_has_its_published_accuracy(reference_data, cifar_test, root: pathlib.Path, tmp_path):
    images, labels = cifar_test
    for split, size in (('train', 100), ('test', 10_000)):
        np.savez(tmp_path / f'{split}.npz', images=images[:size], labels=labels[:size])
    command = [sys.executable, '-m', 'experiments.evaluate', '--arch=resnet20', f'--dataset=arrays:{tmp_path}']
    command += [f'--init_from={reference_data / "akamaster" / "resnet20-12fca82f.th"}', f'--out={tmp_path / "out"}']
    command += ['--mean=0.485,0.456,0.406', '--std=0.229,0.224,0.225']
    subprocess.run(command, check=True, cwd=root, capture_output=True)
    result = json.loads((tmp_path / 'out' / 'result.json').read_text())
    assert (result['num_correct'], result['num_test_examples']) == (9173, 10_000)


@pytest.mark.parametrize('photographs', [True, False])
def test_normalization_of(photographs):
    """The weights' own; else ImageNet's for photographs, and the dataset's for images in memory."""
    nothing = Split(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int32))
    size = 4 if photographs else None
    dataset = Dataset('none', nothing, nothing, ('a',), (0.7, 0.8, 0.9), (0.2, 0.2, 0.2), image_size=size)
    brought = Source({}, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert normalization_of(brought, dataset) == normalization_of(brought) == (brought.mean, brought.std)
    expected = (IMAGENET_MEAN, IMAGENET_STD) if photographs else (dataset.mean, dataset.std)
    assert normalization_of(Source({}), dataset) == expected
    assert normalization_of(Source({})) == (IMAGENET_MEAN, IMAGENET_STD)
