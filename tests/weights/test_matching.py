"""Finding a network among the tensors of a file: prefixes, heads, what is left over, and mismatches."""

import re
import warnings

import jax
import numpy as np
import pytest

from experiments.shared.goldens import golden_tensors
from resnet_jax import InputError, ResNet, create_model, from_pretrained, get_spec, load_weights
from resnet_jax.weights.files import write_safetensors
from resnet_jax.weights.matching import match_tensors, variables_from_tensors
from resnet_jax.weights.names import tensors_from_variables
from tests.weights.helpers import assert_equal, random_variables

TINY = {'stage_sizes': (1, 1, 1, 1), 'widths': (4, 8, 16, 32), 'stem_width': 4}
MODEL = create_model('resnet18', 10, **TINY)
VARIABLES = random_variables(MODEL)
WHOLE = tensors_from_variables(VARIABLES, MODEL)
TRUNK = {name: value for name, value in WHOLE.items() if not name.startswith('fc.')}
HEAD = {name: value for name, value in WHOLE.items() if name.startswith('fc.')}
MLP = {f'fc.{name}': np.ones((3, 3), np.float32) for name in ('0.weight', '0.bias', '2.weight', '2.bias')}


def below(prefix, tensors):
    return {f'{prefix}{name}': value for name, value in tensors.items()}


def other(tensors):
    """Other values under the same names."""
    return {name: value + 1 for name, value in tensors.items()}


def trunk_of(variables):
    return {**variables, 'params': {name: tree for name, tree in variables['params'].items() if name != 'head'}}


