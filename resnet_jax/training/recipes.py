"""Published training settings, and how overrides change dependent settings."""

import dataclasses
from typing import Any

from resnet_jax.data.augment import Augmentation, Policy, ResizedCrop
from resnet_jax.errors import InputError, nearest
from resnet_jax.settings import Settings, as_tuple
from resnet_jax.tasks.kinds import get_task
from resnet_jax.training.bit_hyperrule import bit_hyperrule
from resnet_jax.training.config import Averaging, Data, Objective, Reporting, TrainConfig
from resnet_jax.training.optimizers import SGD, Lamb, Muon, Optimizer
from resnet_jax.training.schedules import SCHEDULES, Cosine, Falling, Linear, OneCycle, StepDecay, Warmup, warmup_epochs

# Common ImageNet settings: crops of 8 to 100 % of the area (Szegedy et al. 2015, arXiv:1409.4842, section
# 6), mirroring; SGD at 0.1 for 256 images.
_CROPS = Augmentation(resized_crop=ResizedCrop((0.08, 1.0)), crop_size=224, horizontal_flip=True)
_IMAGENET = TrainConfig(
    data=Data('imagenet2012', image_size=224),
    epochs=90,
    batch_size=256,
    optimizer=SGD(),
    schedule=StepDecay(decay_epochs=(30, 60)),
    augmentation=_CROPS,
)
_HE2015_CIFAR = TrainConfig(
    recipe='he2015_cifar',
    data=Data('cifar10'),
    epochs=164,
    optimizer=SGD(),
    schedule=StepDecay(decay_epochs=(82, 123)),
    augmentation=Augmentation(crop_padding=4, crop_fill='mean', horizontal_flip=True),
)
_WRN_CIFAR = TrainConfig(
    recipe='wrn_cifar',
    data=Data('cifar10'),
    epochs=200,
    optimizer=SGD(nesterov=True, weight_decay=5e-4),
    schedule=StepDecay(decay_epochs=(60, 120, 160), decay_factor=0.2),
    augmentation=Augmentation(crop_padding=4, crop_fill='reflect', horizontal_flip=True),
)
_FB_RESNET_TORCH = dataclasses.replace(
    _IMAGENET,
    recipe='fb_resnet_torch',
    optimizer=SGD(nesterov=True),
    augmentation=dataclasses.replace(_CROPS, color_jitter=(0.4, 0.4, 0.4), lighting=0.1),
)
_TORCHVISION_V2 = TrainConfig(
    recipe='torchvision_v2',
    data=Data('imagenet2012', image_size=224, crop_pct=0.9655),  # 224 of 232 pixels
    objective=Objective(label_smoothing=0.1),
    epochs=600,
    batch_size=1024,
    optimizer=SGD(learning_rate=0.5, weight_decay=2e-5, decayed='not_norms'),
    schedule=Cosine(schedule_unit='epoch', warmup=Warmup(5, warmup_start=0.01)),
    averaging=Averaging(0.9989077333, ema_every_steps=32),
    augmentation=dataclasses.replace(
        _CROPS,
        crop_size=176,
        policy=Policy('trivial_augment_wide', policy_interpolation='bilinear'),
        random_erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
        augmentation_repeats=4,
    ),
)
_RSB_A2 = TrainConfig(
    recipe='rsb_a2',
    data=Data('imagenet2012', image_size=224, crop_pct=0.95, interpolation='bicubic'),
    objective=Objective(loss='sigmoid_cross_entropy', target_threshold=0.2),
    epochs=300,
    batch_size=2048,
    optimizer=Lamb(learning_rate=5e-3, weight_decay=0.02, decayed='kernels', clip_norm=1.0),
    schedule=Cosine(
        schedule_unit='epoch',
        warmup=Warmup(5, warmup_start=1e-4 / 5e-3),
        warmup_prefix=False,
        final_learning_rate=1e-6,
    ),
    augmentation=dataclasses.replace(
        _CROPS,
        crop_fill='mean',
        policy=Policy('rand-m7-mstd0.5-inc1', policy_interpolation='bilinear'),
        mixup=0.1,
        cutmix=1.0,
        augmentation_repeats=3,
    ),
)


