"""Residual networks in JAX and Flax: models, training and evaluation."""

from resnet_jax.data.augment import Augmentation, Policy, ResizedCrop
from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Dataset, EncodedImages, Split, dataset_from_arrays
from resnet_jax.data.feeds import ReaderOptions
from resnet_jax.data.photographs import dataset_from_source
from resnet_jax.data.preprocessing import Preprocessing, preprocess
from resnet_jax.errors import DivergenceError, InputError, Interrupted, StorageError
from resnet_jax.inference.prediction import Predictor, load_predictor
from resnet_jax.models.architectures import create_model, get_spec, list_models
from resnet_jax.models.attention import EfficientChannelAttention, SelectiveKernel, SplitAttention, SqueezeExcite
from resnet_jax.models.block_end import finish_block
from resnet_jax.models.blocks import (
    BasicBlock,
    Block,
    BottleneckBlock,
    PlainBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
    ResidualBlock,
)
from resnet_jax.models.branch_blocks import (
    Res2NetBlock,
    SelectiveKernelBasicBlock,
    SelectiveKernelBottleneckBlock,
    SplitAttentionBlock,
)
from resnet_jax.models.compute import Compute, Mode
from resnet_jax.models.conv import Conv, convolution
from resnet_jax.models.example_norm import EvoNormS0, FilterResponseNorm, GroupNorm
from resnet_jax.models.flat import make_spec, with_changes
from resnet_jax.models.layers import Shortcut, Stem
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet, init_variables
from resnet_jax.models.scanned import as_computed, as_stored
from resnet_jax.models.spec import BlockSpec, HeadSpec, ResNetSpec, StageSpec, StemSpec
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.binary import Binary
from resnet_jax.tasks.multiclass import MultiClass
from resnet_jax.tasks.multilabel import MultiLabel
from resnet_jax.tasks.regression import Regression
from resnet_jax.training.config import (
    Averaging,
    Data,
    Distillation,
    Execution,
    Objective,
    Reporting,
    Start,
    TrainConfig,
)
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.optimizers import SGD, Adam, AdamW, Lamb, Lars, Muon, Optax, RMSPropTF
from resnet_jax.training.recipes import RECIPES, get_config
from resnet_jax.training.schedules import Constant, Cosine, Linear, OneCycle, Polynomial, StepDecay, Warmup
from resnet_jax.training.step import TrainState, create_train_state, eval_step, train_step
from resnet_jax.weights.published import get_checkpoint, list_checkpoints
from resnet_jax.weights.runs import load_variables
from resnet_jax.weights.sources import Pretrained, from_pretrained, load_weights, save_weights

__version__ = '0.1.0'

__all__ = [
    'RECIPES',
    'SGD',
    'Adam',
    'AdamW',
    'Augmentation',
    'Averaging',
    'BasicBlock',
    'BatchNorm',
    'Binary',
    'Block',
    'BlockSpec',
    'BottleneckBlock',
    'Compute',
    'Constant',
    'Conv',
    'Cosine',
    'Data',
    'Dataset',
    'Distillation',
    'DivergenceError',
    'EfficientChannelAttention',
    'EncodedImages',
    'EvoNormS0',
    'Execution',
    'FilterResponseNorm',
    'GroupNorm',
    'HeadSpec',
    'InputError',
    'Interrupted',
    'Lamb',
    'Lars',
    'Linear',
    'Mode',
    'MultiClass',
    'MultiLabel',
    'Muon',
    'Objective',
    'OneCycle',
    'Optax',
    'PlainBlock',
    'Policy',
    'Polynomial',
    'PreActBasicBlock',
    'PreActBottleneckBlock',
    'Predictor',
    'Preprocessing',
    'Pretrained',
    'RMSPropTF',
    'ReaderOptions',
    'Regression',
    'Reporting',
    'Res2NetBlock',
    'ResNet',
    'ResNetSpec',
    'ResidualBlock',
    'ResizedCrop',
    'SelectiveKernel',
    'SelectiveKernelBasicBlock',
    'SelectiveKernelBottleneckBlock',
    'Shortcut',
    'Split',
    'SplitAttention',
    'SplitAttentionBlock',
    'SqueezeExcite',
    'StageSpec',
    'Start',
    'Stem',
    'StemSpec',
    'StepDecay',
    'StorageError',
    'Task',
    'TrainConfig',
    'TrainState',
    'Warmup',
    'as_computed',
    'as_stored',
    'convolution',
    'create_model',
    'create_train_state',
    'dataset_from_arrays',
    'dataset_from_source',
    'eval_step',
    'finish_block',
    'from_pretrained',
    'get_checkpoint',
    'get_config',
    'get_spec',
    'init_variables',
    'list_checkpoints',
    'list_models',
    'load_dataset',
    'load_predictor',
    'load_variables',
    'load_weights',
    'make_spec',
    'preprocess',
    'save_weights',
    'train_and_evaluate',
    'train_step',
    'with_changes',
]
