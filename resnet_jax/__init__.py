"""Residual networks in JAX and Flax: networks, their training, their measurement."""

from resnet_jax.data.datasets import load_dataset
from resnet_jax.errors import DivergenceError, InputError, Interrupted, StorageError
from resnet_jax.models.architectures import create_model, get_spec, list_models
from resnet_jax.models.attention import EfficientChannelAttention, SelectiveKernel, SplitAttention, SqueezeExcite
from resnet_jax.models.blocks import (
    BasicBlock,
    BottleneckBlock,
    PlainBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
)
from resnet_jax.models.branch_blocks import (
    ScaleBlock,
    SelectiveKernelBasicBlock,
    SelectiveKernelBottleneckBlock,
    SplitAttentionBlock,
)
from resnet_jax.models.checkpoints import get_checkpoint, list_checkpoints
from resnet_jax.models.conv import Conv, convolution
from resnet_jax.models.layers import Shortcut, Stem
from resnet_jax.models.norm import BatchNorm, EvoNormS0, FilterResponseNorm, GroupNorm
from resnet_jax.models.preprocessing import Preprocessing, preprocess
from resnet_jax.models.resnet import ResNet, ResNetSpec, init_variables, stack_blocks, unstack_blocks
from resnet_jax.prediction import Predictor, load_predictor
from resnet_jax.training.config import TrainConfig
from resnet_jax.training.loop import train_and_evaluate, train_seeds
from resnet_jax.training.recipes import RECIPES, get_config
from resnet_jax.training.step import TrainState, create_train_state, eval_step, train_step
from resnet_jax.weights import Pretrained, from_pretrained, load_variables, load_weights, save_weights

__all__ = [
    'RECIPES',
    'BasicBlock',
    'BatchNorm',
    'BottleneckBlock',
    'Conv',
    'DivergenceError',
    'EfficientChannelAttention',
    'EvoNormS0',
    'FilterResponseNorm',
    'GroupNorm',
    'InputError',
    'Interrupted',
    'PlainBlock',
    'PreActBasicBlock',
    'PreActBottleneckBlock',
    'Predictor',
    'Preprocessing',
    'Pretrained',
    'ResNet',
    'ResNetSpec',
    'ScaleBlock',
    'SelectiveKernel',
    'SelectiveKernelBasicBlock',
    'SelectiveKernelBottleneckBlock',
    'Shortcut',
    'SplitAttention',
    'SplitAttentionBlock',
    'SqueezeExcite',
    'Stem',
    'StorageError',
    'TrainConfig',
    'TrainState',
    'convolution',
    'create_model',
    'create_train_state',
    'eval_step',
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
    'preprocess',
    'save_weights',
    'stack_blocks',
    'train_and_evaluate',
    'train_seeds',
    'train_step',
    'unstack_blocks',
]