# Flags in the comments that are not fields of TrainConfig are fields of ResNetSpec. ImageNet results are the published
# ones and were not rerun here; they use center crops, while our evaluation uses the whole image at image_size.
RECIPES: dict[str, TrainConfig] = {
    # Ours: 8x8 digits in less than a minute on a CPU. Shifting a digit by a pixel keeps its label, mirroring does not.
    'digits_quick': TrainConfig(
        objective=Objective(label_smoothing=0.1),
        epochs=45,
        optimizer=SGD(nesterov=True, weight_decay=5e-4),
        schedule=Cosine(warmup=Warmup(4.5)),
        augmentation=Augmentation(crop_padding=1),
        reporting=Reporting(checkpoint_every_epochs=5),
    ),
    # He et al. 2015, arXiv:1512.03385, section 4.2: batch 128, 0.1 divided by 10 after 32,000 and 48,000 of 64,000
    # steps (epochs 82 and 123 of 164 at 390 steps), weight decay 1e-4 on everything. ResNet-20: 8.75 % error with
    # 45,000 training images. The 110-layer network needs a warmup: add --warmup_epochs=1.
    'he2015_cifar': _HE2015_CIFAR,
    # Zagoruyko and Komodakis 2016, arXiv:1605.07146, section 3, with crops filled by reflection: WRN-28-10 4.00 % error
    # on CIFAR-10.
    'wrn_cifar': _WRN_CIFAR,
    # Xie et al. 2017, arXiv:1611.05431, section 5.3: 300 epochs, divided by 10 after 150 and 225; ResNeXt-29 8x64d
    # 3.65 % error on CIFAR-10. Nesterov's momentum is in the authors' code (facebookresearch/ResNeXt, train.lua).
    'resnext_cifar': dataclasses.replace(
        _WRN_CIFAR,
        recipe='resnext_cifar',
        epochs=300,
        schedule=StepDecay(decay_epochs=(150, 225)),
        augmentation=_HE2015_CIFAR.augmentation,
    ),
    # He et al. 2016, arXiv:1603.05027, appendix: as in 2015, with a rate of 0.01 for the first 400 steps.
    # preact_resnet164 5.46 % error on CIFAR-10, preact_resnet1001 4.92 %. Difference: the rate rises linearly from 0.01
    # in those steps; in the paper it is constant and then jumps. Inferred: the padding color is that of 2015.
    'preact_cifar': dataclasses.replace(
        _HE2015_CIFAR,
        recipe='preact_cifar',
        schedule=StepDecay(decay_epochs=(82, 123), warmup=Warmup(400 / 390, warmup_start=0.1)),
    ),
    # Ours, for a few epochs: Muon at a rate where the first updates are a tenth of the weights; little augmentation.
    'cifar_fast': TrainConfig(
        recipe='cifar_fast',
        data=Data('cifar10'),
        epochs=20,
        optimizer=Muon(learning_rate=0.02, momentum=0.6, weight_decay=0.02, decayed='kernels'),
        schedule=Linear(warmup=Warmup(1)),
        augmentation=Augmentation(crop_padding=4, horizontal_flip=True),
    ),
    # Ours, the same with SGD, as in most papers: a high learning rate that decays to zero.
    'cifar_sgd': TrainConfig(
        recipe='cifar_sgd',
        data=Data('cifar10'),
        epochs=10,
        optimizer=SGD(learning_rate=0.4, nesterov=True, weight_decay=5e-4, decayed='kernels'),
        schedule=Linear(warmup=Warmup(2)),
        augmentation=Augmentation(crop_padding=4, horizontal_flip=True),
    ),
    # He et al. 2015, arXiv:1512.03385, section 3.4: batch 256, 0.1 divided by 10 "when the error plateaus", up to 60e4
    # steps (120 epochs), weight decay 1e-4, the color noise of Krizhevsky et al. 2012. ResNet-50, --stride_in_1x1:
    # 24.7 % single-crop error, 101 layers 23.6 %, 152 layers 23.0 % (KaimingHe/deep-residual-networks). Inferred: the
    # epochs of the plateaus; square crops of 22 to 77 % of the area, which stand for the paper's crops of 224 pixels
    # from a shorter side of 256 to 480.
    'he2015_imagenet': dataclasses.replace(
        _IMAGENET,
        recipe='he2015_imagenet',
        epochs=120,
        augmentation=dataclasses.replace(_CROPS, resized_crop=ResizedCrop((0.22, 0.77), (1.0, 1.0)), lighting=0.1),
    ),
    # facebookarchive/fb.resnet.torch, train.lua and datasets/imagenet.lua: Nesterov's momentum, rate divided by 10
    # every 30 epochs, weight decay on everything. ResNet-18 30.43 % error, -34 26.73 %, -50 24.01 %, -101 22.44 %, -152
    # 22.16 %.
    'fb_resnet_torch': _FB_RESNET_TORCH,
    # Xie et al. 2017, arXiv:1611.05431, section 5: divided by 10 three times, with the schedule and the augmentation of
    # fb.resnet.torch; 100 epochs. resnext50_32x4d 22.2 % error, resnext101_32x4d 21.2 %, resnext101_64x4d 20.4 %
    # (facebookresearch/ResNeXt).
    'resnext_imagenet': dataclasses.replace(
        _FB_RESNET_TORCH, recipe='resnext_imagenet', epochs=100, schedule=StepDecay(decay_epochs=(30, 60, 90))
    ),
    # He et al. 2018, arXiv:1812.01187, sections 2.1, 3.1 and 5: batch 1024, 0.1 for 256 images, 5 epochs of warmup,
    # cosine, no weight decay of biases and normalizations, label smoothing, mixup for 200 epochs. resnet50d with
    # --zero_init_last 79.15 % without distillation. Color jitter as in the authors' code (dmlc/gluon-cv,
    # train_imagenet.py): contrast instead of the paper's hue.
    'bag_of_tricks': dataclasses.replace(
        _FB_RESNET_TORCH,
        recipe='bag_of_tricks',
        objective=Objective(label_smoothing=0.1),
        epochs=200,
        batch_size=1024,
        optimizer=SGD(nesterov=True, learning_rate_batch_size=256, decayed='kernels'),
        schedule=Cosine(warmup=Warmup(5)),
        augmentation=dataclasses.replace(_FB_RESNET_TORCH.augmentation, mixup=0.2),
    ),
    # pytorch/vision, references/classification/train.py with its defaults on 8 devices of 32 images: resnet50 76.130 %;
    # users who reran it report 75.4 to 75.9 (vision issue 5593). ResNeXt: --epochs=100 --decay_epochs=30,60,90.
    'torchvision_v1': dataclasses.replace(
        _IMAGENET, recipe='torchvision_v1', schedule=StepDecay(decay_epochs=(30, 60), schedule_unit='epoch')
    ),
    # pytorch.org/blog/how-to-train-state-of-the-art-models-using-torchvision-latest-primitives: resnet50 80.858 %,
    # evaluated on the central 224 of 232 pixels. The average's decay is train.py's 0.99998 for a batch of 1024, every
    # 32 steps of 600 epochs: 1 - (1 - 0.99998) 1024 32 / 600. train.py copies the weights during the warmup; we do not.
    'torchvision_v2': _TORCHVISION_V2,
    # Wightman et al. 2021, arXiv:2110.00476, Table 2: A1, A2, A3 80.4, 79.8, 78.1 % with resnet50 at 224 pixels, the
    # central 95 % of each image. A1 and A2: --drop_path_rate=0.05. Table 2 has no clipping, but timm's LAMB clips to
    # norm 1 by default. From timm, not the paper: the rate changes per epoch, from 1e-4 to 1e-6, with the schedule
    # running during the warmup; three repeats. Inferred: bicubic filters, bilinear in the policy, where timm picks one
    # of the two at random; the threshold 0.2 of A2 and A3, above which a mixed class counts as present, as in the
    # paper's loss. A1 smooths its targets, which a threshold would undo. timm's ten cooldown epochs are omitted.
    'rsb_a1': dataclasses.replace(
        _RSB_A2,
        recipe='rsb_a1',
        objective=Objective(loss='sigmoid_cross_entropy', label_smoothing=0.1),
        epochs=600,
        optimizer=dataclasses.replace(_RSB_A2.optimizer, weight_decay=0.01),
        augmentation=dataclasses.replace(_RSB_A2.augmentation, mixup=0.2),
    ),
    'rsb_a2': _RSB_A2,
    'rsb_a3': dataclasses.replace(
        _RSB_A2,
        recipe='rsb_a3',
        epochs=100,
        optimizer=dataclasses.replace(_RSB_A2.optimizer, learning_rate=8e-3),
        schedule=dataclasses.replace(_RSB_A2.schedule, warmup=Warmup(5, warmup_start=1e-4 / 8e-3)),
        augmentation=dataclasses.replace(
            _RSB_A2.augmentation,
            crop_size=160,
            policy=Policy('rand-m6-mstd0.5-inc1', policy_interpolation='bilinear'),
            augmentation_repeats=1,
        ),
    ),
    # Bello et al. 2021, arXiv:2103.07579: resnetrs50 with --dropout_rate=0.25 at 160 pixels 78.8 %, resnetrs101 at 192
    # 81.2 %, resnetrs152 at 256 83.0 %; from 200 layers on --drop_path_rate=0.1. Inferred: no weight decay of
    # normalizations, as in the TPU reference code; RandAugment is torchvision's with magnitude 9 of 30, weaker than the
    # paper's 10.
    'resnet_rs': dataclasses.replace(
        _IMAGENET,
        recipe='resnet_rs',
        data=Data('imagenet2012', image_size=160),
        objective=Objective(label_smoothing=0.1),
        epochs=350,
        batch_size=4096,
        optimizer=SGD(learning_rate_batch_size=256, weight_decay=4e-5, decayed='not_norms'),
        schedule=Cosine(warmup=Warmup(5)),
        averaging=Averaging(0.9999),
        augmentation=dataclasses.replace(_CROPS, crop_size=160, policy=Policy('rand_augment')),
    ),
    # Big Transfer on CIFAR-10: resnetv2_50x1_bit from ImageNet-21k, --init_from and --new_head, 97.4 %.
    'bit_cifar10': bit_hyperrule(50_000, recipe='bit_cifar10'),
}


