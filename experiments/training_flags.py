"""The flags of the training scripts, and the settings that they make."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from resnet_jax import InputError
from resnet_jax.models.conv import IMPLEMENTATIONS
from resnet_jax.models.layers import STEMS
from resnet_jax.training.config import (
    AUGMENT_POLICIES,
    COMPUTE_DTYPES,
    CROP_FILLS,
    DECAYED,
    INTERPOLATIONS,
    OPTIMIZERS,
    POLICY_INTERPOLATIONS,
    SCHEDULE_UNITS,
    SCHEDULES,
)
from resnet_jax.training.losses import LOSSES
from resnet_jax.training.recipes import RECIPES
from resnet_jax.training.tasks import TASKS

FLAGS = flags.FLAGS

INIT_FROM = (
    'Weights: a file of PyTorch (.pth, .pt, .bin, .th), safetensors or BiT (.npz); the folder of a run or of one of its'
    ' checkpoints; or hf:OWNER/NAME on the Hugging Face hub.'
)


# Flags that are fields of TrainConfig under the same name; one left unset keeps the recipe's value.
_SETTINGS: list[str] = []
# Those of them that are lists of numbers, and those that are none and not scalars.
_NUMBERS = ('decay_epochs', 'crop_area', 'crop_ratio', 'color_jitter', 'mean', 'std')
_UNLIKE = ('learning_rate_factors', 'statistics')
# Those whose 0, nothing or none stands for None, so that what a recipe has can be switched off.
_NONE_IF_EMPTY = ('policy', 'crop_area', 'crop_size', 'clip_norm', 'adaptive_clip', 'target_threshold', 'ema_decay')


def _setting(define: Any, name: str, *arguments: Any) -> None:
    """Defines a flag that is a field of TrainConfig and None by default; the last argument is its help."""
    define(name, None, *arguments)
    _SETTINGS.append(name)


def define_data_flags(default: str = "the recipe's") -> None:
    """Flags of every script that reads a dataset; ``default`` says whose dataset it reads otherwise."""
    flags.DEFINE_string(
        'dataset',
        None,
        'Data to use: digits, a TFDS name such as cifar10, arrays:DIR with train.npz and test.npz (images uint8,'
        ' labels), folder:DIR with photographs in DIR/train/CLASS and DIR/test/CLASS or in DIR/CLASS, or synthetic'
        f' (random, for timing). Default: {default}.',
    )
    flags.DEFINE_string(
        'data_dir', None, "Folder of prepared TFDS datasets. Default: TFDS's own, ~/tensorflow_datasets."
    )
    flags.DEFINE_integer(
        'image_size',
        None,
        'Resize the images to this many pixels a side. Default: as they are; of photographs 224.',
        lower_bound=1,
    )


def define_photograph_flags() -> None:
    """How photographs are prepared, and read."""
    _setting(
        flags.DEFINE_float,
        'crop_pct',
        'Of photographs in evaluations: --image_size as a fraction of what their shorter side is resized to before the'
        ' central crop. Default: 0.875.',
    )
    _setting(flags.DEFINE_enum, 'interpolation', INTERPOLATIONS, 'Filter that resizes them. Default: bilinear.')
    flags.DEFINE_bool('strict_data', False, 'Stop at a photograph that cannot be decoded, instead of taking another.')


def define_normalization_flags() -> None:
    """Flags of the scripts in which images may be normalized as other weights want it."""
    flags.DEFINE_list(
        'mean',
        None,
        'Mean of the pixels to subtract, 1 being white: a number a channel, separated by commas. Default: that of the'
        " weights in --init_from, if they say, else the dataset's; in evaluate, of photographs, ImageNet's.",
    )
    flags.DEFINE_list('std', None, 'Standard deviation to divide by, likewise.')


def _define_network_flags() -> None:
    """How the network is computed, and parts of it that every family has."""
    _setting(
        flags.DEFINE_enum,
        'compute_dtype',
        COMPUTE_DTYPES,
        'Dtype of the layers; parameters stay float32. Default: float32.',
    )
    _setting(
        flags.DEFINE_enum,
        'implementation',
        IMPLEMENTATIONS,
        'auto computes convolutions and normalizations in the forms that are fast on the platform; xla leaves them to'
        ' the compiler. Default: auto.',
    )
    _setting(
        flags.DEFINE_string,
        'statistics',
        'What batch normalization normalizes with in training: global, the whole batch over all devices; frozen; or a'
        ' number of neighbouring examples (ghost batches). Default: global.',
    )
    _setting(
        flags.DEFINE_bool,
        'scan_blocks',
        'Compile the alike blocks of a stage once instead of one after the other. Default: where a stage has 16 blocks'
        ' or more.',
    )
    _setting(
        flags.DEFINE_bool,
        'remat',
        'Compute the inside of each block again in the backward pass instead of keeping it. Default: no.',
    )
    _setting(flags.DEFINE_bool, 'shard_optimizer', "Split the optimizer's state over the devices. Default: no.")
    flags.DEFINE_bool('zero_init_last', None, "Start residual branches at zero. Default: the architecture's.")
    flags.DEFINE_float('drop_path_rate', None, "Stochastic depth at the last block. Default: the architecture's.")
    flags.DEFINE_float('drop_block_rate', None, "DropBlock in stages 3 and 4 of 4. Default: the architecture's.")
    flags.DEFINE_float('dropout_rate', None, "Dropout in front of the linear layer. Default: the architecture's.")
    flags.DEFINE_enum('stem', None, list(STEMS), "First layers; cifar for small images. Default: the architecture's.")


def define_augmentation_flags() -> None:
    """What is done to each training image. Every default is the recipe's, and nothing in regression."""
    number, whole, several = flags.DEFINE_float, flags.DEFINE_integer, flags.DEFINE_list
    _setting(several, 'crop_area', 'Range of the area of a random crop that is resized: 0.08,1; empty for none.')
    _setting(several, 'crop_ratio', 'Range of width to height of such a crop. Default: 3/4 to 4/3.')
    _setting(whole, 'crop_size', 'Pixels a side of the crop that is trained on; 0 for the size of the images.')
    _setting(whole, 'crop_padding', 'Random crops of images padded by so many pixels.')
    _setting(flags.DEFINE_enum, 'crop_fill', CROP_FILLS, 'What they are padded with.')
    _setting(flags.DEFINE_bool, 'horizontal_flip', 'Mirror half of the images.')
    _setting(flags.DEFINE_enum, 'policy', ('none', *AUGMENT_POLICIES), 'Operations drawn for each image.')
    _setting(
        flags.DEFINE_enum,
        'policy_interpolation',
        POLICY_INTERPOLATIONS,
        'How shears, translations and rotations of --policy read pixels.',
    )
    _setting(several, 'color_jitter', 'Ranges of brightness, contrast, saturation and maybe hue: 0.4,0.4,0.4,0.1.')
    _setting(number, 'lighting', 'Standard deviation of noise along the principal colours: 0.1.')
    _setting(number, 'random_erasing', 'Probability with which a box is erased.')
    _setting(whole, 'cutout', 'Pixels a side of a square that is erased.')


