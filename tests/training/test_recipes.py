"""Recipes and the checks of a configuration."""

import dataclasses
import json

import pytest

from resnet_jax import RECIPES, InputError, TrainConfig, get_config


def test_recipes_carry_their_own_names_and_survive_json():
    for name, config in RECIPES.items():
        assert config.recipe == name
        assert TrainConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_published_settings():
    """As printed: He et al. 2015 section 4.2, Zagoruyko 2016 section 3, Xie et al. 2017 section 5.3."""
    he, wrn, resnext = (RECIPES[name] for name in ('he2015_cifar', 'wrn_cifar', 'resnext_cifar'))
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


def test_another_length_stretches_the_schedule():
    assert get_config('he2015_cifar', epochs=82).decay_epochs == (41, 61.5)
    assert get_config('digits_quick', epochs=10).warmup_epochs == pytest.approx(1)
    assert get_config('digits_quick', epochs=10, warmup_epochs=5).warmup_epochs == 5
    with pytest.raises(InputError, match="no field 'nope'"):
        get_config('digits_quick', nope=1)


def test_what_follows_from_another_task_or_optimizer():
    sgd = get_config('digits_quick')
    assert get_config('digits_quick', optimizer='sgd') == sgd
    adam = get_config('digits_quick', optimizer='adamw')
    assert (adam.learning_rate, adam.label_smoothing) == (1e-3, sgd.label_smoothing)
    values = get_config('digits_quick', task='regression')
    assert (values.learning_rate, values.label_smoothing, values.crop_padding) == (pytest.approx(0.02), 0.0, 0)
    assert not get_config('cifar_fast', task='regression').horizontal_flip
    chosen = get_config('digits_quick', task='regression', optimizer='adam', learning_rate=0.5)
    assert chosen.learning_rate == 0.5


def test_an_unknown_recipe_gets_the_known_ones():
    with pytest.raises(InputError, match=r"unknown recipe 'he2015'; known: he2015_cifar"):
        get_config('he2015')
