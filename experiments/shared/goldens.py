"""Reproducible weights and images, and PyTorch's outputs for them, in ``tests/models/goldens`` of the checkout.

``tests/models/make_goldens.py`` writes them: ``shapes.json.xz`` has the names and shapes of each network's state dict,
``outputs.npz`` the network's logits and the statistics of its stages for ``images``, with weights from ``tensor``.
Nothing here needs PyTorch.
"""

import functools
import json
import lzma
import pathlib
import re
import zlib

import numpy as np

from resnet_jax import ResNetSpec

GOLDENS = pathlib.Path(__file__).parents[2] / 'tests' / 'models' / 'goldens'
SHAPES, OUTPUTS = GOLDENS / 'shapes.json.xz', GOLDENS / 'outputs.npz'
EVERY = 4  # one in so many logits is stored


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


def tolerance(spec: ResNetSpec) -> float:
    """Returns the largest allowed ``difference`` from PyTorch, which sums in a different order.

    With standardized kernels, logits depend much more on the image, and on rounding, than in other networks: for
    ``resnetv2_152x2_bit``, PyTorch's differ by 4e-6 from its own in float64, ours by 6e-6.
    """
    return 2e-5 if spec.standardize is not None else 1e-5


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
