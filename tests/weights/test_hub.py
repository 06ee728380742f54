"""Networks from the Hugging Face hub, from a cache on disk, and errors."""

import sys

import pytest

from resnet_jax import InputError, from_pretrained, get_checkpoint, get_spec, list_checkpoints, load_weights
from resnet_jax.weights.files import write_safetensors
from resnet_jax.weights.matching import match_tensors
from resnet_jax.weights.sources import model_of, open_source
from tests.weights.helpers import HALF_BIT, SMALL, assert_equal, timm_config, torch_shapes, write_header


def check_published(hub, name):
    """The repository of a published checkpoint matches its network, tensor by tensor."""
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
        with pytest.raises(InputError, match='has no head: pass num_classes'):
            model_of(source, path)
    model, arch = model_of(source, path, num_classes=None if classes else 7)
    assert arch == source.arch == known.arch
    assert model.spec == get_spec(known.arch, num_classes=classes or 7)
    assert source.preprocessing == known.preprocessing
    match = match_tensors(source.tensors, model)
    assert len(match.tensors) == len(given)
    assert match.num_classes == (classes or None)
    assert ('params/head/kernel' in match.tensors) == bool(classes)
    assert match.left_over == match.old_head == ()


# One small network for each kind of names.
PUBLISHED = [
    *('resnet18.a1_in1k', 'ecaresnetlight.miil_in1k', 'legacy_seresnet18.in1k', 'skresnet18.ra_in1k', SMALL),
    *('resnest14d.gluon_in1k', 'res2net50_48w_2s.in1k', 'resnetv2_50x1_bit.goog_in21k', 'resnet50.bamboo'),
]


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_checkpoints_match_their_networks(hub, name):
    check_published(hub, name)


@pytest.mark.slow
def test_all_published_checkpoints_match_their_networks(hub):
    for name in list_checkpoints():
        check_published(hub, name)
    assert len(list(hub.folder.glob('models--timm--*'))) == 204


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_a_network_from_the_hub(hub, small, file):
    model, variables, tensors = small
    known = get_checkpoint(SMALL)
    files = hub.put(SMALL, timm_config(SMALL, 1000, known.preprocessing))
    write_safetensors(files / file, tensors)  # the format is detected from the content
    loaded = from_pretrained(f'hf:timm/{SMALL}')
    assert (loaded.arch, loaded.model) == ('test_resnet', model)
    assert loaded.preprocessing == known.preprocessing
    assert_equal(loaded.variables, variables)
    assert_equal(load_weights(f'hf:timm/{SMALL}@main', model), variables)


def test_a_failed_download_is_a_one_line_error(hub, small):
    with pytest.raises(InputError, match=r'^hf:timm/nothing could not be downloaded: .+') as error:
        open_source('hf:timm/nothing')
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 300
    with pytest.raises(InputError, match='hf:not a name/at all/of it must be hf:OWNER/NAME'):
        open_source('hf:not a name/at all/of it')
    with pytest.raises(InputError, match='hf: must be hf:OWNER/NAME'):
        open_source('hf:')
    files = hub.put(SMALL, timm_config(SMALL, 1000, HALF_BIT))
    with pytest.raises(InputError, match=f'hf:timm/{SMALL} could not be downloaded'):
        open_source(f'hf:timm/{SMALL}')
    write_safetensors(files / 'model.safetensors', small[2])
    with pytest.raises(InputError, match=f'hf:timm/{SMALL}@other could not be downloaded'):
        open_source(f'hf:timm/{SMALL}@other')


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('{', 'not a timm config.json: expected JSON with the field architecture'),
        ('[]', 'not a timm config.json: expected JSON with the field architecture'),
        ('{"num_classes": 3}', 'not a timm config.json: expected JSON with the field architecture'),
        ('{"architecture": ["test_resnet"]}', 'not a timm config.json: architecture must be a string'),
        ('{"architecture": "vit_tiny"}', "unknown architecture 'vit_tiny'"),
        (
            '{"architecture": "test_resnet", "pretrained_cfg": 3}',
            r'config must be a pretrained_cfg dict, got int',
        ),
        ('{"architecture": "test_resnet", "pretrained_cfg": {"std": 3}}', r'config\.json: std=3 must be three numbers'),
    ],
)
def test_an_invalid_configuration_is_a_one_line_error(hub, config, message):
    write_header(hub.put(SMALL, config) / 'model.safetensors', torch_shapes('test_resnet')[0])
    with pytest.raises(InputError, match=message) as error:
        from_pretrained(f'hf:timm/{SMALL}')
    assert '\n' not in str(error.value)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(InputError, match='hf:timm/x needs the package huggingface_hub: pip install huggingface_hub'):
        open_source('hf:timm/x')