def load(tensors, model=MODEL, **more):
    """The variables, and the warnings in one string."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        variables = variables_from_tensors(tensors, model, **more)
    return variables, '; '.join(str(warning.message) for warning in caught)


def children(name):
    """The name in ``nn.Sequential(*network.children())``."""
    module, rest = name.split('.', 1)
    return f'{ {"conv1": 0, "bn1": 1}.get(module) if module in ("conv1", "bn1") else int(module[-1]) + 3 }.{rest}'


WRAPPED = {
    'DataParallel': below('module.', WHOLE),
    'compiled, distributed, in a trainer': below('state_dict.model._orig_mod.module.net.resnet.encoder.', WHOLE),
    'with a loss': below('state_dict.model.', WHOLE) | {'state_dict.criterion.weight': np.ones(10)},
    'averaged': below('module.', WHOLE) | {'n_averaged': np.array(3)},
    'with counters': WHOLE | {'bn1.num_batches_tracked': np.array(3)},
    'with an optimizer': WHOLE | {'optimizer.state.momentum': np.ones(3), 'queue': np.ones(3)},
    'shortcuts': {re.sub('downsample', 'shortcut', re.sub('^fc', 'linear', name)): WHOLE[name] for name in WHOLE},
    'classifier': below('backbone.', TRUNK) | {f'backbone.classifier{name[2:]}': value for name, value in HEAD.items()},
}


@pytest.mark.parametrize('kind', WRAPPED)
def test_a_network_is_found_below_any_prefix(kind):
    variables, said = load(WRAPPED[kind])
    assert_equal(variables, VARIABLES)
    extra = {
        'with a loss': 'one tensor is left out as no part of the network: state_dict.criterion.weight',
        'averaged': 'one tensor is left out as no part of the network: n_averaged',
        'with an optimizer': '2 tensors are left out as no part of the network: optimizer.state.momentum, queue',
    }
    assert said == extra.get(kind, '')


@pytest.mark.parametrize('start', ['', 'module.'])
def test_a_head_beside_the_network(start):
    """As in mmpretrain."""
    tensors = below(f'{start}backbone.', TRUNK) | below(f'{start}head.', HEAD)
    variables, said = load(tensors)
    assert_equal(variables, VARIABLES)
    assert said == f'the head is {start}head.fc'
    assert match_tensors(tensors, create_model('resnet18', 7, **TINY)).num_classes == 10


HEADLESS = {
    'plain': TRUNK,
    'pre-trained by contrast': below('module.encoder_q.', TRUNK | MLP) | {'module.queue': np.ones((3, 4))},
    'detection': below('backbone.body.', TRUNK) | below('backbone.fpn.', {'inner.weight': np.ones(3)}),
    'segmentation': below('backbone.', TRUNK) | {'classifier.4.weight': np.ones((21, 32, 1, 1))},
    'children': below('backbone.', {children(name): value for name, value in TRUNK.items()}),
    'cosine': TRUNK | {'fc.weight': HEAD['fc.weight']},
    'other width': TRUNK | {'fc.weight': np.ones((10, 31), np.float32), 'fc.bias': HEAD['fc.bias']},
    'prototypes': TRUNK | below('head.mlp.', {'0.weight': np.ones((3, 32))}) | {'head.last_layer.weight_g': np.ones(3)},
}


@pytest.mark.parametrize('kind', HEADLESS)
def test_other_heads_are_replaced(kind):
    model = create_model('resnet18', 7, **TINY)
    variables, said = load(HEADLESS[kind], model, key=jax.random.key(3))
    assert variables['params']['head']['kernel'].shape == (32, 7)
    assert 0 < np.abs(variables['params']['head']['kernel']).max() <= 32**-0.5
    assert_equal(trunk_of(variables), trunk_of(VARIABLES))
    old = {
        'pre-trained by contrast': 'module.encoder_q.fc.0.weight, module.encoder_q.fc.0.bias, '
        'module.encoder_q.fc.2.weight, module.encoder_q.fc.2.bias',
        'segmentation': 'classifier.4.weight',
        'cosine': 'fc.weight',
        'other width': 'fc.weight, fc.bias',
        'prototypes': 'head.mlp.0.weight, head.last_layer.weight_g',
    }
    new = 'the weights have no head: that for 7 classes is new and not trained yet'
    assert said.startswith(f'a new head for 7 classes replaces {old[kind]}' if kind in old else new)
    left = {'pre-trained by contrast': 'module.queue', 'detection': 'backbone.fpn.inner.weight'}
    assert said.endswith(
        f'; one tensor is left out as no part of the network: {left.get(kind)}' if kind in left else ''
    )
    assert ('; ' in said) == (kind in left)
    headless, _ = load(HEADLESS[kind], model, headless=True)
    assert_equal(headless, trunk_of(VARIABLES))
    assert match_tensors(HEADLESS[kind], model).num_classes is None


def test_children_of_a_network_for_small_images():
    model = create_model('resnet18_cifar', 10, **TINY)
    variables = random_variables(model)
    names = {name: re.sub(r'^layer(\d)', lambda match: str(int(match[1]) + 1), name) for name in TRUNK}
    tensors = tensors_from_variables(variables, model)
    names = {name: re.sub('^conv1', '0', re.sub('^bn1', '1', each)) for name, each in names.items()}
    found, _ = load({each: tensors[name] for name, each in names.items()}, model, headless=True)
    assert_equal(found, trunk_of(variables))


SEVERAL = {
    'contrast': ('module.encoder_q.', 'module.encoder_k.'),
    'distillation': ('student.module.backbone.', 'teacher.backbone.'),
    'average': ('state_dict.', 'state_dict_ema.'),
    'bare': ('', 'teacher.'),
    'nested': ('encoder.', 'momentum.encoder.'),
}


@pytest.mark.parametrize('kind', SEVERAL)
def test_one_of_several_networks_is_chosen_by_its_prefix(kind):
    first, second = SEVERAL[kind]
    tensors = below(first, WHOLE) | below(second, other(WHOLE))
    shown = ', '.join(prefix.removesuffix('.') or "'' (no prefix)" for prefix in (first, second))
    with pytest.raises(
        InputError, match=f'^2 such networks are found, at {re.escape(shown)}: choose one with --weights_prefix'
    ):
        variables_from_tensors(tensors, MODEL)
    for prefix in (first, first.removesuffix('.'), first.split('.')[0]):
        if prefix == 'module':
            continue
        variables, said = load(tensors, prefix=prefix)
        assert_equal(variables, VARIABLES)
        assert said.startswith(f'{len(WHOLE)} tensors are left out as no part of the network: {second}')
    variables, _ = load(tensors, prefix=second)
    assert_equal(variables, jax.tree.map(lambda leaf: leaf + 1, VARIABLES))
    with pytest.raises(
        InputError, match=f'^weights_prefix=elsewhere: the network is not found there, but at {re.escape(shown)}$'
    ):
        variables_from_tensors(tensors, MODEL, prefix='elsewhere')


def test_a_part_of_two_prefixes_does_not_choose():
    tensors = below('student.backbone.', WHOLE) | below('teacher.backbone.', other(WHOLE))
    with pytest.raises(InputError, match=r'2 such networks are found, at student\.backbone, teacher\.backbone'):
        variables_from_tensors(tensors, MODEL, prefix='backbone')


def test_of_several_networks_the_one_that_fits_is_found():
    """A student and a teacher of the same names but another width, or of more blocks."""
    wide = create_model('resnet18', 10, **TINY | {'widths': (8, 8, 16, 32)})
    deep = create_model('resnet18', 10, **TINY | {'stage_sizes': (2, 1, 1, 1)})
    for teacher in (wide, deep):
        tensors = below('teacher.', tensors_from_variables(random_variables(teacher), teacher)) | below(
            'student.', WHOLE
        )
        assert_equal(load(tensors)[0], VARIABLES)


def test_two_names_of_the_same_tensors_are_one_network():
    assert_equal(load(below('model.', WHOLE) | below('copy.', WHOLE))[0], VARIABLES)


def lists_are_short(message):
    return len(message) < 600 and '\n' not in message


@pytest.mark.parametrize('headless', [False, True])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize(
    ('tensors_of', 'arch'), [('resnet101', 'resnet50'), ('resnet50', 'resnet101'), ('resnet50', 'seresnet50')]
)
def test_half_a_network_is_never_loaded(prefix, headless, tensors_of, arch):
    """Not even if all names and shapes of the smaller network are there."""
    model = create_model(tensors_of)
    assert match_tensors(golden_tensors(tensors_of), model).num_classes == 1000
    tensors = below(
        prefix, {k: v for k, v in golden_tensors(tensors_of).items() if not (headless and k.startswith('fc.'))}
    )
    with pytest.raises(InputError, match=r'^the tensors do not fit the network: \d+ (missing|unexpected): ') as caught:
        match_tensors(tensors, create_model(arch, 7))
    assert lists_are_short(str(caught.value))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'layer2.0.bn1.weight': None}, '1 missing: backbone.layer2.0.bn1.weight'),
        (
            {'conv1.weight': np.zeros((4, 0, 7, 7), np.float32)},
            r'1 with wrong shapes: backbone.conv1.weight \(4, 0, 7, 7\)',
        ),
        ({'layer1.1.conv1.weight': np.zeros(3)}, '1 unexpected: backbone.layer1.1.conv1.weight'),
        ({'layer5.0.conv1.weight': np.zeros(3)}, '1 unexpected: backbone.layer5.0.conv1.weight'),
        ({'bn1.weight': np.zeros(4, np.int32)}, 'the tensor of stem/norm/scale must be floating-point, got int32'),
    ],
)
def test_tensors_that_nearly_fit_are_refused(change, message):
    tensors = {name: value for name, value in (WHOLE | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        variables_from_tensors(below('backbone.', tensors), MODEL)


def test_other_files_are_refused():
    for tensors in (
        {},
        {'patch_embed.weight': np.ones(3)},
        below('patch_embed.', dict.fromkeys('abcdefghij', np.ones(3))),
    ):
        with pytest.raises(InputError, match=r'none of its names \(.* and 58 more\) is found among') as caught:
            match_tensors(tensors, MODEL)
        assert lists_are_short(str(caught.value))
    few = {'stage.conv1.weight': np.ones(3), 'patch_embed.weight': np.ones(3)}
    with pytest.raises(InputError, match=r'59 missing: .*; the file has stage.conv1.weight, patch_embed.weight$'):
        match_tensors(few, MODEL)


def test_names_with_many_dots_take_no_time():
    match_tensors(WHOLE | {'a.' * 500_000: np.ones(1)}, MODEL)


def test_a_head_is_needed_unless_it_is_replaced_or_not_wanted(tmp_path):
    path, options = tmp_path / 'weights.safetensors', {'arch': 'resnet18', **TINY}
    write_safetensors(path, TRUNK)
    with pytest.raises(InputError, match=r'weights\.safetensors has no head: pass num_classes for a new one$'):
        from_pretrained(path, **options)
    with pytest.warns(UserWarning, match='the weights have no head: that for 7 classes is new'):
        loaded = from_pretrained(path, num_classes=7, **options)
    assert loaded.model.spec.head.num_classes == 7
    loaded = from_pretrained(path, headless=True, **options)
    assert_equal(loaded.variables, trunk_of(VARIABLES))
    write_safetensors(path, TRUNK | MLP)
    with pytest.raises(InputError, match=r'has no linear head, but fc.0.bias, fc.0.weight, .*: pass num_classes'):
        from_pretrained(path, **options)
    with pytest.warns(UserWarning, match='4 tensors are left out as no part of the network: fc'):
        assert_equal(from_pretrained(path, headless=True, **options).variables, trunk_of(VARIABLES))
    write_safetensors(path, below('backbone.', TRUNK) | below('head.', HEAD))
    with pytest.warns(UserWarning, match=r'the head is head\.fc'):
        assert_equal(from_pretrained(path, **options).variables, VARIABLES)


def test_frozen_batch_normalization(tmp_path):
    """Its tensors are those of batch normalization, without the counter."""
    tensors = {name: value for name, value in WHOLE.items() if 'num_batches' not in name}
    assert_equal(load(below('backbone.body.', tensors))[0], VARIABLES)


def test_all_mismatches_are_reported_at_once(small, tmp_path):
    model, _, tensors = small
    path = tmp_path / 'weights.safetensors'
    wrong = {name: value for name, value in tensors.items() if name not in ('bn1.bias', 'layer3.0.conv2.weight')}
    wrong |= {'layer9.0.conv1.weight': np.zeros((2, 2, 1, 1)), 'bn1.running_median': np.zeros(3)}
    wrong |= {'layer1.0.bn2.weight': np.ones(7), 'layer4.0.conv1.weight': np.ones((96, 192, 1, 1))}
    write_safetensors(path, wrong)
    with pytest.raises(InputError) as caught:
        load_weights(path, model)
    message = str(caught.value)
    assert message.startswith(f'{path}: ')
    assert '2 missing: layer3.0.conv2.weight, bn1.bias;' in message
    assert '2 unexpected: bn1.running_median, layer9.0.conv1.weight;' in message
    assert '2 with wrong shapes: ' in message
    assert 'layer1.0.bn2.weight (7,) instead of (32,)' in message
    assert 'layer4.0.conv1.weight (96, 192, 1, 1) instead of (96, 192, 3, 3)' in message


def test_another_number_of_classes_gets_a_new_head_with_a_warning(small, tmp_path):
    model, _, tensors = small
    path = tmp_path / 'weights.safetensors'
    write_safetensors(path, tensors)
    whole = load_weights(path, model)
    with pytest.warns(UserWarning, match='a new head for 7 classes replaces that for 1000'):
        other = load_weights(path, create_model('test_resnet', 7), key=jax.random.key(3))
    head = other['params'].pop('head')
    assert head['kernel'].shape == (96, 7)
    assert np.abs(head['kernel']).max() <= 96**-0.5
    np.testing.assert_array_equal(head['bias'], 0)
    del whole['params']['head']
    assert_equal(other, whole)


@pytest.mark.parametrize('name', ['test_resnet', 'resnetv2_18', 'legacy_seresnet18'])
@pytest.mark.parametrize('channels', [1, 4])
def test_other_input_channels_adapt_only_the_first_kernel(name, channels):
    """As in timm.models.adapt_input_conv."""
    model, tensors = create_model(name), golden_tensors(name)
    with pytest.warns(UserWarning, match=f'the first kernel is adapted from 3 to {channels} channels'):
        adapted = tensors_from_variables(variables_from_tensors(tensors, model, channels), model)
    first = next(key for key, value in tensors.items() if value.shape[1:2] == (3,))
    kernel = np.asarray(tensors[first])
    expected = kernel.sum(1, keepdims=True) if channels == 1 else kernel[:, [0, 1, 2, 0]] * np.float32(0.75)
    np.testing.assert_array_equal(adapted.pop(first), expected)
    for key, value in adapted.items():
        np.testing.assert_array_equal(value, tensors[key])


def test_zero_channels_are_refused():
    with pytest.raises(InputError, match='in_channels=0 must be at least 1'):
        variables_from_tensors({}, create_model('resnet20'), 0)


def test_weights_of_another_width_are_refused(small):
    _, _, tensors = small
    wider = ResNet(get_spec('test_resnet', stem_width=64))
    with pytest.raises(InputError, match=r'with wrong shapes: .*conv1\.0\.weight'):
        match_tensors(tensors, wider)
