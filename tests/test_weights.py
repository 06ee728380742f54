"""Weights from files, runs and the hub: what is found, what comes along, what is refused, what is written."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax import (
    InputError,
    ResNet,
    ResNetSpec,
    TrainConfig,
    create_model,
    create_train_state,
    from_pretrained,
    get_checkpoint,
    get_spec,
    init_variables,
    list_checkpoints,
    load_variables,
    load_weights,
    save_weights,
    stack_blocks,
    unstack_blocks,
)
from resnet_jax.models.preprocessing import Preprocessing
from resnet_jax.models.pretrained import match_tensors, tensors_from_variables, torch_names, torch_shape
from resnet_jax.models.weight_files import read_tensors, write_safetensors
from resnet_jax.training import checkpoint
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.workdir import CHECKPOINTS, claim_workdir, describe_run
from resnet_jax.weights import model_of, open_source

SPEC = ResNetSpec('basic', (3, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
HASH = '0123456789abcdef0123456789abcdef01234567'
SMALL = 'test_resnet.r160_in1k'
HALF_BIT = Preprocessing(96, 0.9, 'lanczos', (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def random_variables(model, channels=3, seed=0, dtype=np.float32):
    """Values for every variable, without compiling an initialization."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_variables(model, key, (64, 64, channels)), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), shapes)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def timm_config(name, num_classes, preprocessing):
    """What timm writes into config.json."""
    size = preprocessing.size
    details = {'tag': 'in1k', 'custom_load': False, 'input_size': [3, size, size], 'fixed_input_size': False}
    details |= {'interpolation': preprocessing.interpolation, 'crop_pct': preprocessing.crop_pct, 'crop_mode': 'center'}
    details |= {'mean': preprocessing.mean, 'std': preprocessing.std, 'num_classes': num_classes, 'pool_size': [7, 7]}
    details |= {'first_conv': 'conv1', 'classifier': 'fc', 'origin_url': 'https://example.org'}
    arch = name.split('.')[0]
    return {'architecture': arch, 'num_classes': num_classes, 'num_features': 2048, 'pretrained_cfg': details}


