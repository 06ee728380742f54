"""Recipes and their overrides."""

import dataclasses
import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import RECIPES, InputError, TrainConfig, get_config
from resnet_jax.data.batches import steps_per_epoch, train_indices
from resnet_jax.data.examples import check_memory
from resnet_jax.settings import values_of
from resnet_jax.tasks.kinds import make_task
from resnet_jax.training.config import optimizer_of


def flat(config):
    """All settings of a configuration by name, and its peak learning rate."""
    return types.SimpleNamespace(**values_of(config), peak_learning_rate=config.peak_learning_rate)


FLAT = {name: flat(config) for name, config in RECIPES.items()}


def chosen(recipe, **overrides):
    """The settings of a recipe with overrides."""
    return flat(get_config(recipe, **overrides))


def test_names_and_json_round_trip_of_recipes():
    for name, config in RECIPES.items():
        assert config.recipe == name
        assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_published_settings():
    """As printed: He et al. 2015 section 4.2, Zagoruyko 2016 section 3, Xie et al. 2017 section 5.3."""
    he, wrn, resnext = (FLAT[name] for name in ('he2015_cifar', 'wrn_cifar', 'resnext_cifar'))
    for config in (he, wrn, resnext):
        assert (config.batch_size, config.learning_rate, config.momentum) == (128, 0.1, 0.9)
        assert (config.crop_padding, config.horizontal_flip, config.decayed) == (4, True, 'all')
    assert (he.crop_fill, wrn.crop_fill, resnext.crop_fill) == ('mean', 'reflect', 'mean')
    # 32,000 and 48,000 of 64,000 steps, at 390 steps an epoch
    assert [round(steps / 390) for steps in (32_000, 48_000, 64_000)] == [*he.decay_epochs, he.epochs]
    assert (he.weight_decay, he.decay_factor, he.nesterov) == (1e-4, 0.1, False)
    assert (wrn.weight_decay, wrn.decay_factor, wrn.nesterov) == (5e-4, 0.2, True)
    assert (wrn.decay_epochs, wrn.epochs) == ((60, 120, 160), 200)
    assert resnext.nesterov
    assert (resnext.decay_epochs, resnext.epochs, resnext.weight_decay) == ((150, 225), 300, 5e-4)


def test_other_epochs_scale_the_schedule():
    assert chosen('he2015_cifar', epochs=82).decay_epochs == (41, 61.5)
    assert chosen('digits_quick', epochs=10).warmup_epochs == pytest.approx(1)
    assert chosen('digits_quick', epochs=10, warmup_epochs=5).warmup_epochs == 5
    with pytest.raises(InputError, match="unknown setting 'nope'; known: "):
        get_config('digits_quick', nope=1)


def test_another_task_or_optimizer_changes_dependent_settings():
    sgd = chosen('digits_quick')
    assert get_config('digits_quick', optimizer='sgd') == get_config('digits_quick')
    adam = chosen('digits_quick', optimizer='adamw')
    assert (adam.learning_rate, adam.label_smoothing) == (1e-3, sgd.label_smoothing)
    values = chosen('digits_quick', task='regression')
    assert (values.learning_rate, values.label_smoothing, values.crop_padding) == (pytest.approx(0.02), 0.0, 0)
    assert not chosen('cifar_fast', task='regression').horizontal_flip
    asked = chosen('digits_quick', task='regression', optimizer='adam', learning_rate=0.5)
    assert asked.learning_rate == 0.5
    muon = chosen('bag_of_tricks', optimizer='muon')
    assert (muon.peak_learning_rate, muon.momentum) == (1e-3, 0.95)
    plain = chosen('cifar_fast', optimizer='sgd')
    assert (plain.peak_learning_rate, plain.momentum, plain.weight_decay) == (0.1, 0.9, 1e-4)
    adamw = chosen('cifar_fast', optimizer='adamw')
    assert (adamw.b1, adamw.weight_decay) == (0.9, 0.02)
    assert not hasattr(adamw, 'momentum')  # AdamW has none
    assert chosen('cifar_fast', optimizer='lars', weight_decay=0.5).weight_decay == 0.5
    lamb = chosen('digits_quick', optimizer='lamb')
    assert (lamb.peak_learning_rate, lamb.weight_decay) == (1e-3, 0.02)
    assert chosen('bit_cifar10', optimizer='adamw').weight_decay == 0.0
    assert chosen('rsb_a2', optimizer='sgd').peak_learning_rate == 0.1


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_recipe_fits_its_dataset(recipe):
    """At least one whole batch, and datasets in memory fit."""
    config = FLAT[recipe]
    num = {'digits': 1_437, 'cifar10': 50_000, 'imagenet2012': 1_281_167}[config.dataset]
    assert steps_per_epoch(num, config.batch_size) >= 1
    assert len(train_indices(0, 0, num, config.batch_size, config.augmentation_repeats)) == config.batch_size
    if config.dataset == 'cifar10':
        size = config.image_size or 32
        check_memory('cifar10', 60_000, (size, size, 3))


