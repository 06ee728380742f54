"""Training settings: one frozen configuration, and published recipes as values of it."""

import dataclasses
import difflib
import math
import re
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.training.losses import LOSSES
from resnet_jax.training.tasks import TASKS

OPTIMIZERS = ('sgd', 'adam', 'adamw')
SCHEDULES = ('cosine', 'linear', 'step')
DECAYED = ('all', 'kernels')
CROP_FILLS = ('black', 'mean', 'reflect')
# Keys of data.policies.POLICIES.
AUGMENT_POLICIES = (
    *('rand_augment', 'trivial_augment_wide', 'auto_augment_cifar10', 'auto_augment_imagenet'),
    *('rand-m7-mstd0.5-inc1', 'rand-m6-mstd0.5-inc1'),
)
COMPUTE_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything beside the architecture that changes a run's result, and how often it reports.

    Attributes:
      dataset: name as in ``data.datasets.load_dataset``.
      task: what the targets are: ``multiclass``, ``binary``, ``multilabel`` or ``regression``.
      loss: ``softmax_cross_entropy``, ``sigmoid_cross_entropy``, ``squared_error`` or ``absolute_error``; None is the
        task's usual one.
      recipe: key of RECIPES from which the other fields come, for the record.
      seed: of the initialization, the order of the examples and the augmentation.
      epochs: passes over the training examples.
      batch_size: examples in a step, over all devices.
      optimizer: ``sgd``, ``adam`` or ``adamw``.
      learning_rate: the peak of the schedule.
      head_learning_rate: that of the last linear layer; None is the same.
      schedule: ``cosine``, ``linear`` or ``step``.
      warmup_epochs: epochs of linear warmup; fractions are allowed.
      decay_epochs: where the ``step`` schedule falls.
      decay_factor: by how much it falls.
      momentum: of SGD.
      nesterov: Nesterov's momentum, of SGD.
      weight_decay: L2 coefficient; with ``adamw`` the decoupled one, times the learning rate.
      decayed: which parameters decay: ``all`` or ``kernels``.
      label_smoothing: in [0, 1).
      target_threshold: of sigmoids: smoothed or mixed targets above it become 1, the others 0; None leaves them.
      mixup: alpha of mixup, one share a batch; 0 for none.
      cutmix: alpha of CutMix; with both, each batch gets one of them. Training metrics then count the first image.
      crop_padding: pixels of padding for the random crop; 0 for none.
      crop_fill: what the crop is filled with: ``black``, the ``mean`` colour, or ``reflect``.
      horizontal_flip: mirror half of the images.
      policy: operations drawn for each image: ``rand_augment``, ``trivial_augment_wide``, ``auto_augment_cifar10``,
        ``auto_augment_imagenet``, ``rand-m7-mstd0.5-inc1`` or ``rand-m6-mstd0.5-inc1``; None for none.
      image_size: pixels to which the images are resized; None keeps their size.
      compute_dtype: ``float32`` or ``bfloat16``.
      implementation: ``auto`` or ``xla``, as in ``models.conv.convolution``.
      scan_blocks: compile alike blocks once, as in ``models.resnet.ResNet``; None does so in deep networks.
      init_from: weights that are the start, as in ``weights.open_source``: a file, a run, or an id of the hub; None
        starts fresh.
      new_head: start the last linear layer afresh although that of ``init_from`` would fit: other classes, as many.
      freeze: regular expression on the beginning of the paths of parameters that stay as they are, such as
        ``stem|stage[1-3]``; stem and blocks that it matches normalize with their running statistics. None: none.
      mean: of the pixels, subtracted, 1 being white, a number for each channel; None is that of the weights in
        ``init_from``, if they say, or else the dataset's.
      std: likewise, divided by.
      eval_every_epochs: test evaluation after every so many epochs, and after the last.
      checkpoint_every_epochs: checkpoint after every so many epochs, and after the last.
      log_every_steps: interval of the training metrics; each epoch starts a new one.

    Raises:
      InputError: a value out of range.
    """

    dataset: str = 'digits'
    task: str = 'multiclass'
    loss: str | None = None
    recipe: str = 'digits_quick'
    seed: int = 0
    epochs: int = 30
    batch_size: int = 128
    optimizer: str = 'sgd'
    learning_rate: float = 0.1
    head_learning_rate: float | None = None
    schedule: str = 'cosine'
    warmup_epochs: float = 0.0
    decay_epochs: tuple[float, ...] = ()
    decay_factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decayed: str = 'all'
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_padding: int = 0
    crop_fill: str = 'black'
    horizontal_flip: bool = False
    policy: str | None = None
    image_size: int | None = None
    compute_dtype: str = 'float32'
    implementation: str = 'auto'
    scan_blocks: bool | None = None
    init_from: str | None = None
    new_head: bool = False
    freeze: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    eval_every_epochs: int = 1
    checkpoint_every_epochs: int = 1
    log_every_steps: int = 50

    def __post_init__(self) -> None:
        for name in ('decay_epochs', 'mean', 'std'):  # JSON gives lists
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        choices = {
            'task': tuple(TASKS),
            'loss': (None, *LOSSES),
            'optimizer': OPTIMIZERS,
            'schedule': SCHEDULES,
            'decayed': DECAYED,
            'crop_fill': CROP_FILLS,
            'policy': (None, *AUGMENT_POLICIES),
            'compute_dtype': COMPUTE_DTYPES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f'{name}={getattr(self, name)!r} must be one of {", ".join(map(str, known))}')
        TASKS[self.task](
            self.loss or '', target_threshold=self.target_threshold
        )  # raises where they do not go together
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(v) for v in values if isinstance(v, float)):
                raise InputError(f'{field.name}={value} must be finite')
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f'{name}={value} must be at least {low}')
        for name in ('momentum', 'label_smoothing'):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f'{name}={getattr(self, name)} must be in [0, 1)')
        if self.std is not None and not all(value > 0 for value in self.std):
            raise InputError(f'std={self.std} must be above 0')
        if self.freeze is not None:
            try:
                re.compile(self.freeze)
            except re.error as error:
                raise InputError(f'freeze={self.freeze!r} is no regular expression: {error}') from error
        if self.seed >= 2**32:
            raise InputError(f'seed={self.seed} must be less than 2**32')
        if self.task == 'regression' and self.label_smoothing:
            raise InputError(f'label_smoothing={self.label_smoothing} is for classes; task=regression takes 0')
        if self.head_learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f'head_learning_rate={self.head_learning_rate} needs a learning_rate above 0')
        if self.new_head and self.init_from is None:
            raise InputError('new_head=True needs init_from: without it every layer is new')
        if self.schedule == 'step' and not self.decay_epochs:
            raise InputError("schedule='step' needs decay_epochs")
        if self.warmup_epochs >= self.epochs or max(self.decay_epochs, default=0) >= self.epochs:
            raise InputError(
                f'warmup_epochs={self.warmup_epochs} and decay_epochs={self.decay_epochs} must lie before the end of'
                f' epochs={self.epochs}'
            )


_AT_LEAST = {
    'seed': 0,
    'epochs': 1,
    'batch_size': 1,
    'learning_rate': 0,
    'head_learning_rate': 0,
    'warmup_epochs': 0,
    'weight_decay': 0,
    'decay_factor': 0,
    'crop_padding': 0,
    'mixup': 0,
    'cutmix': 0,
    'image_size': 1,
    'eval_every_epochs': 1,
    'checkpoint_every_epochs': 1,
    'log_every_steps': 1,
}

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