def _define_mixing_flags() -> None:
    """What is done to batches of them, likewise."""
    number, whole = flags.DEFINE_float, flags.DEFINE_integer
    _setting(whole, 'augmentation_repeats', 'Times that an image is in its batch, each augmented anew.')
    _setting(number, 'mixup', 'Alpha of mixup; 0 for none.')
    _setting(number, 'cutmix', 'Alpha of CutMix; 0 for none.')


def _define_optimization_flags() -> None:
    """Loss, optimizer, schedule, average. Every default is the recipe's unless it is said otherwise."""
    number, whole, switch, choice = flags.DEFINE_float, flags.DEFINE_integer, flags.DEFINE_bool, flags.DEFINE_enum
    _setting(choice, 'loss', LOSSES, "Loss, one that goes with the task. Default: the task's usual one.")
    _setting(number, 'label_smoothing', 'Share of the target spread over all classes.')
    _setting(number, 'target_threshold', 'Of sigmoids: targets above it become 1, others 0; 0 for as they are.')
    _setting(flags.DEFINE_string, 'distill_from', INIT_FROM + ' Training learns from this second network, too.')
    _setting(number, 'distill_weight', "The second network's share of the loss. Default: 0.5.")
    _setting(number, 'distill_temperature', "Divides both networks' logits before they are compared. Default: 1.")
    _setting(whole, 'accumulation_steps', 'Parts of a batch that go through the network one after the other.')
    _setting(choice, 'optimizer', OPTIMIZERS, 'Optimizer.')
    _setting(
        number,
        'learning_rate',
        "Peak learning rate. Default: the recipe's, a fifth of it in regression; its usual one of another optimizer.",
    )
    _setting(whole, 'learning_rate_batch_size', 'Batch size that --learning_rate is for; with others it is scaled.')
    _setting(number, 'head_learning_rate', 'Learning rate of the last linear layer. Default: the same.')
    _setting(
        flags.DEFINE_list,
        'learning_rate_factors',
        'Factors of the learning rate of parameters whose paths begin as patterns say: stem=0.1,stage[12]=0.3.',
    )
    _setting(choice, 'schedule', SCHEDULES, 'Course of the learning rate.')
    _setting(choice, 'schedule_unit', SCHEDULE_UNITS, 'Whether it changes with every step or every epoch.')
    _setting(number, 'schedule_power', 'Exponent of the polynomial schedule.')
    _setting(number, 'final_learning_rate', 'Where cosine, linear and polynomial end.')
    _setting(number, 'warmup_epochs', 'Epochs of linear warmup.')
    _setting(number, 'warmup_start', 'Share of the peak where it starts. Default: one step above 0.')
    _setting(switch, 'warmup_prefix', 'Whether the course begins after the warmup, or under it.')
    _setting(flags.DEFINE_list, 'decay_epochs', 'Epochs at which the step schedule falls: 30,60.')
    _setting(number, 'decay_factor', 'By how much it falls.')
    _setting(number, 'momentum', 'Of SGD, LARS, RMSProp and Muon.')
    _setting(switch, 'nesterov', "Nesterov's momentum.")
    _setting(number, 'weight_decay', 'L2 coefficient; decoupled with AdamW, LAMB and Muon.')
    _setting(choice, 'decayed', DECAYED, 'Which parameters decay.')
    _setting(number, 'clip_norm', 'Largest norm of all gradients together; 0 for any.')
    _setting(number, 'adaptive_clip', "Largest norm of a unit's gradient in shares of its weights'; 0 for any.")
    _setting(number, 'sam_rho', 'Radius of sharpness-aware minimization; 0 for none.')
    _setting(
        number,
        'ema_decay',
        'Decay of an average of the weights, which is then evaluated; 0 for none.',
    )
    _setting(switch, 'ema_warmup', 'Let the average follow faster in the beginning.')
    _setting(whole, 'ema_every_steps', 'Steps between its updates.')
    _setting(
        whole, 'reestimate_examples', "Training examples from which the average's statistics are found; 0 for none."
    )


