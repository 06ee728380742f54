"""Big Transfer's rule: training length, decays and image sizes."""

import types

import numpy as np
import pytest

from resnet_jax import RECIPES, InputError
from resnet_jax.settings import values_of
from resnet_jax.training.bit_hyperrule import bit_hyperrule


def flat(config):
    """All settings of a configuration by name, and its peak learning rate."""
    return types.SimpleNamespace(**values_of(config), peak_learning_rate=config.peak_learning_rate)


@pytest.mark.parametrize(
    ('examples', 'steps', 'decays'),
    [
        (1_000, 500, (0.4, 0.6, 0.8)),
        (19_999, 500, (0.4, 0.6, 0.8)),
        (50_000, 10_000, (0.3, 0.6, 0.9)),
        (1_281_167, 20_000, (0.3, 0.6, 0.9)),
    ],
)
def test_schedules_are_defined_in_steps(examples, steps, decays):
    config = flat(bit_hyperrule(examples, image_pixels=224))
    epoch = examples // config.batch_size
    assert config.epochs * epoch == pytest.approx(steps, abs=epoch / 2)
    np.testing.assert_allclose(np.array(config.decay_epochs) * epoch, np.array(decays) * steps + 1)
    assert config.warmup_epochs * epoch == pytest.approx(100 if steps == 500 else 500)
    assert config.mixup == (0.0 if steps == 500 else 0.1)
    assert (config.image_size, config.crop_size, config.weight_decay) == (512, 480, 0.0)


@pytest.mark.parametrize(('examples', 'batch'), [(12_000, 32), (450_000, 64), (2_930_000, 512), (1, 512), (499_999, 3)])
def test_the_last_decay_is_before_the_end_of_training(examples, batch):
    config = flat(bit_hyperrule(examples, batch_size=batch))
    assert max(*config.decay_epochs, config.warmup_epochs) < config.epochs


def test_small_images_and_small_datasets():
    config = RECIPES['bit_cifar10']
    assert config == bit_hyperrule(50_000, dataset='cifar10', image_pixels=32, recipe='bit_cifar10')
    config = flat(config)
    assert (config.image_size, config.crop_size, config.learning_rate, config.batch_size) == (160, 128, 0.003, 512)
    few = flat(bit_hyperrule(100))
    assert (few.batch_size, few.epochs, few.peak_learning_rate) == (100, 500, pytest.approx(0.003 * 100 / 512))
    assert bit_hyperrule(10_000, horizontal_flip=False).augmentation.horizontal_flip is False
    with pytest.raises(InputError, match='num_train_examples=0 must be at least 1'):
        bit_hyperrule(0)