def get_config(recipe: str, **overrides: Any) -> TrainConfig:
    """Returns a recipe with some settings replaced.

    Settings that depend on replaced ones, and are not replaced themselves, change too:

    - ``epochs``: ``warmup_epochs``, ``decay_epochs`` and the span of an average, ``1 / (1 - ema_decay)`` steps, keep
      their share of the training;
    - ``schedule``: a schedule other than ``step`` has no ``decay_epochs``;
    - ``optimizer``: another optimizer uses its own default learning rate, for the current batch size. Settings that
      both have are kept if their defaults are equal; therefore momentum and weight decay change with Muon, and weight
      decay with optimizers that decouple it;
    - ``loss``: another loss has no target threshold, and a custom loss no label smoothing;
    - ``task``: regression uses its default loss without label smoothing and target threshold; a fifth of the learning
      rate, because gradients of errors are unbounded, unlike those of probabilities; and no augmentation, because the
      targets may depend on position and appearance.

    Raises:
      InputError: an unknown recipe or setting, an invalid value, or one without effect.
    """
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise InputError(f'unknown recipe {recipe!r}; {nearest(recipe, RECIPES)}')
    base, overrides = RECIPES[recipe], {name: as_tuple(value) for name, value in overrides.items()}
    if 'task' in overrides:
        base = _for_task(base, overrides['task'])
    chosen: dict[str, Any] = {}
    if 'optimizer' in overrides:
        chosen['optimizer'] = _other_optimizer(base, overrides['optimizer'])
    if 'schedule' in overrides:
        chosen['schedule'] = _other_schedule(base, overrides['schedule'])
    implied = _implied_resets(base, overrides, chosen.get('schedule', base.schedule))
    if overrides.get('loss', base.objective.loss) != base.objective.loss:
        implied['target_threshold'] = None
    if callable(overrides.get('loss')):
        implied['label_smoothing'] = 0.0
    if isinstance(epochs := overrides.get('epochs'), int) and epochs > 0:
        base = _with_scaled_average(base, epochs / base.epochs)
        if isinstance(chosen.get('optimizer', base.optimizer), Settings):  # otherwise it has its own rate
            implied |= _scaled_epochs(chosen.get('schedule', base.schedule), epochs / base.epochs)
    return base.replace(**(implied | overrides | chosen))


