"""The table of published checkpoints: complete, valid, and equal to timm's if installed."""

import importlib

import pytest

from resnet_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, from_timm_config
from resnet_jax.errors import InputError
from resnet_jax.weights.published import get_checkpoint, list_checkpoints

FILES = {'resnet': 150, 'resnetv2': 24, 'resnest': 8, 'sknet': 3, 'res2net': 9, 'senet': 9}
NAMELESS = 'resnext101_32x48d.fb_wsl_ig1b_ft_in1k'  # timm has its configuration, but no function that builds it
HALF = (0.5, 0.5, 0.5)


def test_count():
    names = list_checkpoints()
    assert len(names) == len(set(names)) == sum(FILES.values()) + 1 == 204
    assert NAMELESS in names


def test_rows_are_sorted_and_appear_once(root):
    lines = (root / 'resnet_jax' / 'weights' / 'published.csv').read_text().splitlines()[1:]
    assert [line.split(',')[0] for line in lines] == list_checkpoints()


@pytest.mark.parametrize('name', list_checkpoints())
def test_fields_are_valid(name):
    checkpoint = get_checkpoint(name)
    assert checkpoint.name == name
    arch, tag = name.split('.')
    assert checkpoint.arch == arch
    assert tag
    assert checkpoint.license in {'apache-2.0', 'bsd-3-clause', 'cc-by-nc-4.0', 'unknown'}
    assert checkpoint.num_classes in {0, 1000, 11821, 21843}
    assert 160 <= checkpoint.preprocessing.size <= 480
    assert checkpoint.preprocessing.crop_mode == 'center'
    assert (checkpoint.preprocessing.mean, checkpoint.preprocessing.std) in [
        (IMAGENET_MEAN, IMAGENET_STD),
        (HALF, HALF),
    ]
    if checkpoint.test_preprocessing is not None:
        assert checkpoint.test_preprocessing.size > checkpoint.preprocessing.size
        assert checkpoint.test_preprocessing.crop_pct >= checkpoint.preprocessing.crop_pct
    # An accuracy for each size, except without an ImageNet-1k head or a name in timm.
    measured = checkpoint.num_classes == 1000 and name != NAMELESS
    assert (checkpoint.top1 is not None) == measured
    assert (checkpoint.top1_test is not None) == (measured and checkpoint.test_preprocessing is not None)
    for top1 in (checkpoint.top1, checkpoint.top1_test):
        assert top1 is None or 40 < top1 < 88


def test_resnet50_by_hand():
    checkpoint = get_checkpoint('resnet50.a1_in1k')
    assert checkpoint.arch == 'resnet50'
    assert checkpoint.num_classes == 1000
    assert checkpoint.preprocessing == Preprocessing(224, 0.95, 'bicubic', IMAGENET_MEAN, IMAGENET_STD)
    assert checkpoint.test_preprocessing == Preprocessing(288, 1.0, 'bicubic', IMAGENET_MEAN, IMAGENET_STD)
    assert (checkpoint.top1, checkpoint.top1_test) == (80.38, 81.24)
    assert checkpoint.license == 'apache-2.0'


@pytest.mark.parametrize(
    ('name', 'preprocessing', 'test_preprocessing', 'top1', 'top1_test', 'license_'),
    [
        ('resnet18.tv_in1k', (224, 0.875, 'bilinear'), None, 69.75, None, 'bsd-3-clause'),
        ('resnet50.tv2_in1k', (176, 0.875, 'bilinear'), (224, 0.965, 'bilinear'), 79.43, 80.85, 'bsd-3-clause'),
        # Without test_crop_pct, the larger size has the training crop.
        ('resnet50.a3_in1k', (160, 0.95, 'bicubic'), (224, 0.95, 'bicubic'), 75.99, 78.05, 'apache-2.0'),
        ('resnext101_32x48d.fb_wsl_ig1b_ft_in1k', (224, 0.875, 'bilinear'), None, None, None, 'cc-by-nc-4.0'),
        (
            'resnetv2_50.a1h_in1k',
            (224, 0.95, 'bicubic', HALF, HALF),
            (288, 1.0, 'bicubic', HALF, HALF),
            *(80.41, 81.41, 'apache-2.0'),
        ),
        ('resnest269e.in1k', (416, 0.928, 'bicubic'), None, 84.54, None, 'apache-2.0'),
        ('res2net50d.in1k', (224, 0.875, 'bilinear'), None, 80.28, None, 'unknown'),
    ],
)
def test_values_by_hand(name, preprocessing, test_preprocessing, top1, top1_test, license_):
    checkpoint = get_checkpoint(name)
    assert checkpoint.preprocessing == Preprocessing(*preprocessing)
    assert checkpoint.test_preprocessing == (test_preprocessing and Preprocessing(*test_preprocessing))
    assert (checkpoint.top1, checkpoint.top1_test, checkpoint.license) == (top1, top1_test, license_)


def test_list_checkpoints_takes_patterns():
    assert list_checkpoints('resnet152d.*') == ['resnet152d.gluon_in1k', 'resnet152d.ra2_in1k']
    assert list_checkpoints('nothing*') == []


def test_an_unknown_name_suggests_similar_ones():
    with pytest.raises(InputError, match=r"unknown checkpoint 'resnet50.a1'; nearest known: .*resnet50\.a1_in1k"):
        get_checkpoint('resnet50.a1')
    with pytest.raises(InputError, match=r"unknown checkpoint '!'; known: .*; list_checkpoints\(\) lists all"):
        get_checkpoint('!')


def timm_configurations(timm):
    for module, count in FILES.items():
        names = timm.list_models(pretrained=True, module=module)
        assert len(names) == count, module
        yield from ((name, timm.models.get_pretrained_cfg(name)) for name in names)
    arch, tag = NAMELESS.split('.')
    yield NAMELESS, importlib.import_module('timm.models.resnet').default_cfgs[arch].cfgs[tag]


def test_the_table_equals_timm():
    timm = pytest.importorskip('timm')
    configurations = dict(timm_configurations(timm))
    assert sorted(configurations) == list_checkpoints()
    for name, config in configurations.items():
        checkpoint, fields = get_checkpoint(name), config.to_dict()
        assert checkpoint.preprocessing == from_timm_config(fields), name
        larger = from_timm_config(fields, test_size=True) if config.test_input_size else None
        assert checkpoint.test_preprocessing == larger, name
        assert config.test_input_size or not config.test_crop_pct, name
        assert checkpoint.num_classes == config.num_classes, name
        assert checkpoint.license == (config.license or 'unknown'), name