def define_training_flags(arch: str, archs: Sequence[str]) -> None:
    """The flags of a training script.

    Args:
      arch: default of ``--arch``.
      archs: the names it takes.
    """
    define_data_flags()
    define_normalization_flags()
    _SETTINGS.extend(('dataset', 'image_size', 'mean', 'std'))
    _define_network_flags()
    define_photograph_flags()
    flags.DEFINE_integer(
        'num_workers',
        0,
        'Processes that read and decode photographs for training; with 0 threads do. It changes no result.',
        lower_bound=0,
    )
    define_augmentation_flags()
    _define_mixing_flags()
    _define_optimization_flags()
    _define_run_flags()
    flags.DEFINE_string('arch', arch, f'Architecture: {", ".join(archs)}.')
    flags.DEFINE_string(
        'recipe',
        None,
        f'Training settings to start from: {", ".join(RECIPES)}. Default: digits_quick for digits, else cifar_fast.',
    )
    flags.DEFINE_enum(
        'task',
        'multiclass',
        list(TASKS),
        'What is learned of each image: its class; yes or no; any number of labels; or numbers. Digits have a target'
        ' for each: the digit, its parity, five attributes, the slant of the writing.',
    )
    flags.DEFINE_integer('seed', 0, 'Seed of initialization, order and augmentation.')
    _SETTINGS.extend(('task', 'seed'))