def _implied_resets(base: TrainConfig, overrides: dict[str, Any], schedule: Any) -> dict[str, Any]:
    """Settings that must be reset because overrides turn off what they depend on."""
    implied: dict[str, Any] = {}
    if not any(overrides.get(name, getattr(base.augmentation, name)) for name in ('crop_padding', 'policy')):
        implied['crop_fill'] = 'black'
    if not overrides.get('warmup_epochs', True) and isinstance(schedule, Falling):
        implied['warmup_prefix'] = True
    return implied


def _for_task(config: TrainConfig, task: Any) -> TrainConfig:
    """The configuration for another task, with the settings that the task requires."""
    kind = get_task(task)
    objective = dataclasses.replace(config.objective, task=task) if kind.smoothable else Objective(task)
    config = dataclasses.replace(config, objective=objective)
    if not kind.keeps_appearance:
        return config
    rate = config.optimizer.learning_rate / kind.learning_rate_divisor
    return dataclasses.replace(config, augmentation=Augmentation()).replace(learning_rate=rate)


def _other_optimizer(config: TrainConfig, asked: Any) -> Any:
    """The requested optimizer; if it is not given with its settings, those with equal defaults are kept."""
    old, new = config.optimizer, config.replace(optimizer=asked).optimizer
    if isinstance(asked, Settings) or not isinstance(new, Settings) or type(new) is type(old):
        return new
    kept = _common(old, new)
    for name in ('learning_rate', 'learning_rate_batch_size'):  # they do not carry over to another optimizer
        kept.pop(name, None)
    if isinstance(new, Optimizer) and not old.weight_decay:
        kept['weight_decay'] = 0.0
    return dataclasses.replace(new, **kept)


