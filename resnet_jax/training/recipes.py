"""Published training settings, and how some of them follow others."""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.training.config import TrainConfig

# Learning rates for another optimizer than a recipe's, whose own rate says nothing about it. Adam: Kingma and Ba 2014,
# arXiv:1412.6980, Algorithm 1; Muon is scaled to AdamW's rates. SGD's is that of He et al. 2015; the others are ours.
_USUAL_RATES = {'sgd': 0.1, 'adam': 1e-3, 'adamw': 1e-3, 'lamb': 1e-3, 'lars': 2.0, 'rmsprop_tf': 1e-3, 'muon': 1e-3}
_USUAL_MOMENTUM = dict.fromkeys(_USUAL_RATES, 0.9) | {'muon': 0.95}  # that of its author
# Weight decay that is added to the gradient (He et al. 2015) and such that is not (Wightman et al. 2021, A2).
_USUAL_DECAYS = dict.fromkeys(_USUAL_RATES, 1e-4) | dict.fromkeys(('adamw', 'lamb', 'muon'), 0.02)

# What an image must keep where numbers depend on where things are, and how they look.
_NO_AUGMENTATION: dict[str, Any] = {
    'mixup': 0.0,
    'cutmix': 0.0,
    'crop_area': None,
    'crop_size': None,
    'crop_padding': 0,
    'horizontal_flip': False,
    'policy': None,
    'policy_interpolation': 'nearest',
    'color_jitter': (),
    'lighting': 0.0,
    'random_erasing': 0.0,
    'cutout': 0,
    'augmentation_repeats': 1,
}

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
# What most trainings on ImageNet share: crops of 8 to 100 % of the area (Szegedy et al. 2015, arXiv:1409.4842, section
# 6), mirrored; SGD at 0.1 for 256 images.
_IMAGENET = TrainConfig(
    dataset='imagenet2012',
    epochs=90,
    batch_size=256,
    schedule='step',
    decay_epochs=(30, 60),
    crop_area=(0.08, 1.0),
    crop_size=224,
    image_size=224,
    horizontal_flip=True,
)
_FB_RESNET_TORCH = dataclasses.replace(
    _IMAGENET, recipe='fb_resnet_torch', nesterov=True, color_jitter=(0.4, 0.4, 0.4), lighting=0.1
)
_TORCHVISION_V2 = dataclasses.replace(
    _IMAGENET,
    recipe='torchvision_v2',
    epochs=600,
    batch_size=1024,
    learning_rate=0.5,
    schedule='cosine',
    schedule_unit='epoch',
    decay_epochs=(),
    warmup_epochs=5,
    warmup_start=0.01,
    weight_decay=2e-5,
    decayed='not_norms',
    ema_decay=0.9989077333,
    ema_every_steps=32,
    label_smoothing=0.1,
    mixup=0.2,
    cutmix=1.0,
    crop_size=176,
    crop_pct=0.9655,  # of 232 pixels
    policy='trivial_augment_wide',
    policy_interpolation='bilinear',
    random_erasing=0.1,
    augmentation_repeats=4,
)
_RSB_A2 = dataclasses.replace(
    _IMAGENET,
    recipe='rsb_a2',
    loss='sigmoid_cross_entropy',
    epochs=300,
    batch_size=2048,
    optimizer='lamb',
    learning_rate=5e-3,
    schedule='cosine',
    schedule_unit='epoch',
    decay_epochs=(),
    warmup_epochs=5,
    warmup_start=1e-4 / 5e-3,
    warmup_prefix=False,
    final_learning_rate=1e-6,
    weight_decay=0.02,
    decayed='kernels',
    clip_norm=1.0,
    target_threshold=0.2,
    mixup=0.1,
    cutmix=1.0,
    policy='rand-m7-mstd0.5-inc1',
    policy_interpolation='bilinear',
    crop_fill='mean',
    augmentation_repeats=3,
    crop_pct=0.95,
    interpolation='bicubic',
)


