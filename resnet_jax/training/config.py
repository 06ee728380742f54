"""Training settings as one frozen configuration."""

import dataclasses
import math
import re
from typing import Any

from resnet_jax.errors import InputError
from resnet_jax.training.losses import LOSSES
from resnet_jax.training.tasks import TASKS

OPTIMIZERS = ('sgd', 'adam', 'adamw', 'lamb', 'lars', 'rmsprop_tf', 'muon')
SCHEDULES = ('cosine', 'linear', 'polynomial', 'one_cycle', 'step', 'constant')
SCHEDULE_UNITS = ('step', 'epoch')
DECAYED = ('all', 'not_norms', 'kernels')
CROP_FILLS = ('black', 'mean', 'reflect')
# Keys of data.policies.POLICIES.
AUGMENT_POLICIES = (
    *('rand_augment', 'trivial_augment_wide', 'auto_augment_cifar10', 'auto_augment_imagenet'),
    *('rand-m7-mstd0.5-inc1', 'rand-m6-mstd0.5-inc1'),
)
POLICY_INTERPOLATIONS = ('nearest', 'bilinear')
# Keys of models.preprocessing.INTERPOLATIONS.
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
COMPUTE_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything beside the architecture that changes a run's result, and how often it reports.

    Attributes:
      dataset: name as in ``data.datasets.load_dataset``.
      task: what the targets are: ``multiclass``, ``binary``, ``multilabel`` or ``regression``.
      loss: ``softmax_cross_entropy``, ``sigmoid_cross_entropy``, ``squared_error`` or ``absolute_error``; None is the
        task's usual one.
      distill_from: weights of a second network that teaches, as in ``init_from``; None for none.
      distill_weight: share of the teacher in the loss, in [0, 1].
      distill_temperature: that divides both networks' logits before they are compared.
      recipe: key of RECIPES from which the other fields come, for the record.
      seed: of the initialization, the order of the examples and the augmentation.
      epochs: passes over the training examples.
      batch_size: examples in a step, over all devices.
      accumulation_steps: parts of a batch that go through the network one after the other, to save memory; each
        normalizes with its own statistics, and the gradient is their mean.
      optimizer: ``sgd``, ``adam``, ``adamw``, ``lamb``, ``lars``, ``rmsprop_tf`` or ``muon``, as in
        ``optim.make_optimizer``.
      learning_rate: the peak of the schedule.
      learning_rate_batch_size: the batch size that ``learning_rate`` is for; with another it is scaled in proportion.
        None: it is for the one there is.
      head_learning_rate: that of the last linear layer, scaled to the batch like ``learning_rate``; None is the same.
      learning_rate_factors: pairs of a regular expression on the beginning of parameters' paths and the factor of
        their learning rate, such as ``(('stem', 0.1), ('stage[12]', 0.3))``; no two may match the same parameter.
      schedule: ``cosine``, ``linear``, ``polynomial``, ``one_cycle``, ``step`` or ``constant``, as in
        ``schedules.learning_rate_schedule``.
      schedule_unit: what the learning rate changes with: ``step``, or ``epoch``, at the start of which it is taken.
      schedule_power: exponent of the ``polynomial`` schedule.
      final_learning_rate: where ``cosine``, ``linear`` and ``polynomial`` end.
      warmup_epochs: epochs of linear warmup; fractions are allowed.
      warmup_start: share of the peak at which the warmup starts; None: one step's worth above zero.
      warmup_prefix: whether what falls begins after the warmup, or under it, at the start of training.
      decay_epochs: where the ``step`` schedule falls.
      decay_factor: by how much it falls.
      momentum: of SGD, LARS, RMSProp and Muon.
      nesterov: Nesterov's momentum, of SGD and LARS.
      weight_decay: L2 coefficient; with ``adamw``, ``lamb`` and ``muon`` the decoupled one, times the learning rate.
      decayed: which parameters decay: ``all``, ``not_norms`` (no normalization's scale or bias) or ``kernels``.
      clip_norm: largest norm of all gradients together; None for any.
      adaptive_clip: largest gradient norm of a unit in shares of its weights' norm; None for any.
      sam_rho: how far sharpness-aware minimization looks uphill; 0 for not at all.
      ema_decay: of an exponential moving average of parameters and running statistics, which is evaluated in their
        place; None for none.
      ema_warmup: let the average follow faster in the beginning: decay ``min(ema_decay, (1 + n) / (10 + n))`` at the
        n-th update.
      ema_every_steps: steps between updates of the average.
      reestimate_examples: training examples with which the averaged network's running statistics are found anew before
        each evaluation; 0 for none.
      label_smoothing: in [0, 1).
      target_threshold: of sigmoids: smoothed or mixed targets above it become 1, the others 0; None leaves them.
      mixup: alpha of mixup, one share a batch; 0 for none.
      cutmix: alpha of CutMix; with both, each batch gets one of them. Training metrics then count the first image.
      crop_area: smallest and largest share of the image's area in a random crop, which is then resized to
        ``crop_size``; None for none.
      crop_ratio: smallest and largest ratio of width to height in such a crop.
      crop_size: pixels to which training images are cropped at random; None is the size of the images.
      crop_padding: pixels of padding for the random crop; 0 for none.
      crop_fill: what the crop is filled with: ``black``, the ``mean`` colour, or ``reflect``.
      horizontal_flip: mirror half of the images.
      policy: operations drawn for each image: ``rand_augment``, ``trivial_augment_wide``, ``auto_augment_cifar10``,
        ``auto_augment_imagenet``, ``rand-m7-mstd0.5-inc1`` or ``rand-m6-mstd0.5-inc1``; None for none.
      policy_interpolation: ``nearest`` or ``bilinear``: how its shears, translations and rotations read pixels.
      color_jitter: ranges of brightness, contrast, saturation and, where there is a fourth, hue; () for none.
      lighting: standard deviation of noise along the principal colours of ImageNet; 0 for none.
      random_erasing: probability with which a box of an image is erased.
      cutout: pixels of the side of a square that is erased from each image; 0 for none.
      augmentation_repeats: times that a drawn image is in its batch, each time augmented anew.
      image_size: pixels to which the images are resized; None keeps their size, and makes photographs 224 pixels.
      crop_pct: of photographs in an evaluation: ``image_size`` as a fraction of the shorter side that they are resized
        to in front of a central crop.
      interpolation: Pillow's filter with which photographs are resized, one of ``preprocessing.INTERPOLATIONS``.
      compute_dtype: ``float32`` or ``bfloat16``.
      implementation: ``auto`` or ``xla``, as in ``models.conv.convolution``.
      statistics: what batch normalization normalizes with in training: ``global``, ``frozen``, or a number of
        neighbouring examples, as in ``models.norm.BatchNorm``.
      remat: compute the inside of each block again in the backward pass instead of keeping it: less memory, more time.
      shard_optimizer: split the optimizer's state over the devices instead of keeping all of it on each.
      scan_blocks: compile alike blocks once, as in ``models.resnet.ResNet``; None does so in deep networks.
      init_from: weights that are the start, as in ``weights.open_source``: a file, a run, or an id of the hub; None
        starts fresh.
      new_head: start the last linear layer afresh although that of ``init_from`` would fit: other classes, as many.
      freeze: regular expression on the beginning of the paths of parameters that stay as they are, such as
        ``stem|stage[1-3]``; stem and blocks that it matches normalize with their running statistics. None: none.
      mean: of the pixels, subtracted, 1 being white, a number for each channel; None is that of the weights in
        ``init_from``, if they say, or else the dataset's.
      std: likewise, divided by.
      test_flip: evaluate the mean of the outputs for each image and for its mirror image.
      test_shift: evaluate their mean also over the image moved by so many pixels to the upper left and lower right.
      max_skipped_steps: steps in a row whose loss or gradient is not finite, and which were skipped, that stop a run.
      eval_every_epochs: test evaluation after every so many epochs, and after the last.
      checkpoint_every_epochs: checkpoint after every so many epochs, and after the last.
      checkpoint_every_steps: checkpoint after every so many steps besides; None for none.
      log_every_steps: interval of the training metrics; each epoch starts a new one.
      log_norms: record norms of each layer's parameters, gradients and updates.

    Raises:
      InputError: a value out of range.
    """

    dataset: str = 'digits'
    task: str = 'multiclass'
    loss: str | None = None
    distill_from: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    recipe: str = 'digits_quick'
    seed: int = 0
    epochs: int = 30
    batch_size: int = 128
    accumulation_steps: int = 1
    optimizer: str = 'sgd'
    learning_rate: float = 0.1
    learning_rate_batch_size: int | None = None
    head_learning_rate: float | None = None
    learning_rate_factors: tuple[tuple[str, float], ...] = ()
    schedule: str = 'cosine'
    schedule_unit: str = 'step'
    schedule_power: float = 1.0
    final_learning_rate: float = 0.0
    warmup_epochs: float = 0.0
    warmup_start: float | None = None
    warmup_prefix: bool = True
    decay_epochs: tuple[float, ...] = ()
    decay_factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decayed: str = 'all'
    clip_norm: float | None = None
    adaptive_clip: float | None = None
    sam_rho: float = 0.0
    ema_decay: float | None = None
    ema_warmup: bool = False
    ema_every_steps: int = 1
    reestimate_examples: int = 0
    label_smoothing: float = 0.0
    target_threshold: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_area: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_size: int | None = None
    crop_padding: int = 0
    crop_fill: str = 'black'
    horizontal_flip: bool = False
    policy: str | None = None
    policy_interpolation: str = 'nearest'
    color_jitter: tuple[float, ...] = ()
    lighting: float = 0.0
    random_erasing: float = 0.0
    cutout: int = 0
    augmentation_repeats: int = 1
    image_size: int | None = None
    crop_pct: float = 0.875
    interpolation: str = 'bilinear'
    compute_dtype: str = 'float32'
    implementation: str = 'auto'
    statistics: str | int = 'global'
    remat: bool = False
    shard_optimizer: bool = False
    scan_blocks: bool | None = None
    init_from: str | None = None
    new_head: bool = False
    freeze: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    test_flip: bool = False
    test_shift: int = 0
    max_skipped_steps: int = 10
    eval_every_epochs: int = 1
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    log_every_steps: int = 50
    log_norms: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # JSON gives lists
            object.__setattr__(self, field.name, _as_tuple(getattr(self, field.name)))
        self._check_choices()
        self._check_numbers()
        self._check_schedule()
        self._check_augmentation()
        for name, pattern in (('freeze', self.freeze), *(('learning_rate_factors', p) for p, _ in self._factors())):
            try:
                re.compile(pattern or '')
            except re.error as error:
                raise InputError(f'{name}={pattern!r} is no regular expression: {error}') from error
        if self.task == 'regression' and self.label_smoothing:
            raise InputError(f'label_smoothing={self.label_smoothing} is for classes; task=regression takes 0')
        if self.task == 'regression' and self.distill_from is not None:
            raise InputError(f'distill_from={self.distill_from}: networks for task=regression have units of their own')
        if self.head_learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f'head_learning_rate={self.head_learning_rate} needs a learning_rate above 0')
        if self.sam_rho and self.freeze is not None:
            raise InputError(f'sam_rho={self.sam_rho} moves all parameters uphill; it does not go with freeze')
        if self.new_head and self.init_from is None:
            raise InputError('new_head=True needs init_from: without it every layer is new')
        if self.batch_size % self.accumulation_steps:
            raise InputError(
                f'accumulation_steps={self.accumulation_steps} must divide the batch_size={self.batch_size}'
            )
        if self.reestimate_examples and self.ema_decay is None:
            raise InputError(
                f'reestimate_examples={self.reestimate_examples} needs ema_decay: other weights know theirs'
            )

    @property
    def peak_learning_rate(self) -> float:
        """``learning_rate``, scaled to the batch size where it is for another (Goyal et al. 2017, section 2.1)."""
        return self.learning_rate * self.batch_size / (self.learning_rate_batch_size or self.batch_size)

    def _check_choices(self) -> None:
        choices = {
            'task': tuple(TASKS),
            'loss': (None, *LOSSES),
            'optimizer': OPTIMIZERS,
            'schedule': SCHEDULES,
            'schedule_unit': SCHEDULE_UNITS,
            'decayed': DECAYED,
            'crop_fill': CROP_FILLS,
            'policy': (None, *AUGMENT_POLICIES),
            'policy_interpolation': POLICY_INTERPOLATIONS,
            'compute_dtype': COMPUTE_DTYPES,
            'interpolation': INTERPOLATIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f'{name}={getattr(self, name)!r} must be one of {", ".join(map(str, known))}')
        # Raises where they do not go together.
        TASKS[self.task](self.loss or '', target_threshold=self.target_threshold)

    def _check_numbers(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(v) for v in values if isinstance(v, float)):
                raise InputError(f'{field.name}={value} must be finite')
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f'{name}={value} must be at least {low}')
        for name in ('momentum', 'label_smoothing', 'ema_decay'):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f'{name}={value} must be in [0, 1)')
        for name in ('random_erasing', 'distill_weight', 'warmup_start'):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f'{name}={value} must be in [0, 1]')
        for name in ('clip_norm', 'adaptive_clip', 'distill_temperature'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f'{name}={value} must be above 0')
        if self.std is not None and not all(value > 0 for value in self.std):
            raise InputError(f'std={self.std} must be above 0')
        if self.seed >= 2**32:
            raise InputError(f'seed={self.seed} must be less than 2**32')
        for pattern, factor in self._factors():
            if not pattern:
                raise InputError(f'learning_rate_factors: the factor {factor} needs a pattern')
            if not factor >= 0:
                raise InputError(f'learning_rate_factors: the factor {factor} of {pattern!r} must be at least 0')

    def _factors(self) -> tuple[tuple[str, float], ...]:
        for pair in self.learning_rate_factors:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise InputError(f'learning_rate_factors: {pair!r} must be a pattern and a factor')
        return self.learning_rate_factors

    def _check_schedule(self) -> None:
        if self.schedule == 'step' and not self.decay_epochs:
            raise InputError("schedule='step' needs decay_epochs")
        if self.warmup_epochs >= self.epochs or max(self.decay_epochs, default=0) >= self.epochs:
            raise InputError(
                f'warmup_epochs={self.warmup_epochs} and decay_epochs={self.decay_epochs} must lie before the end of'
                f' epochs={self.epochs}'
            )

    def _check_augmentation(self) -> None:
        if self.crop_area is not None and not (
            len(self.crop_area) == 2 and 0 < self.crop_area[0] <= self.crop_area[1] <= 1
        ):
            raise InputError(f'crop_area={self.crop_area} must be two shares, 0 < smallest <= largest <= 1')
        if not 0 < self.crop_pct <= 1:
            raise InputError(f'crop_pct={self.crop_pct} must be above 0 and at most 1')
        if len(self.crop_ratio) != 2 or not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise InputError(f'crop_ratio={self.crop_ratio} must be two numbers, 0 < smallest <= largest')
        if self.crop_area is not None and self.crop_padding:
            raise InputError(f'crop_padding={self.crop_padding} does not go with crop_area={self.crop_area}')
        if len(self.color_jitter) not in (0, 3, 4) or not all(range_ >= 0 for range_ in self.color_jitter):
            raise InputError(f'color_jitter={self.color_jitter} must be three or four numbers from 0 on, or none')
        if len(self.color_jitter) == 4 and self.color_jitter[3] > 0.5:
            raise InputError(f'color_jitter={self.color_jitter}: the range of the hue must be at most 0.5')


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


_AT_LEAST = {
    **dict.fromkeys(('epochs', 'batch_size', 'accumulation_steps', 'learning_rate_batch_size', 'image_size'), 1),
    **dict.fromkeys(('crop_size', 'ema_every_steps', 'augmentation_repeats', 'max_skipped_steps'), 1),
    **dict.fromkeys(('eval_every_epochs', 'checkpoint_every_epochs', 'checkpoint_every_steps', 'log_every_steps'), 1),
    **dict.fromkeys(('seed', 'learning_rate', 'head_learning_rate', 'final_learning_rate', 'schedule_power'), 0),
    **dict.fromkeys(('warmup_epochs', 'weight_decay', 'decay_factor', 'sam_rho', 'reestimate_examples'), 0),
    **dict.fromkeys(('crop_padding', 'mixup', 'cutmix', 'lighting', 'cutout', 'test_shift'), 0),
}
