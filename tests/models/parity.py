"""The networks that are compared with PyTorch's, and what is compared; see ``experiments/shared/goldens.py``."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from resnet_jax import ResNet
from resnet_jax.models.imagenet import IMAGENET

# All networks that are also in timm.
NAMES = sorted(set(IMAGENET) - {'plain18', 'plain34'})
# Networks that compile quickly, with every kind of block, stem, normalization and attention.
SAMPLE = (
    *('test_resnet', 'resnet10t', 'seresnet18', 'resnetblur18', 'ecaresnet26t', 'resnetaa34d', 'resnetv2_18d'),
    *('resnetv2_50x1_bit', 'legacy_seresnet18', 'skresnet18', 'resnest14d', 'res2net50_48w_2s'),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of a named network, with our options and timm's, and the size of its images."""

    name: str
    ours: dict[str, Any]
    timms: dict[str, Any]
    size: int = 64


_ONE_EACH = {'stage_sizes': (1, 1, 1, 1)}, {'layers': (1, 1, 1, 1)}
# With one block per stage, networks with features that are not in the sample compile quickly, too.
VARIANTS = {
    **{
        f'{name}, output stride 8': Variant(name, {'output_stride': 8}, {'output_stride': 8}, 65)
        for name in ('resnet34', 'resnet50')
    },
    **{
        f'{name}, one block a stage': Variant(name, *_ONE_EACH)
        for name in ('resnetv2_50d_evos', 'resnetv2_50d_frn', 'resnetrs50', 'senet154')
    },
}


def sampled(names: Iterable[str]) -> list[Any]:
    """Returns names as parameters of a test; those outside of ``SAMPLE`` are marked as slow."""
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names]


def outputs_of(model: ResNet, variables: Any, batch: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Computes the logits and the outputs of the stages of one of our networks for a batch ``[N, H, W, C]``."""

    @jax.jit
    def run(variables: Any, batch: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        maps = model.apply(variables, batch, train=False, method=model.features)
        stages = [maps[f'stage{index}'] for index in range(1, len(model.spec.stages) + 1)]
        return model.apply(variables, batch, train=False), stages

    logits, stages = run(variables, batch)
    return np.asarray(logits), [np.asarray(stage) for stage in stages]


def bit_arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts a state dict of a Big Transfer network to the names and axes of its authors' files."""
    arrays = {}
    for name, value in tensors.items():
        value = np.asarray(value)
        for pattern, replacement in _TO_BIT:
            name = re.sub(pattern, replacement, name)
        arrays[name] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return arrays


_TO_BIT: tuple[tuple[str, Any], ...] = (
    (r'^stem\.conv\.weight$', 'resnet/root_block/standardized_conv2d/kernel'),
    (r'^head\.fc\.weight$', 'resnet/head/conv2d/kernel'),
    (r'^head\.fc\.bias$', 'resnet/head/conv2d/bias'),
    (r'^norm\.', 'resnet/group_norm/'),
    (
        r'^stages\.(\d+)\.blocks\.(\d+)\.',
        lambda match: f'resnet/block{int(match[1]) + 1}/unit{int(match[2]) + 1:02}/',
    ),
    (r'/downsample\.conv\.weight$', '/a/proj/standardized_conv2d/kernel'),
    (r'/conv(\d)\.weight$', lambda match: f'/{"abc"[int(match[1]) - 1]}/standardized_conv2d/kernel'),
    (r'/norm(\d)\.', lambda match: f'/{"abc"[int(match[1]) - 1]}/group_norm/'),
    (r'/weight$', '/gamma'),
    (r'(group_norm)/bias$', r'\1/beta'),
)


def statistics(stages: Iterable[np.ndarray]) -> np.ndarray:
    """Computes mean, standard deviation and largest magnitude of each stage's output, float32 ``[stages, 3]``."""
    rows = [(x.mean(dtype=np.float64), x.std(dtype=np.float64), np.abs(x).max()) for x in map(np.asarray, stages)]
    return np.array(rows, np.float32)
