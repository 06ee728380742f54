"""Reproducible weights and images, and PyTorch's outputs for them.

The goldens are written by ``make_goldens.py``: ``shapes.json.xz`` has the names and shapes of each network's state
dict, ``outputs.npz`` the network's logits and the statistics of its stages for ``images``, with weights from
``tensor``. Nothing here needs PyTorch.
"""

import dataclasses
import functools
import json
import lzma
import pathlib
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from resnet_jax import ResNet, ResNetSpec
from resnet_jax.models.imagenet import IMAGENET

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
SHAPES, OUTPUTS = GOLDENS / 'shapes.json.xz', GOLDENS / 'outputs.npz'

# All networks that are also in timm.
NAMES = sorted(set(IMAGENET) - {'plain18', 'plain34'})
# Networks that compile quickly, with every kind of block, stem, normalization and attention.
SAMPLE = (
    *('test_resnet', 'resnet10t', 'seresnet18', 'resnetblur18', 'ecaresnet26t', 'resnetaa34d', 'resnetv2_18d'),
    *('resnetv2_50x1_bit', 'legacy_seresnet18', 'skresnet18', 'resnest14d', 'res2net50_48w_2s'),
)
EVERY = 4  # one in so many logits is stored


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


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Generates a float32 tensor from its name and shape, identically on every machine and in any order.

    Kernels are uniform. A gain on their variance keeps activations of order one in networks of any depth: 2 outside of
    the residual branches (stem, shortcuts, head), 0.7 within them. Vectors differ between channels and are not 0 or 1,
    so that none can be omitted or confused with another: ``weight`` of a normalization is in [1.1, 1.5),
    ``running_var`` in [1.1, 1.7), ``running_mean`` and ``bias`` in [-0.1, 0.1), EvoNorm's ``v`` in [0.5, 0.9), and
    ``tau``, the threshold of filter response normalization, in [-0.3, 0.1). Before the last convolution of a
    pre-activation bottleneck, ``weight`` is in [0.25, 0.4): with standardized kernels, the branches would otherwise
    dominate the signal and amplify rounding errors.
    """
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape, dtype=np.float32)
    if len(shape) > 1:
        inside = name.startswith(('layer', 'stages')) and 'downsample' not in name
        low = -np.float32(np.sqrt(3 * (0.7 if inside else 2) / np.prod(shape[1:])))
        high = -low
    elif _SMALL.fullmatch(name):
        low, high = np.float32(0.25), np.float32(0.4)
    else:
        low, high = _RANGES[name.rpartition('.')[2]]
    uniform *= high - low  # in place: the largest kernels have 0.4 GB
    uniform += low
    return uniform


_SMALL = re.compile(r'stages\..*\.norm3\.weight')
_RANGES: dict[str, tuple[np.float32, np.float32]] = {
    leaf: (np.float32(low), np.float32(high))
    for leaf, low, high in (
        ('weight', 1.1, 1.5),
        ('running_var', 1.1, 1.7),
        ('running_mean', -0.1, 0.1),
        ('bias', -0.1, 0.1),
        ('v', 0.5, 0.9),
        ('tau', -0.3, 0.1),
    )
}


class Generated:
    """``tensor(name, shape)``, generated when it is read, so that a large network need not fit in memory."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return tensor(self.name, self.shape)


def images(size: int = 64) -> np.ndarray:
    """Returns two very different images, ``[2, size, size, 3]``: noise, and noise that is smooth along the height."""
    noise = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    noise[1] = noise[1].cumsum(0) / 4
    return noise


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


def tolerance(spec: ResNetSpec) -> float:
    """Returns the largest allowed ``difference`` from PyTorch, which sums in a different order.

    With standardized kernels, logits depend much more on the image, and on rounding, than in other networks: for
    ``resnetv2_152x2_bit``, PyTorch's differ by 4e-6 from its own in float64, ours by 6e-6.
    """
    return 2e-5 if spec.standardize is not None else 1e-5


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


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest magnitude."""
    assert actual.shape == expected.shape
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def golden_shapes(key: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the state dict of a network, or of a key of ``VARIANTS``, without the batch counters."""
    return {name: tuple(shape) for name, shape in _shapes()[key].items()}


@functools.cache
def _shapes() -> dict[str, dict[str, list[int]]]:
    with lzma.open(SHAPES, 'rt') as file:
        return json.load(file)


def golden_tensors(key: str) -> dict[str, Generated]:
    """Returns the whole state dict; the key is as in ``golden_shapes``."""
    return {name: Generated(name, shape) for name, shape in golden_shapes(key).items()}


def golden_outputs(key: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``[2, K / EVERY]`` and statistics of the stages; the key as in ``golden_shapes``."""
    with np.load(OUTPUTS) as file:
        return file[f'{key}/logits'], file[f'{key}/statistics']
