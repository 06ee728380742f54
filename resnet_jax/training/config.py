"""Training settings as one frozen configuration, in groups."""

import dataclasses
import re
from typing import Any, Self

import jax.numpy as jnp
import optax

from resnet_jax.data.augment import Augmentation
from resnet_jax.data.preprocessing import INTERPOLATIONS
from resnet_jax.errors import InputError
from resnet_jax.given import qualified_name
from resnet_jax.settings import Settings, all_settings, choice, group, setting
from resnet_jax.tasks.kinds import DEFAULT_TASK, TASKS, by_name, get_task, make_task
from resnet_jax.tasks.losses import LOSSES
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.optimizers import OPTIMIZERS, SGD, Lamb, Lars, check_pattern, optimizer_from
from resnet_jax.training.schedules import SCHEDULES, Cosine, StepDecay, learning_rate_schedule, warmup_epochs

WEIGHTS = (
    'a PyTorch (.pth, .pt, .bin, .th), safetensors or BiT (.npz) file; the folder of a run or of one of its'
    ' checkpoints; or hf:OWNER/NAME on the Hugging Face Hub'
)

# Parameters of the last linear layer.
_HEAD = ('head/kernel', 'head/bias')


def _statistics(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


@dataclasses.dataclass(frozen=True)
class Data(Settings):
    """The dataset, and how images are presented to the network before augmentation."""

    dataset: str = setting(
        'digits',
        'Dataset: digits, a TFDS name such as cifar10, arrays:DIR with train.npz and test.npz (images uint8,'
        ' labels), folder:DIR with photographs in DIR/train/CLASS and DIR/test/CLASS or in DIR/CLASS, or synthetic'
        ' (random, for timing).',
    )
    image_size: int | None = setting(
        None,
        'Height and width that images are resized to.',
        none='the original size, 224 for photographs',
        unit='pixels',
        at_least=1,
    )
    mean: tuple[float, ...] | None = setting(
        None,
        'Pixel mean to subtract, one number per channel; white is 1.',
        none="that of the weights in init_from if recorded, otherwise the dataset's",
    )
    std: tuple[float, ...] | None = setting(
        None, 'Pixel standard deviation to divide by, one number per channel.', none='as for mean', above=0
    )
    crop_pct: float = setting(
        0.875,
        'For photographs in evaluation: image_size as a fraction of the length to which the shorter side is resized'
        ' before the center crop.',
        above=0,
        at_most=1,
    )
    interpolation: str = setting(
        'bilinear', 'Resampling filter for resizing photographs.', choices=tuple(INTERPOLATIONS)
    )
    test_flip: bool = setting(False, 'In evaluation, average outputs over each image and its mirror image.')
    test_shift: int = setting(
        0, 'In evaluation, also average outputs over two shifts of each image, up-left and down-right by this much.',
        unit='pixels', at_least=0,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Objective(Settings):
    """The task and the loss."""

    task: Any = setting(
        DEFAULT_TASK,
        'Kind of target: one class, yes or no, any number of labels, or real numbers. The digits dataset has targets of'
        ' each kind: the digit, its parity, five attributes, and the slant of the writing.',
        choices=tuple(TASKS),
        by_value=True,
    )
    loss: Any = setting(
        None,
        'Loss function; must be compatible with the task.',
        none="the task's default",
        choices=LOSSES,
        by_value=True,
    )
    label_smoothing: float = setting(0.0, 'Fraction of the target spread over all classes.', at_least=0, below=1)
    target_threshold: float | None = setting(
        None,
        'In sigmoid training losses, smoothed or mixed targets above this become 1, others 0.',
        none='no threshold',
        off='0',
    )

    def __post_init__(self) -> None:
        """Replaces a built-in task by its name."""
        object.__setattr__(self, 'task', by_name(self.task))
        super().__post_init__()

    def check_together(self) -> None:
        """As in Settings."""
        if not callable(self.loss):
            make_task(
                self.task, self.loss, self.label_smoothing, self.target_threshold
            )  # raises InputError if they do not fit
            return
        for name in ('label_smoothing', 'target_threshold'):
            if value := getattr(self, name):
                raise InputError(
                    f"{name}={value} has no effect: loss={qualified_name(self.loss)} replaces the task's loss"
                )


@dataclasses.dataclass(frozen=True)
class Averaging(Settings):
    """Exponential moving average of parameters and running statistics, used for evaluation."""

    ema_decay: float = setting(
        help='Decay of the exponential moving average of the weights per update.', at_least=0, below=1, off='0'
    )
    ema_warmup: bool = setting(False, 'Use the smaller decay min(ema_decay, (1 + n) / (10 + n)) at the n-th update.')
    ema_every_steps: int = setting(1, 'Interval between updates of the average.', unit='steps', at_least=1)
    reestimate_examples: int = setting(
        0,
        'Training examples used to recompute the running statistics of the averaged weights before each evaluation; 0'
        ' turns this off.',
        unit='examples',
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class Distillation(Settings):
    """Distillation from a teacher network."""

    distill_from: str = setting(help=f'Weights of the teacher: {WEIGHTS}.', off='none')
    distill_weight: float = setting(
        0.5, "Weight of the distillation loss; the task's loss gets the rest.", at_least=0, at_most=1
    )
    distill_temperature: float = setting(1.0, 'Temperature that divides the logits of both networks.', above=0)
    distill_classes_match: bool = setting(
        False,
        "Use the teacher although its class names, or its images' channels, differ from the dataset's: its outputs are"
        ' the same classes in the same order.',
    )


@dataclasses.dataclass(frozen=True)
class Start(Settings):
    """Initial weights, and which parameters are frozen."""

    init_from: str | None = setting(None, f'Initial weights: {WEIGHTS}.', none='random initialization')
    weights_prefix: str | None = setting(
        None,
        'Which network to load from a file with several: the prefix of its names, or a part of it, such as teacher.',
        none='the only one',
    )
    new_head: bool = setting(
        False,
        'Initialize the last linear layer randomly even if that of init_from has the right number of classes.',
    )
    freeze: str | None = setting(
        None,
        'Regular expression for the start of parameter paths that are not trained: stem|stage[1-3]. A matched stem or'
        ' block normalizes with its running statistics.',
        none='none',
    )

    def check_together(self) -> None:
        """As in Settings."""
        check_pattern('freeze', self.freeze or '')
        if self.new_head and self.init_from is None:
            raise InputError('new_head=True needs init_from: without it, every layer is new')
        if self.weights_prefix is not None and self.init_from is None:
            raise InputError(f'weights_prefix={self.weights_prefix} needs init_from, the file with the weights')


@dataclasses.dataclass(frozen=True)
class Execution(Settings):
    """How the network is computed."""

    compute_dtype: str = setting(
        'float32', 'Dtype of the layers; parameters stay float32.', choices=('float32', 'bfloat16')
    )
    implementation: str = setting(
        'auto',
        'auto computes convolutions and normalizations in the fastest form for the platform; xla leaves them to the'
        ' compiler.',
        choices=('auto', 'xla'),
    )
    statistics: str | int = setting(
        'global',
        'Batch-normalization statistics in training: global, over the whole batch on all devices; frozen, the running'
        ' statistics; or a number, over groups of this many examples (ghost batches).',
        parse=_statistics,
    )
    accumulation_steps: int = setting(
        1,
        'Number of parts of each batch that are processed in sequence to save memory; each part has its own batch'
        ' statistics, and their gradients are averaged.',
        at_least=1,
    )
    remat: bool = setting(False, 'Recompute the activations inside each block in the backward pass to save memory.')
    shard_optimizer: bool = setting(False, "Shard the optimizer's state over the devices.")
    scan_blocks: bool | None = setting(
        None, 'Compile equal-shaped blocks of a stage once, as a loop.', none='if a stage has at least 16 blocks'
    )

    def check_together(self) -> None:
        """As in Settings."""
        is_count = isinstance(self.statistics, int) and not isinstance(self.statistics, bool) and self.statistics >= 1
        if self.statistics not in ('global', 'frozen') and not is_count:
            raise InputError(f'statistics={self.statistics!r} must be global, frozen, or a positive integer')


@dataclasses.dataclass(frozen=True)
class Reporting(Settings):
    """How often a run calls the devices, reports and saves; these settings may change when it is resumed."""

    eval_every_epochs: int = setting(
        1, 'Interval between test evaluations; the last epoch is always evaluated.', unit='epochs', at_least=1
    )
    checkpoint_every_epochs: int = setting(
        1, 'Interval between checkpoints; the last epoch is always saved.', unit='epochs', at_least=1
    )
    checkpoint_every_steps: int | None = setting(
        None, 'Interval between additional checkpoints.', none='none', unit='steps', at_least=1, off='0'
    )
    log_every_steps: int = setting(
        50,
        'Interval over which training metrics are averaged; a new one starts with every epoch.',
        unit='steps',
        at_least=1,
    )
    steps_per_call: int = setting(
        1,
        'Training steps per call of the compiled program, in a loop on the devices, so that short steps do not wait for'
        ' the host; for images in memory. Every epoch starts a new call. Logging intervals, checkpoints and signals'
        ' wait for the end of a call.',
        unit='steps',
        at_least=1,
    )
    log_norms: bool = setting(False, "Log the norms of each layer's parameters, gradients and updates.")
    max_skipped_steps: int = setting(
        10,
        'Stop after this many consecutive steps with a non-finite loss or gradient; such steps are skipped.',
        at_least=1,
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Everything except the architecture that affects a run's result, and how often it reports.

    Raises:
      InputError: a value is out of range, or values contradict each other.
    """

    recipe: str = 'digits_quick'  # for the record
    data: Data = group(Data, Data())
    objective: Objective = group(Objective, Objective())
    epochs: int = setting(30, "Passes over the training set; a recipe's schedule is scaled to them.", at_least=1)
    batch_size: int = setting(128, 'Examples per step, over all devices.', unit='examples', at_least=1)
    seed: int = setting(0, 'Random seed for initialization, example order and augmentation.', at_least=0, below=2**32)
    augmentation: Augmentation = group(Augmentation, Augmentation())
    optimizer: Any = choice(SGD(), 'Optimizer (optax.NAME for any of optax).', OPTIMIZERS, from_value=optimizer_from)
    schedule: Any = choice(
        Cosine(), 'Learning-rate schedule.', SCHEDULES, from_value=lambda asked: asked if callable(asked) else None
    )
    averaging: Averaging | None = group(Averaging, None)
    distillation: Distillation | None = group(Distillation, None)
    start: Start = group(Start, Start())
    execution: Execution = group(Execution, Execution())
    reporting: Reporting = group(Reporting, Reporting())

    @property
    def peak_learning_rate(self) -> float:
        """The peak learning rate, scaled from ``learning_rate_batch_size`` to the batch size."""
        return (
            self.optimizer.learning_rate
            * self.batch_size
            / (self.optimizer.learning_rate_batch_size or self.batch_size)
        )

    def replace(self, **changes: Any) -> Self:
        """As in Settings."""
        changed = super().replace(**changes)
        changed._check_effects(changes)
        return changed

    def _check_effects(self, changes: dict[str, Any]) -> None:
        """Raises InputError for changes without effect on a schedule or optimizer that was given as a value."""
        without_effect: dict[str, str] = {}
        if not isinstance(self.schedule, Settings):
            reason = f'schedule={qualified_name(self.schedule)} is the learning rate itself'
            without_effect |= dict.fromkeys(('learning_rate', 'learning_rate_batch_size', 'head_learning_rate'), reason)
        if not isinstance(self.optimizer, Settings):
            reason = f'optimizer={qualified_name(self.optimizer)} has its own rate'
            names = (name for kind in SCHEDULES.values() for name in all_settings(kind))
            without_effect |= dict.fromkeys(('schedule', *names), reason)
        elif not getattr(self.optimizer, 'weight_decay', 0.0) and not isinstance(self.optimizer, Lamb | Lars):
            without_effect['decayed'] = 'weight_decay is 0'
        for name in sorted(changes.keys() & without_effect):
            raise InputError(f'{name}={changes[name]!r} has no effect: {without_effect[name]}')

    def check_together(self) -> None:
        """As in Settings."""
        self._check_schedule()
        self._check_loss()
        if getattr(self.optimizer, 'sam_rho', 0) and self.start.freeze is not None:
            raise InputError(
                f'sam_rho={self.optimizer.sam_rho} cannot be combined with freeze: it perturbs all parameters'
            )
        head, freeze = getattr(self.optimizer, 'head_learning_rate', None), self.start.freeze
        if head is not None and freeze is not None and all(re.match(freeze, path) for path in _HEAD):
            raise InputError(f'head_learning_rate={head} has no effect: freeze={freeze!r} freezes the head')
        if self.batch_size % self.execution.accumulation_steps:
            raise InputError(
                f'accumulation_steps={self.execution.accumulation_steps} must divide batch_size={self.batch_size}'
            )

    def _check_loss(self) -> None:
        task, loss = get_task(self.objective.task), self.objective.loss
        if self.distillation is not None:
            teacher = f'distill_from={self.distillation.distill_from}'
            if not task.distillable:
                raise InputError(f'{teacher}: distillation is not supported for task={task.name}')
            if callable(loss):
                raise InputError(f"{teacher} has no effect: loss={qualified_name(loss)} replaces the task's loss")
        if self.augmentation.views > 1 and not callable(loss):
            raise InputError(f'views={self.augmentation.views} needs a custom loss that compares the views')

    def _check_schedule(self) -> None:
        schedule = self.schedule
        if isinstance(schedule, StepDecay) and not schedule.decay_epochs:
            raise InputError("schedule='step' needs decay_epochs")
        warmup, last = warmup_epochs(schedule), max(getattr(schedule, 'decay_epochs', ()), default=0)
        if warmup >= self.epochs or last >= self.epochs:
            raise InputError(
                f'warmup_epochs={warmup} and decay_epochs={getattr(schedule, "decay_epochs", ())} must be less than'
                f' epochs={self.epochs}'
            )


def rate_of(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step; NaN if the optimizer sets its own."""
    if not isinstance(config.optimizer, Settings):
        return lambda step: jnp.full(jnp.shape(step), jnp.nan)
    return learning_rate_schedule(config.schedule, config.peak_learning_rate, config.epochs, steps_per_epoch)


def optimizer_of(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a configuration."""
    return make_optimizer(config.optimizer, rate_of(config, steps_per_epoch), config.start.freeze)