class Hub:
    """A cache of the hub's files on the disk, as huggingface_hub lays it out."""

    def __init__(self, folder):
        self.folder = folder

    def put(self, name, config):
        """The folder of a repository's files, with its config.json."""
        repository = self.folder / f'models--timm--{name}'
        files = repository / 'snapshots' / HASH
        files.mkdir(parents=True)
        (repository / 'refs').mkdir()
        (repository / 'refs' / 'main').write_text(HASH)
        (files / 'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
        return files


@pytest.fixture
def hub(tmp_path, monkeypatch):
    constants = pytest.importorskip('huggingface_hub.constants')  # which may have read its environment by now
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    return Hub(tmp_path / 'hub')


@pytest.fixture(scope='module')
def small():
    """The smallest network, its variables and its state dict."""
    model = create_model('test_resnet')
    variables = random_variables(model)
    return model, variables, tensors_from_variables(variables, model)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The folder of a run on grey images with two checkpoints, the first the better one, and their variables."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    config = TrainConfig()
    data = {'image_shape': (6, 6, 1), 'mean': (0.3,), 'std': (0.2,)}
    claim_workdir(folder, describe_run('tiny', dataclasses.asdict(SPEC), config, data, jax.devices()))
    saved = {}
    for step, accuracy in ((4, 0.9), (8, 0.5)):
        saved[step] = random_variables(ResNet(SPEC), channels=1, seed=step)
        state = create_train_state(saved[step], make_optimizer(config, 1))
        checkpoint.save_checkpoint(folder / CHECKPOINTS, step, state, accuracy)
    return folder, saved


@functools.cache
def torch_shapes(arch):
    """Names and shapes of an architecture's state dict, the head's of one class."""
    spec = get_spec(arch, num_classes=1)
    model = ResNet(spec, scan_blocks=not spec.channels)  # traced in less time; unstacked, its shapes are the same
    shapes = jax.eval_shape(lambda key: unstack_blocks(init_variables(model, key, (64, 64, 3))), jax.random.key(0))
    leaves = {
        jax.tree_util.keystr(path[1:], simple=True, separator='/'): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    names = torch_names(spec, list(leaves))
    shapes = {names[path]: torch_shape(path, shape, spec) for path, shape in leaves.items()}
    return shapes, {names['head/kernel'], names['head/bias']}


def write_header(path, shapes):
    """A safetensors file of the right length whose values are a hole: it takes no room on a disk."""
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open('wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        file.truncate(8 + len(text) + offset)


def check_published(hub, name):
    """A published checkpoint's repository resolves to its network, every tensor to a variable of it."""
    known = get_checkpoint(name)
    shapes, head = torch_shapes(known.arch)
    classes = known.num_classes
    given = {key: (classes, *shape[1:]) if key in head else shape for key, shape in shapes.items()}
    if not classes:
        given = {key: shape for key, shape in given.items() if key not in head}
    files = hub.put(name, timm_config(name, classes, known.preprocessing))
    write_header(files / 'model.safetensors', given)
    path = f'hf:timm/{name}'
    source = open_source(path, headers_only=True)
    if not classes:
        with pytest.raises(InputError, match='has no head; num_classes must say'):
            model_of(source, path)
    model, arch = model_of(source, path, num_classes=None if classes else 7)
    assert arch == source.arch == known.arch
    assert source.num_classes == (classes or None)
    assert model.spec == get_spec(known.arch, num_classes=classes or 7)
    assert source.preprocessing == known.preprocessing
    assert source.headless == (not classes)
    matched = match_tensors(source.tensors, model, headless=source.headless)
    assert len(matched) == len(given)
    assert ('head/kernel' in matched) == bool(classes)


# One of each kind of names, small ones.
PUBLISHED = [
    *('resnet18.a1_in1k', 'ecaresnetlight.miil_in1k', 'legacy_seresnet18.in1k', 'skresnet18.ra_in1k', SMALL),
    *('resnest14d.gluon_in1k', 'res2net50_48w_2s.in1k', 'resnetv2_50x1_bit.goog_in21k', 'resnet50.bamboo'),
]


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_checkpoints_resolve(hub, name):
    check_published(hub, name)


@pytest.mark.slow
def test_all_published_checkpoints_resolve(hub):
    for name in list_checkpoints():
        check_published(hub, name)
    assert len(list(hub.folder.glob('models--timm--*'))) == 204


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_a_network_from_the_hub(hub, small, file):
    model, variables, tensors = small
    known = get_checkpoint(SMALL)
    files = hub.put(SMALL, timm_config(SMALL, 1000, known.preprocessing))
    write_safetensors(files / file, tensors)  # the content tells the kind, not the name
    loaded = from_pretrained(f'hf:timm/{SMALL}')
    assert (loaded.arch, loaded.model) == ('test_resnet', model)
    assert loaded.preprocessing == known.preprocessing
    assert_equal(loaded.variables, variables)
    assert_equal(load_weights(f'hf:timm/{SMALL}@main', model), variables)


def test_what_the_hub_does_not_have_is_one_line(hub, small):
    with pytest.raises(InputError, match=r'^hf:timm/nothing cannot be had: .+') as error:
        open_source('hf:timm/nothing')
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 300
    with pytest.raises(InputError, match='hf:not a name/at all/of it must be hf:OWNER/NAME'):
        open_source('hf:not a name/at all/of it')
    with pytest.raises(InputError, match='hf: must be hf:OWNER/NAME'):
        open_source('hf:')
    files = hub.put(SMALL, timm_config(SMALL, 1000, HALF_BIT))
    with pytest.raises(InputError, match=f'hf:timm/{SMALL} cannot be had'):
        open_source(f'hf:timm/{SMALL}')
    write_safetensors(files / 'model.safetensors', small[2])
    with pytest.raises(InputError, match=f'hf:timm/{SMALL}@other cannot be had'):
        open_source(f'hf:timm/{SMALL}@other')


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('{', 'no config.json of timm: it must be JSON with an architecture'),
        ('[]', 'no config.json of timm: it must be JSON with an architecture'),
        ('{"num_classes": 3}', 'no config.json of timm: it must be JSON with an architecture'),
        ('{"architecture": ["test_resnet"]}', 'no config.json of timm: its architecture must be a name'),
        ('{"architecture": "vit_tiny"}', "unknown architecture 'vit_tiny'"),
        ('{"architecture": "test_resnet", "pretrained_cfg": 3}', r'config\.json: config is a int'),
        ('{"architecture": "test_resnet", "pretrained_cfg": {"std": 3}}', r'config\.json: std=3 must be three numbers'),
    ],
)
def test_a_bad_configuration_from_the_hub_is_one_line(hub, config, message):
    write_header(hub.put(SMALL, config) / 'model.safetensors', torch_shapes('test_resnet')[0])
    with pytest.raises(InputError, match=message) as error:
        from_pretrained(f'hf:timm/{SMALL}')
    assert '\n' not in str(error.value)


def test_without_the_hubs_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(InputError, match='hf:timm/x needs the package huggingface_hub: pip install huggingface_hub'):
        open_source('hf:timm/x')


def test_preprocessing_comes_with_the_configuration_beside_a_file(small, tmp_path):
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
def test_another_configuration_beside_a_file_says_nothing(small, tmp_path, config):
    """Such as that of a run into whose folder its weights were converted."""
    write_safetensors(tmp_path / 'model.safetensors', small[2])
    (tmp_path / 'config.json').write_text(config)
    assert from_pretrained(tmp_path / 'model.safetensors', 'test_resnet').preprocessing is None


def test_a_plain_file_needs_the_architecture(small, tmp_path):
    model, variables, tensors = small
    write_safetensors(tmp_path / 'weights', tensors)
    with pytest.raises(InputError, match='does not say which network its tensors belong to; arch must'):
        from_pretrained(tmp_path / 'weights')
    loaded = from_pretrained(tmp_path / 'weights', 'test_resnet')
    assert (loaded.model, loaded.arch, loaded.preprocessing) == (model, 'test_resnet', None)
    assert_equal(loaded.variables, variables)
    with pytest.raises(
        InputError, match=r'weights: the tensors do not fit the network; .*fc\.weight \(1000, 96\) instead'
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
    with pytest.warns(UserWarning, match='a new head for 7 classes in the place of one for 1000'):
        loaded = from_pretrained(tmp_path / 'weights', 'test_resnet', 7, key=jax.random.key(1))
    assert loaded.variables['params']['head']['kernel'].shape[1] == loaded.model.spec.num_classes == 7
    for name in ('stem', 'stage1_block1'):
        assert_equal(loaded.variables['params'][name], variables['params'][name])


def test_a_run_by_its_folder_and_by_a_checkpoint_of_it(run):
    folder, saved = run
    for path, step in ((folder, 8), (f'{folder}/', 8), (folder / CHECKPOINTS / '4', 4)):
        loaded = from_pretrained(path)
        assert (loaded.arch, loaded.model, loaded.preprocessing) == ('tiny', ResNet(SPEC), None)
        assert_equal(loaded.variables, saved[step])  # of the run's one channel
    assert_equal(load_variables(folder, 'best'), saved[4])
    assert from_pretrained(folder, drop_path_rate=0.5).model.spec == dataclasses.replace(SPEC, drop_path_rate=0.5)
    with pytest.raises(InputError, match="depth=3: ResNetSpec has no field 'depth'"):
        from_pretrained(folder, depth=3)
    with pytest.warns(UserWarning, match='a first kernel for 3 channels from one for 1'):
        kernel = from_pretrained(folder, in_channels=3).variables['params']['stem']['conv']['kernel']
    expected = np.repeat(saved[8]['params']['stem']['conv']['kernel'], 3, 2) / 3
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_what_is_not_a_run_is_refused(run, tmp_path):
    folder, _ = run
    with pytest.raises(InputError, match=r'is not the folder of a training run: it has no config\.json$'):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match=f'it has no config.json, but folders of runs: {folder.name}$'):
        from_pretrained(folder.parent)
    (tmp_path / 'config.json').write_text('{"spec": {"depth": 3}, "config": {}}')
    with pytest.raises(InputError, match='is not a run of this version'):
        from_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    with pytest.raises(InputError, match='has no last checkpoint yet'):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match='5'):
        load_variables(folder, 5)
    with pytest.raises(InputError, match='the tensors do not fit the network'):
        load_weights(folder, ResNet(dataclasses.replace(SPEC, widths=(8, 32))))


@pytest.mark.parametrize('layout', ['torch', 'flax'])
@pytest.mark.parametrize('scanned', [False, True])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, layout, scanned):
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


def test_saving_where_and_how_it_cannot_be(tmp_path):
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
        with Image.open(path) as mosaic:  # of 25 rows and 40 columns
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
    command += [f'--init_from={reference_data / "akamaster" / "resnet20-12fca82f.th"}', f'--workdir={tmp_path / "out"}']
    command += ['--mean=0.485,0.456,0.406', '--std=0.229,0.224,0.225']
    subprocess.run(command, check=True, cwd=root, capture_output=True)
    result = json.loads((tmp_path / 'out' / 'result.json').read_text())
    assert (result['num_correct'], result['num_test_examples']) == (9173, 10_000)


def test_fitting_weights_give_no_warning(run):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        from_pretrained(run[0])
