"""Every operation of the networks at the sizes for which compilers have been wrong, against NumPy.

Faults of a compiler depend on sizes: maps one, two or three pixels high or wide with many channels take paths of their
own. With jaxlib 0.10 and 0.12 on a CPU, for example, a window sum over such a map counts its only pixel several times
as soon as the result has 4,096 elements. The default tests take a sample of the sizes, the slow ones all of them.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BatchNorm, convolution
from resnet_jax import numpy_reference as reference
from resnet_jax.data.image_ops import resized_crop
from resnet_jax.models import conv_tpu, pooling, winograd
from resnet_jax.models.attention import EfficientChannelAttention, SqueezeExcite
from resnet_jax.models.conv_common import plain
from resnet_jax.models.example_norm import EvoNormS0, FilterResponseNorm, GroupNorm

SIZES = (1, 2, 3)
MAPS = list(itertools.product((1, 32), SIZES, SIZES, (512, 2048)))
SAMPLE = [(32, 1, 1, 512), (3, 1, 4, 1024), (1, 3, 2, 2048)]


def sampled(cases, sample):
    """The sample, and all cases as slow tests."""
    slow = [pytest.param(case, marks=pytest.mark.slow) for case in cases if case not in sample]
    return pytest.mark.parametrize('case', [*sample, *slow], ids=lambda case: 'x'.join(map(str, case)))


def draws(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


def with_gradients(function, dy, *operands):
    """The value of ``function(*operands)`` and the gradients of ``sum(dy * value)``, as one program in float32."""

    @jax.jit
    def run(dy, *operands):
        y, pullback = jax.vjp(function, *operands)
        return y, *pullback(dy)

    return run(*(jnp.asarray(array, jnp.float32) for array in (dy, *operands)))


def assert_close(ours, theirs, limit=1e-5):
    """The largest difference is compared with the largest value."""
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= limit * np.abs(theirs).max()


def along(size, stride, taps, before, inside, mirrored=False):
    """A pool along one axis as a matrix ``[outputs, size]``.

    ``taps`` weigh the pixels of a window that starts ``before`` pixels outside of the map. Pixels outside are left out;
    with ``inside``, the others are then averaged, and with ``mirrored`` they are reflected.
    """
    matrix = np.zeros(((size - 1) // stride + 1, size))
    for row, (tap, weight) in itertools.product(range(len(matrix)), enumerate(taps)):
        pixel = row * stride - before + tap
        if mirrored:
            pixel = 0 if size == 1 else min(abs(pixel), 2 * (size - 1) - abs(pixel))
        if 0 <= pixel < size:
            matrix[row, pixel] += weight
    return matrix / matrix.sum(1, keepdims=True) if inside else matrix


def separable(x, **options):
    """Value and pullback of an average over windows, from one matrix for the rows and one for the columns."""
    rows, columns = (along(size, **options) for size in x.shape[1:3])
    y = np.einsum('ih,nhwc,jw->nijc', rows, x, columns, optimize=True)
    return y, lambda dy: np.einsum('ih,nijc,jw->nhwc', rows, dy, columns, optimize=True)


def padded_max(x, before, after, value):
    """Max pool 3x3 with stride 2 over a map that was padded before."""
    edges = [(0, 0), *((before, after(size)) for size in x.shape[1:3]), (0, 0)]
    y, backward = reference.max_pool(np.pad(x, edges, constant_values=value), padding=0)
    height, width = x.shape[1:3]
    return y, lambda dy: backward(dy)[:, before : before + height, before : before + width]


MEAN_2X2 = {'taps': (0.5, 0.5), 'before': 0, 'inside': False}
POOLS = {
    'max': (pooling.max_pool, reference.max_pool),
    'max by xla': (functools.partial(pooling.max_pool, implementation='xla'), reference.max_pool),
    'max, zero padding': (pooling.max_pool_zero_padded, lambda x: padded_max(x, 1, lambda size: 1, 0.0)),
    'max, ceil mode': (
        pooling.max_pool_ceil_mode,
        lambda x: padded_max(x, 0, lambda size: 2 * max(size // 2, 1) + 1 - size, -np.inf),
    ),
    'average': (pooling.avg_pool, functools.partial(separable, stride=2, **MEAN_2X2 | {'inside': True})),
    'average, stride 3': (
        functools.partial(pooling.avg_pool, stride=3),
        functools.partial(separable, stride=3, **MEAN_2X2 | {'inside': True}),
    ),
    'average in place': (pooling.avg_pool_in_place, functools.partial(separable, stride=1, **MEAN_2X2)),
    'average 3x3': (
        functools.partial(pooling.avg_pool_3x3, stride=1),
        functools.partial(separable, stride=1, taps=(1 / 3,) * 3, before=1, inside=False),
    ),
    'average 3x3, stride 2': (
        functools.partial(pooling.avg_pool_3x3, stride=2),
        functools.partial(separable, stride=2, taps=(1 / 3,) * 3, before=1, inside=False),
    ),
    'blur': (
        pooling.blur,
        functools.partial(separable, stride=2, taps=(0.25, 0.5, 0.25), before=1, inside=False, mirrored=True),
    ),
    'global average': (pooling.global_avg_pool, reference.global_avg_pool),
}


@sampled(MAPS, SAMPLE)
@pytest.mark.parametrize('name', POOLS)
def test_pools(name, case):
    ours, theirs = POOLS[name]
    (x,) = draws(case)
    x -= 1  # mostly negative, so that padding with zeros and with -inf differ
    y, backward = theirs(x)
    (dy,) = draws(y.shape)
    for one, other in zip(with_gradients(ours, dy, x), (y, backward(dy)), strict=True):
        assert_close(one, other)


@sampled([(n, h, w, c) for n, h, w, c in MAPS if h > 1 < w], [(32, 2, 3, 512)])
def test_average_without_overlap(case):
    """Windows of the stride's size; those that extend beyond an edge are dropped."""
    (x,) = draws(case)
    height, width = (size // 2 * 2 for size in case[1:3])
    y, backward = separable(x[:, :height, :width], stride=2, **MEAN_2X2)
    (dy,) = draws(y.shape)
    dx = np.pad(backward(dy), ((0, 0), (0, case[1] - height), (0, case[2] - width), (0, 0)))
    for one, other in zip(with_gradients(lambda x: pooling.antialias(x, 'average', 2), dy, x), (y, dx), strict=True):
        assert_close(one, other)


# kernel size, stride, dilation, groups, C, C_out
CONVOLUTIONS = [
    (1, 1, 1, 1, 2048, 512),
    (1, 2, 1, 1, 512, 1024),
    (3, 1, 1, 1, 512, 512),
    (3, 2, 1, 1, 512, 512),
    (3, 1, 2, 1, 512, 512),
    (3, 1, 1, 32, 1024, 1024),
    (3, 2, 1, 32, 1024, 1024),
    (3, 1, 1, 512, 512, 512),
    (7, 2, 1, 1, 3, 64),
    (3, 1, 1, 1, 16, 16),
]
FORMS = {
    'auto': convolution,
    'xla': functools.partial(convolution, implementation='xla'),
    'tpu': conv_tpu.forward,
}


@sampled(
    list(itertools.product((1, 32), SIZES, SIZES, range(len(CONVOLUTIONS)), FORMS)),
    [(32, 1, 1, 5, 'auto'), (32, 1, 3, 3, 'auto'), (1, 2, 1, 2, 'auto'), (32, 1, 1, 2, 'xla'), (1, 1, 3, 6, 'tpu')],
)
def test_convolutions(case):
    batch, height, width, index, form = case
    size, stride, dilation, groups, channels, features = CONVOLUTIONS[index]
    x, kernel = draws((batch, height, width, channels), (size, size, channels // groups, features))
    y, backward = reference.convolution(x, kernel, stride=stride, dilation=dilation, groups=groups)
    (dy,) = draws(y.shape)
    ours = with_gradients(lambda x, kernel: FORMS[form](x, kernel, stride, dilation, groups), dy, x, kernel)
    for one, other in zip(ours, (y, *backward(dy)), strict=True):
        assert_close(one, other)


@sampled(list(itertools.product((1, 32), SIZES, SIZES, (512,))), [(32, 1, 1, 512)])
def test_winograd_convolutions(case):
    """Called directly, as the CPU's choice of forms uses them only for larger maps."""
    x, kernel, dy = draws(case, (3, 3, case[-1], 512), (*case[:3], 512))
    y, backward = reference.convolution(x, kernel)
    dx, dkernel = backward(dy)
    narrow = [jnp.asarray(array, jnp.float32) for array in (x, kernel, dy)]

    @jax.jit
    def ours(x, kernel, dy):
        back = winograd.convolution(dy, kernel, transposed=True)
        return winograd.convolution(x, kernel), back, winograd.kernel_gradient(x, dy)

    for one, other in zip(ours(*narrow), (y, dx, dkernel), strict=True):
        assert_close(one, other)


@sampled(
    list(itertools.product((2, 32), SIZES, SIZES, (512, 2048), ('auto', 'xla'))),
    [(32, 1, 1, 512, 'auto'), (2, 1, 3, 2048, 'auto')],
)
def test_batch_normalization(case):
    shape, channels = case[:4], case[3]
    x, scale, bias, mean, dy = draws(shape, channels, channels, channels, shape)
    var = np.square(mean) + 0.5
    stats = {'mean': jnp.asarray(mean, jnp.float32), 'var': jnp.asarray(var, jnp.float32)}
    for train in (True, False):

        def ours(x, scale, bias, train=train):
            variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}
            layer = BatchNorm(implementation=case[4])
            return layer.apply(variables, x, train=train, mutable=['batch_stats'])[0]

        y, _, backward = reference.batch_norm(x, scale, bias, mean, var, train=train)
        for one, other in zip(with_gradients(ours, dy, x, scale, bias), (y, *backward(dy)), strict=True):
            assert_close(one, other, 1e-4)


def group_norm(x, params):
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean, var = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
    return ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * params['scale'] + params['bias']


def evo_norm(x, params):
    var = x.reshape(*x.shape[:3], 32, -1).var((1, 2, 4), keepdims=True)
    deviation = np.broadcast_to(np.sqrt(var + 1e-5), (*x.shape[:3], 32, x.shape[3] // 32)).reshape(x.shape)
    return x / (1 + np.exp(-params['v'] * x)) / deviation * params['scale'] + params['bias']


def filter_response_norm(x, params):
    y = x / np.sqrt(np.square(x).mean((1, 2), keepdims=True) + 1e-5) * params['scale'] + params['bias']
    return np.maximum(y, params['tau'])


def squeeze_excite(x, params):
    hidden = np.maximum(x.mean((1, 2)) @ params['fc1']['kernel'] + params['fc1']['bias'], 0)
    logits = hidden @ params['fc2']['kernel'] + params['fc2']['bias']
    return x / (1 + np.exp(-logits))[:, None, None]


def channel_attention(x, params):
    taps = params['kernel'][:, 0, 0]
    mean = np.pad(x.mean((1, 2)), ((0, 0), (len(taps) // 2,) * 2))
    logits = sum(tap * mean[:, at : at + x.shape[3]] for at, tap in enumerate(taps))
    return x / (1 + np.exp(-logits))[:, None, None]


LAYERS = {
    'group norm': (lambda channels: GroupNorm(), group_norm),
    'EvoNorm-S0': (lambda channels: EvoNormS0(relu=True), evo_norm),
    'filter response norm': (lambda channels: FilterResponseNorm(relu=True), filter_response_norm),
    'squeeze-and-excitation': (lambda channels: SqueezeExcite(channels // 16), squeeze_excite),
    'channel attention': (EfficientChannelAttention, channel_attention),
}


@sampled(MAPS, SAMPLE)
@pytest.mark.parametrize('name', LAYERS)
def test_layers(name, case, variables_of):
    """Values, and the derivative along a random direction: that of the formula is computed by central differences."""
    layer, formula = LAYERS[name][0](case[3]), LAYERS[name][1]
    options = {'train': False} if 'norm' in name.lower() else {}
    variables = variables_of(layer, case, **options)
    if name == 'filter response norm':  # thresholds far from all values, where the derivative is not defined
        variables['params']['tau'] = 100 * (-1.0) ** np.arange(case[3], dtype=np.float32)
    params = jax.tree.map(np.float64, variables['params'])
    x, dy, direction = draws(case, case, case)
    y, dx = with_gradients(lambda x: layer.apply(variables, x, **options), dy, x)
    assert_close(y, formula(x, params), 1e-4)
    step = 1e-7  # small, as squeeze-and-excitation has a ReLU
    slopes = dy * (formula(x + step * direction, params) - formula(x - step * direction, params)) / (2 * step)
    assert_close((dx * direction).sum((1, 2, 3)), slopes.sum((1, 2, 3)), 1e-3)


@sampled(list(itertools.product((1, 32), SIZES, SIZES, (1, 2, 3, 224))), [(32, 1, 3, 2), (1, 2, 1, 3)])
@pytest.mark.parametrize('cubic', [False, True])
def test_resizing(cubic, case):
    """Images of 1 to 3 pixels, resized as a batch, are those of Pillow, up to rounding after each axis."""
    from PIL import Image

    batch, height, width, result = case
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
    resize = jax.jit(
        jax.vmap(lambda image: resized_crop(image, 0, 0, height, width, (result, result), cubic)), inline=True
    )
    filters = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    theirs = np.stack([np.asarray(Image.fromarray(image).resize((result, result), filters)) for image in images])
    assert np.abs(np.int32(resize(images)) - theirs).max() <= 1 + cubic


def test_plain_convolution_of_one_pixel(rng):
    """A map of one pixel sees only the kernel's central tap."""
    x, kernel = draws((32, 1, 1, 1024), (3, 3, 1024, 64))
    y = jax.jit(plain, static_argnums=(2, 3))(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), 1, 1)
    assert_close(y[:, 0, 0], x[:, 0, 0] @ kernel[1, 1])