def bit_hyperrule(
    num_train_examples: int,
    *,
    dataset: str = 'cifar10',
    image_pixels: int = 32,
    batch_size: int = 512,
    horizontal_flip: bool = True,
    recipe: str = 'bit_hyperrule',
) -> TrainConfig:
    """How Big Transfer fine-tunes: settings that follow from the data alone (Kolesnikov et al. 2020, arXiv:1912.11370).

    Section 3.3, and bit_hyperrule.py of the authors' google-research/big_transfer: fewer than 20,000 examples train 500
    steps, fewer than 500,000 train 10,000 and more 20,000. SGD of 0.003 for 512 images rises linearly from zero for 500
    steps, 100 in the shortest schedule, and falls to a tenth after 30, 60 and 90 % of all steps (40, 60 and 80 % in the
    code's shortest, which is followed). Mixup of 0.1 but for the smallest data. Images of less than 96x96 pixels are
    enlarged to 160 and cropped to 128, others resized to 512 and cropped to 480. No weight decay.

    Other than there, training ends with an epoch, the nearest one that lies behind the last fall of the rate; a batch
    has no more than all examples, with the learning rate in proportion; and evaluation sees images of 160 or 512
    pixels, the authors' of 128 or 480.

    Args:
      num_train_examples: size of the training set, at least 1.
      dataset: name as in ``data.datasets.load_dataset``.
      image_pixels: height and width of its images.
      batch_size: examples in a step.
      horizontal_flip: mirror half of the images; the authors do where it makes sense.
      recipe: for the record.

    Raises:
      InputError: no examples, or a batch of less than one.
    """
    for name, value in (('num_train_examples', num_train_examples), ('batch_size', batch_size)):
        if value < 1:
            raise InputError(f'{name}={value} must be at least 1')
    supports = (500, 6_000, 12_000, 18_000, 20_000)
    if num_train_examples < 20_000:
        supports = (100, 200, 300, 400, 500)
    elif num_train_examples < 500_000:
        supports = (500, 3_000, 6_000, 9_000, 10_000)
    batch_size = min(batch_size, num_train_examples)
    epoch_steps = num_train_examples // batch_size
    # The code's rate falls in the step behind each of these.
    decay_epochs = tuple((step + 1) / epoch_steps for step in supports[1:-1])
    return TrainConfig(
        recipe=recipe,
        dataset=dataset,
        epochs=max(round(supports[-1] / epoch_steps), math.floor(decay_epochs[-1]) + 1),
        batch_size=batch_size,
        learning_rate=0.003,
        learning_rate_batch_size=512,
        schedule='step',
        decay_epochs=decay_epochs,
        warmup_epochs=supports[0] / epoch_steps,
        warmup_start=0.0,
        weight_decay=0.0,
        mixup=0.0 if num_train_examples < 20_000 else 0.1,
        image_size=160 if image_pixels < 96 else 512,
        crop_size=128 if image_pixels < 96 else 480,
        horizontal_flip=horizontal_flip,
    )


