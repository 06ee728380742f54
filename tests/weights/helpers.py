"""Helpers: a small network, sparse weights files, and a hub cache on disk."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import Preprocessing, ResNet, as_stored, get_spec, init_variables, make_spec
from resnet_jax.weights.names import torch_names, torch_shape

SPEC = make_spec('basic', (3, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=3)
HASH = '0123456789abcdef0123456789abcdef01234567'
SMALL = 'test_resnet.r160_in1k'
HALF_BIT = Preprocessing(96, 0.9, 'lanczos', (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def random_variables(model, channels=3, seed=0, dtype=np.float32):
    """Random values for every variable, without compiling the initialization."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_variables(model, key, (64, 64, channels)), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), shapes)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def timm_config(name, num_classes, preprocessing):
    """The content of timm's config.json."""
    size = preprocessing.size
    details = {'tag': 'in1k', 'custom_load': False, 'input_size': [3, size, size], 'fixed_input_size': False}
    details |= {'interpolation': preprocessing.interpolation, 'crop_pct': preprocessing.crop_pct, 'crop_mode': 'center'}
    details |= {'mean': preprocessing.mean, 'std': preprocessing.std, 'num_classes': num_classes, 'pool_size': [7, 7]}
    details |= {'first_conv': 'conv1', 'classifier': 'fc', 'origin_url': 'https://example.org'}
    arch = name.split('.')[0]
    return {'architecture': arch, 'num_classes': num_classes, 'num_features': 2048, 'pretrained_cfg': details}


class Hub:
    """A cache in the layout of huggingface_hub."""

    def __init__(self, folder):
        self.folder = folder

    def put(self, name, config):
        """Adds a repository with its config.json; returns the folder of its files."""
        repository = self.folder / f'models--timm--{name}'
        files = repository / 'snapshots' / HASH
        files.mkdir(parents=True)
        (repository / 'refs').mkdir()
        (repository / 'refs' / 'main').write_text(HASH)
        (files / 'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
        return files


@functools.cache
def torch_shapes(arch):
    """Names and shapes of an architecture's state dict, with one class, and the names of its head."""
    spec = get_spec(arch, num_classes=1)
    model = ResNet(spec, scan_blocks=not spec.blocks.channels)  # faster to trace
    shapes = jax.eval_shape(lambda key: as_stored(init_variables(model, key, (64, 64, 3))), jax.random.key(0))
    leaves = {
        jax.tree_util.keystr(path[1:], simple=True, separator='/'): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    names = torch_names(spec, list(leaves))
    shapes = {names[path]: torch_shape(path, shape, spec) for path, shape in leaves.items()}
    return shapes, {names['head/kernel'], names['head/bias']}


def write_header(path, shapes):
    """Writes a sparse safetensors file: its values take no disk space."""
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open('wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        file.truncate(8 + len(text) + offset)