def _other_schedule(config: TrainConfig, asked: Any) -> Any:
    """The requested schedule; if given by name, it keeps the warmup and the settings that both have."""
    if asked not in SCHEDULES:
        return config.replace(schedule=asked).schedule
    old, kind = config.schedule, SCHEDULES[asked]
    if type(old) is kind:
        return old
    kept = _common(old, kind())
    if kind is OneCycle and old.warmup is not None:
        kept |= {name: value for name, value in vars(old.warmup).items() if value is not None}
    return kind(**kept)


def _common(old: Any, new: Any) -> dict[str, Any]:
    """The settings of ``old`` that ``new`` also has, with the same default."""
    defaults = {field.name: field.default for field in dataclasses.fields(old)}
    common = [field.name for field in dataclasses.fields(new) if defaults.get(field.name, ...) == field.default]
    return {name: getattr(old, name) for name in common}


def _scaled_epochs(schedule: Any, share: float) -> dict[str, Any]:
    """The settings in epochs of a schedule, scaled to ``share`` times as many epochs."""
    changes: dict[str, Any] = {}
    if warmup := warmup_epochs(schedule):
        changes['warmup_epochs'] = warmup * share
    if isinstance(schedule, StepDecay):
        changes['decay_epochs'] = tuple(epoch * share for epoch in schedule.decay_epochs)
    return changes


def _with_scaled_average(config: TrainConfig, share: float) -> TrainConfig:
    """The configuration with its average, if there is one, spanning ``share`` times as many steps."""
    if config.averaging is None:
        return config
    decay = max(1 - (1 - config.averaging.ema_decay) / share, 0.0)
    return dataclasses.replace(config, averaging=dataclasses.replace(config.averaging, ema_decay=decay))