@pytest.mark.parametrize('recipe', RECIPES)
def test_regression_has_no_augmentation(recipe):
    config = get_config(recipe, task='regression')
    assert config.augmentation == TrainConfig().augmentation
    assert config.objective == dataclasses.replace(TrainConfig().objective, task='regression')
    optimizer = RECIPES[recipe].optimizer
    assert config.optimizer == dataclasses.replace(optimizer, learning_rate=optimizer.learning_rate / 5)


def test_another_schedule_has_no_decay_epochs():
    assert not hasattr(chosen('torchvision_v1', schedule='cosine'), 'decay_epochs')
    assert chosen('torchvision_v1', epochs=180).decay_epochs == (60, 120)


def test_an_average_keeps_its_fraction_of_training():
    whole, part = chosen('torchvision_v2'), chosen('torchvision_v2', epochs=60)
    assert 1 / (1 - part.ema_decay) == pytest.approx(0.1 / (1 - whole.ema_decay))
    assert chosen('torchvision_v2', epochs=1).ema_decay >= 0
    assert chosen('torchvision_v2', epochs=60, ema_decay=0.5).ema_decay == 0.5


def test_another_loss_resets_the_threshold():
    assert chosen('rsb_a2').target_threshold == 0.2
    assert chosen('rsb_a2', loss='softmax_cross_entropy').target_threshold is None


@pytest.mark.parametrize(
    ('fields', 'needs'),
    [
        ({'momentum': 0.8, 'optimizer': 'adam'}, 'optimizer=sgd, lars, rmsprop_tf or muon'),
        ({'nesterov': True, 'optimizer': 'lamb'}, 'optimizer=sgd or lars'),
        ({'decay_factor': 0.5}, 'schedule=step'),
        ({'schedule_power': 2.0}, 'schedule=polynomial'),
        ({'final_learning_rate': 0.01, 'schedule': 'constant'}, 'schedule=cosine, linear or polynomial'),
        ({'warmup_start': 0.1, 'warmup_epochs': 0}, 'warmup_epochs or one_cycle'),
        ({'ema_warmup': True}, 'ema_decay'),
        ({'distill_temperature': 2.0}, 'distill_from'),
        ({'crop_ratio': (0.5, 2.0)}, 'crop_area'),
    ],
)
def test_settings_without_effect_raise(fields, needs):
    with pytest.raises(InputError, match=f'has no effect without {needs}$'):
        get_config('digits_quick', **fields)


@pytest.mark.parametrize(
    ('recipe', 'fields'),
    [
        ('he2015_cifar', {'crop_padding': 0}),
        ('wrn_cifar', {'crop_padding': 0}),
        ('rsb_a2', {'policy': None}),
        ('rsb_a2', {'warmup_epochs': 0}),
        ('rsb_a2', {'epochs': 30, 'optimizer': optax.sgd(0.1)}),
    ],
)
def test_dependent_settings_are_reset(recipe, fields):
    found = get_config(recipe, **fields)
    assert found.augmentation.crop_fill == ('black' if fields.keys() & {'crop_padding', 'policy'} else 'mean')


def test_an_optax_optimizer_keeps_clip_norm():
    assert get_config('rsb_a2', optimizer='optax.lion').optimizer.clip_norm == 1
    assert get_config('rsb_a2', optimizer=optax.lion).optimizer.clip_norm == 1


def test_an_unknown_recipe_raises():
    with pytest.raises(InputError, match=r"unknown recipe 'he2015'; nearest known: he2015_cifar"):
        get_config('he2015')