# Flags in the comments that are no fields of TrainConfig are ResNetSpec's. Results on ImageNet are the published ones
# and were not run again here; they are of central crops, where our evaluation sees the whole image at image_size.
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
    # He et al. 2016, arXiv:1603.05027, appendix: as 2015, with 0.01 for the first 400 steps. preact_resnet164 5.46 %
    # error on CIFAR-10, preact_resnet1001 4.92 %. Other than there the rate rises from 0.01 in those steps, where the
    # paper's stays and jumps. Inferred: the padding's colour is that of 2015.
    'preact_cifar': dataclasses.replace(
        _HE2015_CIFAR, recipe='preact_cifar', warmup_epochs=400 / 390, warmup_start=0.1
    ),
    # Ours, for a few epochs: Muon at a rate where the first updates are a tenth of the weights, and little else.
    'cifar_fast': TrainConfig(
        recipe='cifar_fast',
        dataset='cifar10',
        epochs=20,
        optimizer='muon',
        learning_rate=0.02,
        schedule='linear',
        warmup_epochs=1,
        momentum=0.6,
        weight_decay=0.02,
        decayed='kernels',
        crop_padding=4,
        horizontal_flip=True,
    ),
    # Ours, the same with the optimizer of most papers: a high learning rate that goes to zero.
    'cifar_sgd': TrainConfig(
        recipe='cifar_sgd',
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
    # He et al. 2015, arXiv:1512.03385, section 3.4: batch 256, 0.1 divided by 10 "when the error plateaus", up to 60e4
    # steps (120 epochs), weight decay 1e-4, the colour noise of Krizhevsky et al. 2012. ResNet-50, --stride_in_1x1:
    # 24.7 % error of one crop, of 101 layers 23.6 %, of 152 23.0 % (KaimingHe/deep-residual-networks). Inferred: where
    # the error plateaus; square crops of 22 to 77 % of the area for the paper's 224 pixels of a shorter side of 256 to
    # 480.
    'he2015_imagenet': dataclasses.replace(
        _IMAGENET, recipe='he2015_imagenet', epochs=120, crop_area=(0.22, 0.77), crop_ratio=(1.0, 1.0), lighting=0.1
    ),
    # facebookarchive/fb.resnet.torch, train.lua and datasets/imagenet.lua: Nesterov's momentum, a tenth every 30
    # epochs, decay on everything. ResNet-18 30.43 % error, -34 26.73 %, -50 24.01 %, -101 22.44 %, -152 22.16 %.
    'fb_resnet_torch': _FB_RESNET_TORCH,
    # Xie et al. 2017, arXiv:1611.05431, section 5: divided by 10 three times, with the schedule and the augmentation of
    # fb.resnet.torch; 100 epochs. resnext50_32x4d 22.2 % error, resnext101_32x4d 21.2 %, resnext101_64x4d 20.4 %
    # (facebookresearch/ResNeXt).
    'resnext_imagenet': dataclasses.replace(
        _FB_RESNET_TORCH, recipe='resnext_imagenet', epochs=100, decay_epochs=(30, 60, 90)
    ),
    # He et al. 2018, arXiv:1812.01187, sections 2.1, 3.1 and 5: batch 1024, 0.1 for 256 images, 5 epochs of warmup,
    # cosine, no decay of biases and normalizations, label smoothing, mixup for 200 epochs. resnet50d with
    # --zero_init_last 79.15 % without distillation. Colours as in the authors' code (dmlc/gluon-cv, train_imagenet.py):
    # contrast where the paper says hue.
    'bag_of_tricks': dataclasses.replace(
        _FB_RESNET_TORCH,
        recipe='bag_of_tricks',
        epochs=200,
        batch_size=1024,
        learning_rate_batch_size=256,
        schedule='cosine',
        decay_epochs=(),
        warmup_epochs=5,
        decayed='kernels',
        label_smoothing=0.1,
        mixup=0.2,
    ),
    # pytorch/vision, references/classification/train.py with its defaults on 8 devices of 32 images: resnet50 76.130 %;
    # users who ran it again report 75.4 to 75.9 (vision issue 5593). ResNeXt: --epochs=100 --decay_epochs=30,60,90.
    'torchvision_v1': dataclasses.replace(_IMAGENET, recipe='torchvision_v1', schedule_unit='epoch'),
    # pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives: resnet50 80.858 %,
    # evaluated on the central 224 of 232 pixels. The average's decay is train.py's 0.99998 for a batch of 1024, every
    # 32 steps of 600 epochs: 1 - (1 - 0.99998) 1024 32 / 600. There it copies the weights during the warmup, here not.
    'torchvision_v2': _TORCHVISION_V2,
    # Wightman et al. 2021, arXiv:2110.00476, Table 2: A1, A2, A3 80.4, 79.8, 78.1 % with resnet50 at 224 pixels, the
    # central 95 % of each image. A1 and A2: --drop_path_rate=0.05. Table 2 has no clipping, timm's LAMB clips to norm 1
    # unasked. From timm and not the paper: rates by the epoch, from 1e-4 to 1e-6, under the warmup; three repeats.
    # Inferred: bicubic filters, bilinear in the policy, where timm draws one of both; the threshold 0.2 of A2 and A3,
    # above which a mixed class is present, as the paper's loss has it, and below which it is not; A1 smooths its
    # targets, which a threshold would undo. timm's ten epochs of cooldown are left out.
    'rsb_a1': dataclasses.replace(
        _RSB_A2,
        recipe='rsb_a1',
        epochs=600,
        weight_decay=0.01,
        label_smoothing=0.1,
        target_threshold=None,
        mixup=0.2,
    ),
    'rsb_a2': _RSB_A2,
    'rsb_a3': dataclasses.replace(
        _RSB_A2,
        recipe='rsb_a3',
        epochs=100,
        learning_rate=8e-3,
        warmup_start=1e-4 / 8e-3,
        crop_size=160,
        policy='rand-m6-mstd0.5-inc1',
        augmentation_repeats=1,
    ),
    # Bello et al. 2021, arXiv:2103.07579: resnetrs50 with --dropout_rate=0.25 at 160 pixels 78.8 %, resnetrs101 at 192
    # 81.2 %, resnetrs152 at 256 83.0 %; from 200 layers on --drop_path_rate=0.1. Inferred: normalizations do not decay,
    # as in TPU reference code; RandAugment is torchvision's, of magnitude 9 of 30, weaker than the paper's of 10.
    'resnet_rs': dataclasses.replace(
        _IMAGENET,
        recipe='resnet_rs',
        epochs=350,
        batch_size=4096,
        learning_rate_batch_size=256,
        schedule='cosine',
        decay_epochs=(),
        warmup_epochs=5,
        weight_decay=4e-5,
        decayed='not_norms',
        ema_decay=0.9999,
        label_smoothing=0.1,
        policy='rand_augment',
        crop_size=160,
        image_size=160,
    ),
    # Big Transfer on CIFAR-10: resnetv2_50x1_bit from ImageNet-21k, --init_from and --new_head, 97.4 %.
    'bit_cifar10': bit_hyperrule(50_000, recipe='bit_cifar10'),
}


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
# Fields that do nothing, unless something else is so: what, when, and in words.
_NEEDS: tuple[tuple[set[str], Callable[[TrainConfig], object], str], ...] = (
    ({'momentum'}, lambda c: c.optimizer in ('sgd', 'lars', 'rmsprop_tf', 'muon'), 'sgd, lars, rmsprop_tf or muon'),
    ({'nesterov'}, lambda c: c.optimizer in ('sgd', 'lars'), 'optimizer sgd or lars'),
    ({'decay_epochs', 'decay_factor'}, lambda c: c.schedule == 'step', 'schedule=step'),
    ({'schedule_power'}, lambda c: c.schedule == 'polynomial', 'schedule=polynomial'),
    (
        {'final_learning_rate'},
        lambda c: c.schedule in ('cosine', 'linear', 'polynomial'),
        'schedule cosine, linear or polynomial',
    ),
    ({'warmup_start'}, lambda c: c.warmup_epochs or c.schedule == 'one_cycle', 'warmup_epochs'),
    ({'ema_warmup', 'ema_every_steps'}, lambda c: c.ema_decay is not None, 'ema_decay'),
    ({'distill_weight', 'distill_temperature'}, lambda c: c.distill_from is not None, 'distill_from'),
    ({'crop_ratio'}, lambda c: c.crop_area is not None, 'crop_area'),
    ({'crop_fill'}, lambda c: c.crop_padding or c.policy is not None, 'crop_padding or policy'),
    ({'policy_interpolation'}, lambda c: c.policy is not None, 'policy'),
    (
        {'warmup_prefix'},
        lambda c: c.warmup_epochs and c.schedule in ('cosine', 'linear', 'polynomial'),
        'warmup_epochs and a schedule cosine, linear or polynomial',
    ),
)


