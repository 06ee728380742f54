"""Residual networks in JAX and Flax: networks, their training, their measurement."""

from resnet_jax.errors import DivergenceError, InputError
from resnet_jax.models.architectures import create_model, get_spec, list_models
from resnet_jax.models.blocks import (
    BasicBlock,
    BottleneckBlock,
    PlainBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
)
from resnet_jax.models.conv import Conv, convolution
from resnet_jax.models.layers import Shortcut, Stem
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet, ResNetSpec, init_variables, stack_blocks, unstack_blocks
from resnet_jax.training.loop import load_variables, train_and_evaluate, train_seeds
from resnet_jax.training.recipes import RECIPES, TrainConfig, get_config
from resnet_jax.training.step import TrainState, create_train_state, eval_step, train_step

__all__ = [
    'RECIPES',
    'BasicBlock',
    'BatchNorm',
    'BottleneckBlock',
    'Conv',
    'DivergenceError',
    'InputError',
    'PlainBlock',
    'PreActBasicBlock',
    'PreActBottleneckBlock',
    'ResNet',
    'ResNetSpec',
    'Shortcut',
    'Stem',
    'TrainConfig',
    'TrainState',
    'convolution',
    'create_model',
    'create_train_state',
    'eval_step',
    'get_config',
    'get_spec',
    'init_variables',
    'list_models',
    'load_variables',
    'stack_blocks',
    'train_and_evaluate',
    'train_seeds',
    'train_step',
    'unstack_blocks',
]
