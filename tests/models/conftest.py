"""Fixtures for the tests of layers and blocks: random variables, layers in NumPy, numeric gradients."""

import jax
import numpy as np
import pytest

from resnet_jax import numpy_reference as reference
from resnet_jax.models import gram_norm


class ByHand:
    """The layers of a Flax module in NumPy, by their names, with its variables in float64.

    ``new_stats`` collects the updated running statistics.
    """

    def __init__(self, variables, *, train=False):
        self.params, self.stats = (
            jax.tree.map(np.float64, variables.get(key, {})) for key in ('params', 'batch_stats')
        )
        self.train = train
        self.new_stats = {}

    def at(self, name):
        """Returns the parameters at a path such as ``attention/fc1``."""
        node = self.params
        for part in name.split('/'):
            node = node[part]
        return node

    def conv(self, name, x, **options):
        layer = self.at(name)
        y, _ = reference.convolution(x, layer['kernel'], **options)
        return y + layer.get('bias', 0)

    def norm(self, name, x):
        layer, stats = self.at(name), self.stats
        for part in name.split('/'):
            stats = stats[part]
        y, (mean, var), _ = reference.batch_norm(
            x, layer['scale'], layer['bias'], stats['mean'], stats['var'], train=self.train
        )
        self.new_stats[name] = {'mean': mean, 'var': var}
        return y

    def conv_norm_relu(self, conv, norm, x, **options):
        return np.maximum(self.norm(norm, self.conv(conv, x, **options)), 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def squeeze_excite(x, layers):
    """Hu et al. 2018, Eq. 2 to 4, in a loop over examples."""
    out = np.empty_like(x)
    for n, image in enumerate(x):
        squeezed = image.mean((0, 1))
        hidden = np.maximum(squeezed @ layers['fc1']['kernel'] + layers['fc1']['bias'], 0)
        out[n] = image * sigmoid(hidden @ layers['fc2']['kernel'] + layers['fc2']['bias'])
    return out


def channel_attention(x, kernel):
    """Wang et al. 2020, Eq. 9, in a loop over channels, with zero padding."""
    taps, channels = len(kernel), x.shape[-1]
    mean, out = x.mean((1, 2)), np.empty_like(x)
    for channel in range(channels):
        near = range(channel - taps // 2, channel + taps // 2 + 1)
        logit = sum(kernel[k, 0, 0] * mean[:, c] for k, c in enumerate(near) if 0 <= c < channels)
        out[..., channel] = x[..., channel] * sigmoid(logit)[:, None, None]
    return out


def average_3x3(x, stride):
    """Averages of nine pixels, with zero padding."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (-(-size // stride) for size in x.shape[1:3])
    y = np.empty((x.shape[0], height, width, x.shape[3]))
    for i in range(height):
        for j in range(width):
            y[:, i, j] = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3].sum((1, 2)) / 9
    return y


def binomial_3x3(x, stride):
    """Zhang 2019: [1 2 1] x [1 2 1] / 16 per channel; the image is mirrored at its outer pixels."""
    n, height, width, channels = x.shape

    def mirrored(index, size):
        return 0 if size == 1 else -index if index < 0 else 2 * (size - 1) - index if index >= size else index

    y = np.zeros((n, -(-height // stride), -(-width // stride), channels))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            for u, row in enumerate((1, 2, 1)):
                for v, column in enumerate((1, 2, 1)):
                    at = mirrored(i * stride + u - 1, height), mirrored(j * stride + v - 1, width)
                    y[:, i, j] += row * column / 16 * x[:, at[0], at[1]]
    return y


ORACLES = {
    'sigmoid': sigmoid,
    'squeeze_excite': squeeze_excite,
    'channel_attention': channel_attention,
    'average_3x3': average_3x3,
    'binomial_3x3': binomial_3x3,
}


@pytest.fixture(scope='session')
def by_hand():
    """Returns ``ByHand``, with the functions above as its attributes."""
    for name, function in ORACLES.items():
        setattr(ByHand, name, staticmethod(function))
    return ByHand


@pytest.fixture
def variables_of(rng):
    """Returns a function that draws a module's variables for an input shape, none of them 0 or 1, to expose errors."""

    def draw(leaf):
        value = rng.normal(size=leaf.shape) * 0.4 if len(leaf.shape) > 1 else rng.uniform(0.2, 1.2, leaf.shape)
        return np.float32(value)

    def variables_of(module, shape, **options):
        x = jax.ShapeDtypeStruct(shape, np.float32)
        return jax.tree.map(draw, jax.eval_shape(lambda key, x: module.init(key, x, **options), jax.random.key(0), x))

    return variables_of


@pytest.fixture
def small_maps_use_gram(monkeypatch):
    """Makes ``gram_norm`` normalize maps of any size."""
    monkeypatch.setattr(gram_norm, 'LARGE', 0)


@pytest.fixture
def forms_for_gpus(monkeypatch, small_maps_use_gram):
    """Makes every ``lax.platform_dependent`` choose the form for GPUs, so that a CPU computes it."""

    def choose(*operands, default=None, **forms):
        return forms.get('cuda', default)(*operands)

    monkeypatch.setattr(jax.lax, 'platform_dependent', choose)


@pytest.fixture(scope='session')
def numeric_gradient():
    """Returns a function that computes the gradient of ``sum(dy * f(x))`` by central differences, for f in float64."""

    def gradient(f, x, dy, step=1e-6):
        out = np.empty_like(x)
        for index in np.ndindex(x.shape):
            shift = np.zeros_like(x)
            shift[index] = step
            out[index] = np.sum(dy * (f(x + shift) - f(x - shift))) / (2 * step)
        return out

    return gradient
