"""Training settings as one frozen configuration, in groups."""

import dataclasses
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
from resnet_jax.training.optimizers import OPTIMIZERS, SGD, check_pattern, optimizer_from
from resnet_jax.training.schedules import SCHEDULES, Cosine, StepDecay, learning_rate_schedule, warmup_epochs

WEIGHTS = (
    'a file of PyTorch (.pth, .pt, .bin, .th), safetensors or BiT (.npz); the folder of a run or of one of its'
    ' checkpoints; or hf:OWNER/NAME on the Hugging Face hub'
)


def _statistics(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


@dataclasses.dataclass(frozen=True)
class Data(Settings):
    """What is trained and tested on, and how the network sees it without augmentation."""

    dataset: str = setting(
        'digits',
        'Data to use: digits, a TFDS name such as cifar10, arrays:DIR with train.npz and test.npz (images uint8,'
        ' labels), folder:DIR with photographs in DIR/train/CLASS and DIR/test/CLASS or in DIR/CLASS, or synthetic'
        ' (random, for timing).',
    )
    image_size: int | None = setting(
        None,
        'Resize the images to squares of this side.',
        none='their own size, of photographs 224',
        unit='pixels',
        at_least=1,
    )
    mean: tuple[float, ...] | None = setting(
        None,
        'Mean of the pixels to subtract, 1 being white, one number for each channel.',
        none="that of the weights in init_from, if they say, else the dataset's",
    )
    std: tuple[float, ...] | None = setting(
        None, 'Standard deviation of the pixels to divide by, likewise.', none='as of mean', above=0
    )
    crop_pct: float = setting(
        0.875,
        'Of photographs in evaluations: image_size as a fraction of what their shorter side is resized to before the'
        ' central crop.',
        above=0,
        at_most=1,
    )
    interpolation: str = setting('bilinear', 'Filter that resizes photographs.', choices=tuple(INTERPOLATIONS))
    test_flip: bool = setting(False, 'Evaluate the mean of the outputs for an image and its mirror image.')
    test_shift: int = setting(
        0, 'Evaluate their mean also over the image moved this far to the upper left and to the lower right.',
        unit='pixels', at_least=0,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Objective(Settings):
    """What is learned of each image, and the loss."""

    task: Any = setting(
        DEFAULT_TASK,
        'Kind of target: a class; yes or no; any number of labels; or numbers. Digits have a target of each kind: the'
        ' digit, its parity, five attributes, the slant of the writing.',
        choices=tuple(TASKS),
        by_value=True,
    )
    loss: Any = setting(
        None,
        'Loss function; must be compatible with the task.',
        none="the task's usual one",
        choices=LOSSES,
        by_value=True,
    )
    label_smoothing: float = setting(0.0, 'Share of the target spread over all classes.', at_least=0, below=1)
    target_threshold: float | None = setting(
        None,
        'Of sigmoids in training: smoothed or mixed targets above it become 1, others 0.',
        none='as they are',
        off='0',
    )

    def __post_init__(self) -> None:
        """Calls what is built in by its name."""
        object.__setattr__(self, 'task', by_name(self.task))
        super().__post_init__()

    def check_together(self) -> None:
        """As in Settings."""
        if not callable(self.loss):
            make_task(self.task, self.loss, self.label_smoothing, self.target_threshold)  # raises what does not fit
            return
        for name in ('label_smoothing', 'target_threshold'):
            if value := getattr(self, name):
                raise InputError(
                    f"{name}={value} has no effect: loss={qualified_name(self.loss)} replaces the task's loss"
                )


@dataclasses.dataclass(frozen=True)
class Averaging(Settings):
    """An exponential moving average of parameters and running statistics, which is evaluated in their place."""

    ema_decay: float = setting(help='Decay of the average at an update.', at_least=0, below=1, off='0')
    ema_warmup: bool = setting(
        False, 'Let it follow faster in the beginning: decay min(ema_decay, (1 + n) / (10 + n)) at the n-th update.'
    )
    ema_every_steps: int = setting(1, 'Interval between its updates.', unit='steps', at_least=1)
    reestimate_examples: int = setting(
        0,
        'Training examples from which the running statistics of the averaged network are estimated again before each'
        ' evaluation; 0 for none.',
        unit='examples',
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class Distillation(Settings):
    """A second network whose outputs are learned, too."""

    distill_from: str = setting(help=f'Weights of the second network: {WEIGHTS}.', off='none')
    distill_weight: float = setting(0.5, "The second network's share of the loss.", at_least=0, at_most=1)
    distill_temperature: float = setting(1.0, "Divides both networks' logits before they are compared.", above=0)


@dataclasses.dataclass(frozen=True)
class Start(Settings):
    """Where training starts from, and what stays as it is there."""

    init_from: str | None = setting(None, f'Weights to start from: {WEIGHTS}.', none='random ones')
    new_head: bool = setting(
        False,
        'Start the last linear layer from random weights although that of init_from would fit: for other classes, as'
        ' many.',
    )
    freeze: str | None = setting(
        None,
        'Regular expression on the beginning of the paths of parameters that are not trained: stem|stage[1-3]; stem and'
        ' blocks that it matches normalize with their running statistics.',
        none='none',
    )

    def check_together(self) -> None:
        """As in Settings."""
        check_pattern('freeze', self.freeze or '')
        if self.new_head and self.init_from is None:
            raise InputError('new_head=True needs init_from: without it every layer is new')


@dataclasses.dataclass(frozen=True)
class Execution(Settings):
    """How the network is computed."""

    compute_dtype: str = setting(
        'float32', 'Dtype of the layers; parameters stay float32.', choices=('float32', 'bfloat16')
    )
    implementation: str = setting(
        'auto',
        'auto computes convolutions and normalizations in the forms that are fast on the platform; xla leaves them to'
        ' the compiler.',
        choices=('auto', 'xla'),
    )
    statistics: str | int = setting(
        'global',
        'What batch normalization normalizes with in training: global, the whole batch over all devices; frozen; or a'
        ' number of neighbouring examples (ghost batches).',
        parse=_statistics,
    )
    accumulation_steps: int = setting(
        1,
        'Parts of a batch that go through the network one after the other, to save memory; each normalizes with its own'
        ' statistics, and the gradient is their mean.',
        at_least=1,
    )
    remat: bool = setting(
        False, 'Compute the inside of each block again in the backward pass instead of keeping it: less memory.'
    )
    shard_optimizer: bool = setting(False, "Split the optimizer's state over the devices.")
    scan_blocks: bool | None = setting(
        None, 'Compile the alike blocks of a stage once, as a loop.', none='where a stage has 16 blocks or more'
    )


@dataclasses.dataclass(frozen=True)
class Reporting(Settings):
    """How often a run reports and saves: what may differ when it is resumed."""

    eval_every_epochs: int = setting(
        1, 'Interval between test evaluations, beside that after the last epoch.', unit='epochs', at_least=1
    )
    checkpoint_every_epochs: int = setting(
        1, 'Interval between checkpoints, beside that after the last epoch.', unit='epochs', at_least=1
    )
    checkpoint_every_steps: int | None = setting(
        None, 'Interval between more checkpoints.', none='no more', unit='steps', at_least=1, off='0'
    )
    log_every_steps: int = setting(
        50, 'Interval of the training metrics; each epoch starts a new one.', unit='steps', at_least=1
    )
    log_norms: bool = setting(False, "Record norms of each layer's parameters, gradients and updates.")
    max_skipped_steps: int = setting(
        10, 'Steps in a row without a finite loss and gradient, which are skipped, that stop a run.', at_least=1
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Everything beside the architecture that changes a run's result, and how often it reports.

    Raises:
      InputError: a value out of range, or values that do not go together.
    """

    recipe: str = 'digits_quick'  # for the record
    data: Data = group(Data, Data())
    objective: Objective = group(Objective, Objective())
    epochs: int = setting(30, 'Passes over the training examples; the schedule is stretched to them.', at_least=1)
    batch_size: int = setting(128, 'Examples in a step, over all devices.', unit='examples', at_least=1)
    seed: int = setting(
        0, 'Seed of the initialization, the order of the examples and the augmentation.', at_least=0, below=2**32
    )
    augmentation: Augmentation = group(Augmentation, Augmentation())
    optimizer: Any = choice(SGD(), 'Optimizer; optax.NAME is one of optax.', OPTIMIZERS, from_value=optimizer_from)
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
        """The learning rate, scaled to the batch size where it is for another one."""
        return (
            self.optimizer.learning_rate
            * self.batch_size
            / (self.optimizer.learning_rate_batch_size or self.batch_size)
        )

    def replace(self, **changes: Any) -> Self:
        """As in Settings."""
        changed = super().replace(**changes)
        changed._check_given(changes)
        return changed

    def _check_given(self, changes: dict[str, Any]) -> None:
        """Raises InputError for changes that a schedule or an optimizer given as a value makes pointless."""
        pointless: dict[str, str] = {}
        if not isinstance(self.schedule, Settings):
            reason = f'schedule={qualified_name(self.schedule)} is the learning rate itself'
            pointless |= dict.fromkeys(('learning_rate', 'learning_rate_batch_size', 'head_learning_rate'), reason)
        if not isinstance(self.optimizer, Settings):
            reason = f'optimizer={qualified_name(self.optimizer)} has its own rate'
            names = (name for kind in SCHEDULES.values() for name in all_settings(kind))
            pointless |= dict.fromkeys(('schedule', *names), reason)
        for name in sorted(changes.keys() & pointless):
            raise InputError(f'{name}={changes[name]!r} has no effect: {pointless[name]}')

    def check_together(self) -> None:
        """As in Settings."""
        self._check_schedule()
        self._check_loss()
        if getattr(self.optimizer, 'sam_rho', 0) and self.start.freeze is not None:
            raise InputError(
                f'sam_rho={self.optimizer.sam_rho} moves all parameters uphill; it does not go with freeze'
            )
        if self.batch_size % self.execution.accumulation_steps:
            raise InputError(
                f'accumulation_steps={self.execution.accumulation_steps} must divide the batch_size={self.batch_size}'
            )

    def _check_loss(self) -> None:
        task, loss = get_task(self.objective.task), self.objective.loss
        if self.distillation is not None:
            teacher = f'distill_from={self.distillation.distill_from}'
            if not task.distillable:
                raise InputError(f'{teacher}: networks for task={task.name} have units of their own')
            if callable(loss):
                raise InputError(f"{teacher} has no effect: loss={qualified_name(loss)} replaces the task's loss")
        if self.augmentation.views > 1 and not callable(loss):
            raise InputError(f'views={self.augmentation.views} needs a loss of your own, which compares them')

    def _check_schedule(self) -> None:
        schedule = self.schedule
        if isinstance(schedule, StepDecay) and not schedule.decay_epochs:
            raise InputError("schedule='step' needs decay_epochs")
        warmup, last = warmup_epochs(schedule), max(getattr(schedule, 'decay_epochs', ()), default=0)
        if warmup >= self.epochs or last >= self.epochs:
            raise InputError(
                f'warmup_epochs={warmup} and decay_epochs={getattr(schedule, "decay_epochs", ())} must lie before the'
                f' end of epochs={self.epochs}'
            )


def rate_of(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate of a configuration as a function of the step; NaN where the optimizer has its own."""
    if not isinstance(config.optimizer, Settings):
        return lambda step: jnp.full(jnp.shape(step), jnp.nan)
    return learning_rate_schedule(config.schedule, config.peak_learning_rate, config.epochs, steps_per_epoch)


def optimizer_of(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a configuration."""
    return make_optimizer(config.optimizer, rate_of(config, steps_per_epoch), config.start.freeze)