def _define_run_flags() -> None:
    """Where a run starts from, what it reports, and how its processes find each other."""
    whole = flags.DEFINE_integer
    _setting(
        whole, 'epochs', "Passes over the training examples; the schedule is stretched to them. Default: the recipe's."
    )
    _setting(whole, 'batch_size', "Examples in a step, over all devices. Default: the recipe's.")
    _setting(flags.DEFINE_string, 'init_from', INIT_FROM + ' Training starts from them.')
    _setting(
        flags.DEFINE_bool,
        'new_head',
        'Start the last linear layer afresh although that of --init_from would fit: for other classes, as many.',
    )
    _setting(
        flags.DEFINE_string,
        'freeze',
        'Regular expression on the beginning of the paths of parameters that stay as they are: stem|stage[1-3].'
        ' Default: none.',
    )
    _setting(
        whole, 'max_skipped_steps', 'Steps in a row without a finite loss and gradient, which stop a run. Default: 10.'
    )
    _setting(
        flags.DEFINE_bool,
        'test_flip',
        'Evaluate the mean of the outputs for an image and its mirror. Default: no.',
    )
    _setting(whole, 'test_shift', 'Evaluate their mean also over the image moved by so many pixels. Default: 0.')
    _setting(whole, 'eval_every_epochs', "Epochs between test evaluations. Default: the recipe's.")
    _setting(whole, 'checkpoint_every_epochs', "Epochs between checkpoints. Default: the recipe's.")
    _setting(whole, 'checkpoint_every_steps', 'Steps between more checkpoints. Default: none.')
    _setting(whole, 'log_every_steps', "Steps between records of the training metrics. Default: the recipe's.")
    _setting(
        flags.DEFINE_bool, 'log_norms', "Record norms of each layer's parameters, gradients and updates. Default: no."
    )
    flags.DEFINE_string('workdir', None, 'Folder for everything the run writes. Default: runs/ARCH-DATASET-seedS.')
    whole('num_seeds', None, 'Train this many seeds, from --seed on, in one program, and report mean and deviation.')
    whole('profile_steps', 0, 'Trace so many steps into the folder profile of the workdir.')
    flags.DEFINE_string(
        'coordinator_address',
        None,
        'HOST:PORT of process 0 of a job of several. On TPU pods, SLURM and Open MPI it is found without flags.',
    )
    whole('num_processes', None, 'How many processes the job has.')
    whole('process_index', None, 'Which of them this is, from 0.')


def chosen_settings() -> dict[str, Any]:
    """Fields of TrainConfig that flags set."""
    chosen = set_flags([name for name in _SETTINGS if name not in (*_NUMBERS, *_UNLIKE)])
    chosen |= {name: numbers_of(name) for name in set_flags([name for name in _NUMBERS if name in _SETTINGS])}
    chosen |= {name: None for name in _NONE_IF_EMPTY if chosen.get(name, True) in (0, (), 'none')}
    unlike = set_flags([name for name in _UNLIKE if name in _SETTINGS])
    if 'statistics' in unlike:
        chosen['statistics'] = int(unlike['statistics']) if unlike['statistics'].isdecimal() else unlike['statistics']
    if 'learning_rate_factors' in unlike:
        chosen['learning_rate_factors'] = tuple(map(_factor, unlike['learning_rate_factors']))
    return chosen


def _factor(pair: str) -> tuple[str, float]:
    """A pattern and a number from ``pattern=number``."""
    pattern, _, number = pair.rpartition('=')
    try:
        return pattern, float(number)
    except ValueError as error:
        raise InputError(f'learning_rate_factors={pair} must be pattern=number') from error


def set_flags(names: Sequence[str]) -> dict[str, Any]:
    """Values of those of the flags that are not None."""
    return {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}


def numbers_of(name: str) -> tuple[float, ...] | None:
    """The numbers of a list flag; None where it is not set."""
    values: list[str] | None = FLAGS[name].value
    if values is None:
        return None
    try:
        return tuple(map(float, values))
    except ValueError as error:
        raise InputError(f'{name}={",".join(values)} must be numbers separated by commas') from error