def test_published_settings_on_imagenet():
    """As printed in the papers' tables, or set in their authors' code."""
    for name, config in FLAT.items():
        assert getattr(config, 'momentum', None) == {'cifar_fast': 0.6, 'lamb': None}.get(
            name if name == 'cifar_fast' else config.optimizer, 0.9
        )
    assert {FLAT[name].dataset for name in IMAGENET} == {'imagenet2012'}
    he, fb, resnext = (FLAT[name] for name in ('he2015_imagenet', 'fb_resnet_torch', 'resnext_imagenet'))
    for config in (he, fb, resnext, FLAT['torchvision_v1']):
        assert (config.batch_size, config.peak_learning_rate, config.weight_decay) == (256, 0.1, 1e-4)
        assert (config.schedule, config.decay_factor, config.decayed, config.crop_size) == ('step', 0.1, 'all', 224)
    assert he.epochs == round(60e4 * 256 / 1_281_167)
    # 224 pixels of a shorter side of 480 or 256
    np.testing.assert_allclose(he.crop_area, [(224 / 480) ** 2, (224 / 256) ** 2], atol=0.005)
    assert (fb.epochs, fb.nesterov, fb.color_jitter, fb.lighting) == (90, True, (0.4, 0.4, 0.4), 0.1)
    assert resnext.decay_epochs == (30, 60, 90)
    tricks = FLAT['bag_of_tricks']
    assert (tricks.batch_size, tricks.peak_learning_rate, tricks.epochs) == (1024, 0.4, 200)
    assert (tricks.label_smoothing, tricks.mixup, tricks.decayed, tricks.warmup_epochs) == (0.1, 0.2, 'kernels', 5)
    rs = FLAT['resnet_rs']
    assert (rs.batch_size, rs.peak_learning_rate, rs.epochs, rs.weight_decay) == (4096, 1.6, 350, 4e-5)
    assert (rs.ema_decay, rs.label_smoothing, rs.warmup_epochs) == (0.9999, 0.1, 5)
    assert rs.epochs * (1_281_167 // 4096) == pytest.approx(109_475, abs=350)


def test_resnet_strikes_back():
    """Wightman et al. 2021, Table 2."""
    columns = zip(*(values_of(RECIPES[f'rsb_a{index}']).items() for index in (1, 2, 3)), strict=True)
    table = {row[0][0]: tuple(value for _, value in row) for row in columns}
    assert {values for name in ('batch_size', 'warmup_epochs', 'cutmix') for values in [table[name]]} == {
        (2048,) * 3, (5,) * 3, (1.0,) * 3
    }  # fmt: skip
    assert table['crop_size'] == (224, 224, 160)
    assert table['image_size'] == (224, 224, 224)
    assert table['epochs'] == (600, 300, 100)
    assert table['learning_rate'] == (5e-3, 5e-3, 8e-3)
    assert table['weight_decay'] == (0.01, 0.02, 0.02)
    assert table['label_smoothing'] == (0.1, 0, 0)
    assert table['mixup'] == (0.2, 0.1, 0.1)
    assert table['policy'] == ('rand-m7-mstd0.5-inc1', 'rand-m7-mstd0.5-inc1', 'rand-m6-mstd0.5-inc1')
    assert table['augmentation_repeats'] == (3, 3, 1)
    assert table['loss'] == ('sigmoid_cross_entropy',) * 3
    starts = [rate * start for rate, start in zip(table['learning_rate'], table['warmup_start'], strict=True)]
    np.testing.assert_allclose(starts, 1e-4)


# pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives
LADDER = [
    ('baseline', 76.130, {}),
    (
        'learning rate',
        76.494,
        {
            'batch_size': 1024,
            'learning_rate': 0.5,
            'schedule': 'cosine',
            'warmup_epochs': 5.0,
            'warmup_start': 0.01,
        },
    ),
    ('TrivialAugment', 76.806, {'policy': 'trivial_augment_wide', 'policy_interpolation': 'bilinear'}),
    ('long training', 78.606, {'epochs': 600}),
    ('random erasing', 78.796, {'random_erasing': 0.1}),
    ('label smoothing', 79.114, {'label_smoothing': 0.1}),
    ('mixup', 79.232, {'mixup': 0.2}),
    ('CutMix', 79.510, {'cutmix': 1.0}),
    ('weight decay', 80.036, {'weight_decay': 2e-5, 'decayed': 'not_norms'}),
    ('FixRes', 80.196, {'crop_size': 176}),
    ('EMA', 80.450, {'ema_decay': 0.9989077333, 'ema_every_steps': 32}),
    ('inference resize', 80.674, {'crop_pct': 0.9655}),
    ('repeated augmentation', 80.858, {'augmentation_repeats': 4}),
]


def test_the_ladder_from_torchvision_v1_to_v2(root):
    text = (root / 'docs' / 'recipes.md').read_text()
    settings, gone = {}, []
    for rung, accuracy, overrides in LADDER:
        assert not overrides.keys() & settings.keys()
        settings |= overrides
        config = get_config('torchvision_v1', **settings)
        assert (config not in gone) or not overrides
        gone.append(config)
        [line] = [line for line in text.splitlines() if line.startswith(f'| {rung} ')]
        assert f' {accuracy:.3f} ' in line
        for name, value in overrides.items():
            assert f'`--{name}={value:.10g}`' in line if isinstance(value, float) else f'`--{name}={value}`' in line, (
                name
            )
    assert dataclasses.replace(gone[-1], recipe='torchvision_v2') == RECIPES['torchvision_v2']
    decay = 1 - (1 - 0.99998) * 1024 * 32 / 600
    assert FLAT['torchvision_v2'].ema_decay == pytest.approx(decay, abs=1e-10)


def test_every_recipe_is_in_the_table(root):
    text = (root / 'docs' / 'recipes.md').read_text()
    assert all(f'| `{name}` |' in text for name in RECIPES)


IMAGENET = [name for name, config in FLAT.items() if config.dataset == 'imagenet2012']

CLASSES, FEATURES = 3, 4
EPOCH_STEPS = 2  # so that ten steps cover a per-epoch warmup


def problem():
    rng = np.random.default_rng(0)
    shapes = {'stem/conv/kernel': (1, 1, FEATURES, FEATURES), 'stem/norm/scale': (FEATURES,)}
    shapes |= {'stem/norm/bias': (FEATURES,), 'head/kernel': (FEATURES, CLASSES), 'head/bias': (CLASSES,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # Small enough for the highest learning rate.
    return params, rng.normal(0, 0.2, size=(6, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, 6)


def loss_and_gradients(w, x, labels, config):
    """The loss of smoothed, thresholded targets and its gradients, by hand."""
    first = w['stem/conv/kernel'][0, 0]
    hidden = x @ first
    normal = hidden * w['stem/norm/scale'] + w['stem/norm/bias']
    z = normal @ w['head/kernel'] + w['head/bias']
    target = np.eye(CLASSES)[labels]
    target = (1 - config.label_smoothing) * target + config.label_smoothing / CLASSES
    if config.loss == 'sigmoid_cross_entropy':
        if config.target_threshold is not None:
            target = (target > config.target_threshold) * 1.0
        p = 1 / (1 + np.exp(-z))
        loss = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean()
        error = (p - target) / z.size
    else:
        z = z - z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        p, loss = np.exp(log_p), -(target * log_p).sum(1).mean()
        error = (p - target) / len(x)
    back = error @ w['head/kernel'].T
    return loss, {
        'stem/conv/kernel': (x.T @ (back * w['stem/norm/scale']))[None, None],
        'stem/norm/scale': (back * hidden).sum(0),
        'stem/norm/bias': back.sum(0),
        'head/kernel': normal.T @ error,
        'head/bias': error.sum(0),
    }


def warmed_up(peak, steps):
    return lambda step: peak * min((step + 1) / steps, 1)


def by_epochs(low, peak):
    """A per-epoch warmup over five epochs."""
    return lambda step: low + (peak - low) * (step // EPOCH_STEPS) / 5


# Learning rates of the first ten steps, with two steps per epoch.
CONSTANT = ['he2015_cifar', 'wrn_cifar', 'resnext_cifar', 'he2015_imagenet', 'fb_resnet_torch', 'resnext_imagenet']
RATES = dict.fromkeys([*CONSTANT, 'torchvision_v1'], lambda step: 0.1) | {
    'digits_quick': lambda step: 0.1 * ((step + 1) / 9 if step < 9 else 1),
    'preact_cifar': lambda step: (0.01, 0.055, 0.1)[min(step, 2)],
    'cifar_fast': lambda step: 0.02 * ((step + 1) / 2 if step < 2 else 1 - (step - 2) / 38),
    'cifar_sgd': lambda step: 0.4 * ((step + 1) / 4 if step < 4 else 1 - (step - 4) / 16),
    'bag_of_tricks': warmed_up(0.4, 10),
    'torchvision_v2': by_epochs(0.005, 0.5),
    'rsb_a1': by_epochs(1e-4, 5e-3),
    'rsb_a2': by_epochs(1e-4, 5e-3),
    'rsb_a3': by_epochs(1e-4, 8e-3),
    'resnet_rs': warmed_up(1.6, 10),
    'bit_cifar10': lambda step: 0.003 * step / 10,
}
KERNELS = {'stem/conv/kernel', 'head/kernel'}
DECAYED = dict.fromkeys(['cifar_fast', 'cifar_sgd', 'bag_of_tricks', 'rsb_a1', 'rsb_a2', 'rsb_a3'], KERNELS)
DECAYED |= dict.fromkeys(['torchvision_v2', 'resnet_rs'], KERNELS | {'head/bias'})
NESTEROV = {'digits_quick', 'wrn_cifar', 'resnext_cifar', 'cifar_sgd'}
NESTEROV |= {'fb_resnet_torch', 'resnext_imagenet', 'bag_of_tricks'}


def muon_direction(m):
    """Muon's iteration on the singular values."""
    u, s, v = np.linalg.svd(m.reshape(-1, m.shape[-1]), full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return (u * s @ v * 0.2 * np.sqrt(max(u.shape[0], v.shape[1]))).reshape(m.shape)


def steps_by_hand(recipe, w, x, labels):
    """Losses of ten steps, and the parameters after them, in float64."""
    config = FLAT[recipe]
    w, losses = {name: value.astype(np.float64) for name, value in w.items()}, []
    m, v = ({name: np.zeros_like(value) for name, value in w.items()} for _ in range(2))
    for step in range(10):
        loss, gradients = loss_and_gradients(w, x, labels, config)
        losses.append(loss)
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, g in gradients.items():
            decay = config.weight_decay * w[name] * (name in DECAYED.get(recipe, w))
            if config.optimizer == 'muon' and name == 'stem/conv/kernel':
                m[name] = 0.6 * m[name] + g
                u = muon_direction(0.6 * m[name] + g) + decay
            elif config.optimizer == 'muon':  # AdamW
                m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
                u = m[name] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[name] / (1 - 0.999 ** (step + 1))) + 1e-8) + decay
            elif recipe.startswith('rsb'):  # LAMB, with gradients clipped to norm 1
                g = g / max(norm, 1)
                m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
                u = m[name] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[name] / (1 - 0.999 ** (step + 1))) + 1e-6) + decay
                u *= np.linalg.norm(w[name]) / np.linalg.norm(u) if name in KERNELS else 1
            else:
                m[name] = 0.9 * m[name] + g + decay
                u = g + decay + 0.9 * m[name] if recipe in NESTEROV else m[name]
            w[name] = w[name] - RATES[recipe](step) * u
    return losses, w


def network(flat):
    """Converts arrays by path to a parameter tree."""
    tree = {'stem': {'conv': {}, 'norm': {}}, 'head': {}}
    for path, value in flat.items():
        *layers, name = path.split('/')
        functools.reduce(dict.__getitem__, layers, tree)[name] = jnp.asarray(value)
    return tree


@pytest.mark.parametrize('recipe', RECIPES)
def test_weight_decay_of_every_recipe(recipe):
    """Gradients are zero, because they would hide the effect of weight decay."""
    config, params = FLAT[recipe], network(problem()[0])
    optimizer = optimizer_of(RECIPES[recipe], EPOCH_STEPS)
    state = optimizer.init(params)
    for step in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        times = 1 + 0.9 * step  # momentum
        times = 1 + 0.9 * times if recipe in NESTEROV else times
        times = 1 if config.optimizer == 'muon' else times  # decoupled
        share = 1 if recipe.startswith('rsb') else config.weight_decay * times  # LAMB's step has the norm of the kernel
        for path, value in problem()[0].items():
            found = functools.reduce(dict.__getitem__, path.split('/'), updates)
            expected = -RATES[recipe](step) * share * value * (path in DECAYED.get(recipe, [path]))
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize('recipe', RECIPES)
def test_ten_steps_of_every_recipe_by_hand(recipe):
    config = FLAT[recipe]
    flat, x, labels = problem()
    expected, by_hand = steps_by_hand(recipe, flat, x, labels)
    params = network(flat)
    task = make_task(config.task, config.loss, config.label_smoothing, config.target_threshold)

    def loss_fn(params):
        stem, head = params['stem'], params['head']
        hidden = x @ stem['conv']['kernel'][0, 0] * stem['norm']['scale'][None] + stem['norm']['bias'][None]
        outputs = hidden @ head['kernel'] + head['bias'][None]
        return task.training_loss()(outputs, task.dense_targets(outputs, jnp.asarray(labels))).mean()

    optimizer = optimizer_of(RECIPES[recipe], EPOCH_STEPS)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    found = []
    for _ in range(10):
        params, state, loss = step(params, state)
        found.append(float(loss))
    np.testing.assert_allclose(found, expected, rtol=5e-6)
    for path, value in by_hand.items():
        leaf = functools.reduce(dict.__getitem__, path.split('/'), params)
        np.testing.assert_allclose(leaf, value, rtol=5e-6, atol=5e-6, err_msg=path)
