"""Published training settings, and how some of them follow others."""

import dataclasses
import difflib
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.training.config import TrainConfig

_ADAM_RATE = 1e-3  # Kingma and Ba 2014, arXiv:1412.6980, Algorithm 1; a rate of SGD is no rate of Adam

_HE2015_CIFAR = TrainConfig(
    recipe='he2015_cifar',
    dataset='cifar10',
    epochs=164,
    schedule='step',
    decay_epochs=(82, 123),
    crop_padding=4,
    crop_fill='mean',
    horizontal_flip=True,
)
_WRN_CIFAR = TrainConfig(
    recipe='wrn_cifar',
    dataset='cifar10',
    epochs=200,
    schedule='step',
    decay_epochs=(60, 120, 160),
    decay_factor=0.2,
    nesterov=True,
    weight_decay=5e-4,
    crop_padding=4,
    crop_fill='reflect',
    horizontal_flip=True,
)

RECIPES: dict[str, TrainConfig] = {
    # Ours: 8x8 digits in less than a minute on a CPU. Digits keep their meaning under a shift by a pixel, not mirrored.
    'digits_quick': TrainConfig(
        epochs=45,
        learning_rate=0.1,
        warmup_epochs=4.5,
        nesterov=True,
        weight_decay=5e-4,
        label_smoothing=0.1,
        crop_padding=1,
        checkpoint_every_epochs=5,
    ),
    # He et al. 2015, arXiv:1512.03385, section 4.2: batch 128, 0.1 divided by 10 after 32,000 and 48,000 of 64,000
    # steps (epochs 82 and 123 of 164 at 390 steps), weight decay 1e-4 on everything. ResNet-20: 8.75 % error with
    # 45,000 training images. The 110-layer network warms up: add --warmup_epochs=1.
    'he2015_cifar': _HE2015_CIFAR,
    # Zagoruyko and Komodakis 2016, arXiv:1605.07146, section 3, with crops filled by reflection: WRN-28-10 4.00 % error
    # on CIFAR-10.
    'wrn_cifar': _WRN_CIFAR,
    # Xie et al. 2017, arXiv:1611.05431, section 5.3: 300 epochs, divided by 10 after 150 and 225; ResNeXt-29 8x64d
    # 3.65 % error on CIFAR-10. Nesterov's momentum is in the authors' code (facebookresearch/ResNeXt, train.lua).
    'resnext_cifar': dataclasses.replace(
        _WRN_CIFAR, recipe='resnext_cifar', epochs=300, decay_epochs=(150, 225), decay_factor=0.1, crop_fill='mean'
    ),
    # Ours, for a few epochs: a high learning rate that goes to zero, and little regularization.
    'cifar_fast': TrainConfig(
        recipe='cifar_fast',
        dataset='cifar10',
        epochs=10,
        learning_rate=0.4,
        schedule='linear',
        warmup_epochs=2,
        nesterov=True,
        weight_decay=5e-4,
        decayed='kernels',
        crop_padding=4,
        horizontal_flip=True,
    ),
}


def get_config(recipe: str, **overrides: Any) -> TrainConfig:
    """A recipe with some fields replaced.

    What is not replaced itself follows what is: with another number of ``epochs``, ``warmup_epochs`` and
    ``decay_epochs`` keep their share of the training; with another ``optimizer`` than the recipe's the learning rate is
    1e-3; ``task='regression'`` has no label smoothing, a fifth of the learning rate, as gradients of errors have no
    bound and those of probabilities have, and neither crop, flip, policy nor mixing, as numbers may depend on where
    things are.

    Raises:
      InputError: an unknown recipe or field, or a value that TrainConfig refuses.
    """
    if recipe not in RECIPES:
        near = difflib.get_close_matches(recipe, RECIPES, n=3, cutoff=0.3)
        raise InputError(f'unknown recipe {recipe!r}; known: {", ".join(near or RECIPES)}')
    base = RECIPES[recipe]
    unknown = sorted(overrides.keys() - {field.name for field in dataclasses.fields(base)})
    if unknown:
        raise InputError(f'TrainConfig has no field {unknown[0]!r}')
    share = overrides.get('epochs', base.epochs) / base.epochs
    implied: dict[str, Any] = {
        'warmup_epochs': base.warmup_epochs * share,
        'decay_epochs': tuple(epoch * share for epoch in base.decay_epochs),
    }
    if overrides.get('task') == 'regression':
        implied |= {
            'label_smoothing': 0.0,
            'crop_padding': 0,
            'horizontal_flip': False,
            'policy': None,
            'mixup': 0.0,
            'cutmix': 0.0,
        }
        implied['learning_rate'] = base.learning_rate / 5
    if overrides.get('optimizer', base.optimizer) != base.optimizer:
        implied['learning_rate'] = _ADAM_RATE
    return dataclasses.replace(base, **(implied | overrides))