def get_config(recipe: str, **overrides: Any) -> TrainConfig:
    """A recipe with some fields replaced.

    What is not replaced itself follows what is:

    - with another number of ``epochs``, ``warmup_epochs`` and ``decay_epochs`` keep their share of the training, and so
      does the span of an average, ``1 / (1 - ema_decay)`` steps;
    - with another ``schedule`` than ``step`` there are no ``decay_epochs``;
    - with another ``optimizer`` than the recipe's, the learning rate is a usual one of that optimizer, for the batch
      there is; so is the momentum where one of the two is Muon, 0.95 of Muon and else 0.9, and the weight decay where
      one of the two adds it to the gradient and the other does not, 1e-4 and 0.02;
    - with another ``loss`` than the recipe's there is no threshold of targets;
    - ``task='regression'`` has the task's usual loss, no label smoothing and no threshold of targets, a fifth of the
      learning rate, as gradients of errors have no bound and those of probabilities have, and no augmentation, as
      numbers may depend on where things are and how they look.

    Raises:
      InputError: an unknown recipe or field, a value that TrainConfig refuses, or one that would do nothing.
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
    if base.ema_decay is not None:
        implied['ema_decay'] = max(1 - (1 - base.ema_decay) / share, 0.0)
    if overrides.get('loss', base.loss) != base.loss:
        implied['target_threshold'] = None
    if overrides.get('schedule', 'step') != 'step':
        implied['decay_epochs'] = ()
    if overrides.get('task') == 'regression':
        implied |= _NO_AUGMENTATION | {'loss': None, 'label_smoothing': 0.0, 'target_threshold': None}
        implied['learning_rate'] = base.learning_rate / 5
    optimizer = overrides.get('optimizer', base.optimizer)
    if optimizer != base.optimizer and optimizer in _USUAL_RATES:
        implied |= {'learning_rate': _USUAL_RATES[optimizer], 'learning_rate_batch_size': None}
        if _USUAL_MOMENTUM[optimizer] != _USUAL_MOMENTUM[base.optimizer]:
            implied['momentum'] = _USUAL_MOMENTUM[optimizer]
        if base.weight_decay and _USUAL_DECAYS[optimizer] != _USUAL_DECAYS[base.optimizer]:
            implied['weight_decay'] = _USUAL_DECAYS[optimizer]
    config = dataclasses.replace(base, **(implied | overrides))
    for names, useful, needs in _NEEDS:
        for name in names & overrides.keys():
            if overrides[name] != _DEFAULTS[name] and not useful(config):
                raise InputError(f'{name}={overrides[name]!r} would do nothing: it needs {needs}')
    return config
