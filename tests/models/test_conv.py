"""Convolution against the NumPy reference and plain XLA: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import Conv, InputError, convolution
from resnet_jax import numpy_reference as reference

CASES = [
    # height, width, kernel, stride, dilation, groups
    (8, 9, 3, 1, 1, 1),
    (9, 8, 3, 2, 1, 1),
    (7, 7, 3, 2, 2, 2),
    (6, 5, 3, 3, 1, 4),
    (5, 6, 1, 2, 1, 1),
    (8, 8, 1, 1, 1, 2),
    (15, 16, 7, 2, 1, 1),
    (1, 1, 3, 1, 1, 4),
]


@pytest.mark.parametrize(('height', 'width', 'size', 'stride', 'dilation', 'groups'), CASES)
def test_values_and_gradients(height, width, size, stride, dilation, groups, rng):
    x = rng.normal(size=(2, height, width, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 4 // groups, 8)).astype(np.float32)
    run = jax.jit(lambda x, kernel: convolution(x, kernel, stride, dilation, groups))
    y, pullback = jax.vjp(run, x, kernel)
    expected, backward = reference.convolution(
        np.float64(x), np.float64(kernel), stride=stride, dilation=dilation, groups=groups
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    dy = rng.normal(size=y.shape).astype(np.float32)
    for ours, theirs in zip(pullback(jnp.asarray(dy)), backward(np.float64(dy)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-4)


def test_padding_is_symmetric():
    """``SAME`` would pad an image of even size at stride 2 only at the end, and shift the result by a pixel."""
    x = np.arange(4.0, dtype=np.float32).reshape(1, 4, 1, 1)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 1] = 1  # takes the pixel above
    np.testing.assert_array_equal(convolution(x, kernel, stride=2)[0, :, 0, 0], [0, 1])


def test_initialization_is_he_normal_by_fan_out():
    kernel = Conv(64, 3, groups=2).init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))['params']['kernel']
    assert kernel.shape == (3, 3, 16, 64)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.03)


def test_groups_must_divide_the_channels():
    with pytest.raises(InputError, match=r'groups=3 must divide the input channels \(4\)'):
        Conv(6, groups=3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))


def random_case(rng):
    """Sizes 1 to 17, strides 1 to 3, dilations 1 and 2, and groups that divide the channels."""
    groups = int(rng.choice([1, 1, 2, 4]))
    channels, features = (groups * int(rng.integers(1, 5)) for _ in range(2))
    size, stride, dilation = int(rng.choice([1, 2, 3, 5, 7])), int(rng.integers(1, 4)), int(rng.integers(1, 3))
    reach = dilation * (size - 1) + 1 - 2 * ((size - 1) // 2 * dilation)  # the smallest image that contains a window
    height, width = (int(rng.integers(max(reach, 1), 18)) for _ in range(2))
    x = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels // groups, features)).astype(np.float32)
    return x, kernel, (stride, dilation, groups)


def assert_equal_to_xla(x, kernel, options, tolerance=1e-5):
    def run(implementation):
        def forward_and_back(x, kernel, dy):
            y, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, *options, implementation), x, kernel)
            return y, pullback(dy)

        return forward_and_back

    y = jax.eval_shape(lambda x, kernel: convolution(x, kernel, *options), x, kernel)
    dy = np.random.default_rng(1).normal(size=y.shape).astype(np.float32).astype(y.dtype)
    ours, plain = (jax.jit(run(implementation))(x, kernel, dy) for implementation in ('auto', 'xla'))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        a, b = np.float32(a), np.float32(b)
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=1e-6)


@pytest.mark.parametrize('seed', range(24))
def test_random_convolutions_equal_xla(seed):
    assert_equal_to_xla(*random_case(np.random.default_rng(seed)))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1000, 1400))
def test_many_random_convolutions_equal_xla(seed):
    assert_equal_to_xla(*random_case(np.random.default_rng(seed)))


@pytest.mark.parametrize(
    ('shape', 'features', 'size', 'stride', 'groups'),
    [
        ((6, 9, 7, 64), 80, 3, 1, 1),  # Winograd, odd sizes
        ((16, 8, 8, 128), 128, 3, 1, 1),  # and its kernel gradient
        ((2, 17, 16, 3), 8, 7, 2, 1),  # the stem
        ((2, 6, 6, 128), 128, 3, 1, 32),  # dense blocks
        ((2, 6, 6, 48), 48, 3, 2, 48),  # depthwise
    ],
)
def test_wide_convolutions_equal_xla(shape, features, size, stride, groups, rng):
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(size, size, shape[-1] // groups, features)).astype(np.float32)
    assert_equal_to_xla(x, kernel, (stride, 1, groups))


@pytest.mark.parametrize(('stride', 'groups', 'size'), [(1, 1, 3), (2, 1, 3), (2, 4, 1), (1, 2, 5)])
def test_bfloat16(stride, groups, size, rng):
    x = jnp.asarray(rng.normal(size=(2, 9, 8, 8)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(size, size, 8 // groups, 8)), jnp.bfloat16)
    assert_equal_to_xla(x, kernel, (stride, 1, groups), tolerance=0.03)


@pytest.mark.parametrize(('shape', 'stride'), [((2, 5, 6, 4), 1), ((2, 5, 6, 4), 2), ((4, 8, 8, 64), 1)])
def test_second_derivatives(shape, stride, rng):
    x = rng.normal(size=shape).astype(np.float32)
    kernel = (rng.normal(size=(3, 3, shape[-1], shape[-1])) / shape[-1]).astype(np.float32)

    def penalty(kernel, implementation):
        gradient = jax.grad(lambda x: jnp.sum(jnp.tanh(convolution(x, kernel, stride, 1, 1, implementation))))(x)
        return jnp.sum(gradient**2)

    ours, plain = (jax.jit(jax.grad(penalty), static_argnums=1)(kernel, name) for name in ('auto', 'xla'))
    np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-5 * float(np.abs(plain).max()))


def test_xla_supports_forward_mode(rng):
    x, kernel = rng.normal(size=(1, 5, 5, 2)), rng.normal(size=(3, 3, 2, 2))
    _, tangent = jax.jvp(lambda x: convolution(x, jnp.asarray(kernel), implementation='xla'), (x,), (x,))
    np.testing.assert_allclose(tangent, convolution(x, kernel), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="implementation='fast' must be one of auto, xla"):
        convolution(x, kernel, implementation='fast')


def test_weight_standardization(rng, numeric_gradient):
    """Qiao et al. 2019, Eq. 3 to 5, in a loop over channels; the gradient goes through the standardization."""
    x = rng.normal(size=(2, 4, 3, 4)).astype(np.float32)
    kernel = (3 + rng.normal(size=(3, 3, 2, 4))).astype(np.float32)
    bias, epsilon = rng.normal(size=4).astype(np.float32), 0.1

    def ours(kernel):
        module = Conv(4, 3, stride=2, groups=2, use_bias=True, standardize=epsilon)
        return module.apply({'params': {'kernel': kernel, 'bias': bias}}, x)

    def theirs(kernel):
        each = [kernel[..., k] for k in range(4)]
        each = [(part - part.mean()) / np.sqrt(part.var() + epsilon) for part in each]
        return reference.convolution(np.float64(x), np.stack(each, -1), stride=2, groups=2)[0] + bias

    y, pullback = jax.vjp(jax.jit(ours), kernel)
    np.testing.assert_allclose(y, theirs(np.float64(kernel)), rtol=1e-4, atol=1e-5)
    dy = rng.normal(size=y.shape).astype(np.float32)
    slope = numeric_gradient(theirs, np.float64(kernel), dy)
    np.testing.assert_allclose(pullback(jnp.asarray(dy))[0], slope, rtol=1e-3, atol=1e-4)


def test_bias(rng):
    module, x = Conv(3, 1, use_bias=True), rng.normal(size=(1, 2, 2, 2)).astype(np.float32)
    params = module.init(jax.random.key(0), x)['params']
    np.testing.assert_array_equal(params['bias'], np.zeros(3))
    shifted = module.apply({'params': params | {'bias': jnp.array([1.0, 2.0, 3.0])}}, x)
    expected = module.apply({'params': params}, x) + np.array([1.0, 2.0, 3.0])[None, None, None]
    np.testing.assert_allclose(shifted, expected, rtol=1e-6)
    assert set(Conv(3, 1).init(jax.random.key(0), x)['params']) == {'kernel'}
