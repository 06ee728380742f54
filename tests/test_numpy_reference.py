"""The NumPy reference compared with finite differences and with values computed by hand."""

import itertools

import numpy as np
import pytest

from resnet_jax import numpy_reference as ref

BLOCKS = {
    'plain': ref.plain_block,
    'basic': ref.basic_block,
    'bottleneck': ref.bottleneck_block,
    'preact_basic': ref.preact_basic_block,
    'preact_bottleneck': ref.preact_bottleneck_block,
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def leaves(tree, path=()):
    """Flattens a nested dict to {path: array}."""
    if not isinstance(tree, dict):
        return {path: tree}
    flat = {}
    for key, child in tree.items():
        flat |= leaves(child, (*path, key))
    return flat


def unflatten(flat):
    tree = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def check_gradients(function, arguments, rng):
    """Compares every argument's gradient with a central difference along a random direction.

    function takes a dict of arrays and returns (value, backward), backward(dvalue) a dict of
    gradients with the same keys. A difference that straddles a kink of relu or max_pool is
    wrong by itself; a smaller step then leaves the kink out, but never mends a wrong gradient.
    """
    value, backward = function(arguments)
    dvalue = rng.normal(size=np.shape(value))
    gradients = backward(dvalue)
    assert gradients.keys() == arguments.keys()
    for name, argument in arguments.items():
        assert gradients[name].shape == argument.shape, name
        direction = rng.normal(size=argument.shape)
        analytic = np.sum(gradients[name] * direction)
        numeric = []
        for step in (1e-6, 1e-7):
            plus = function({**arguments, name: argument + step * direction})[0]
            minus = function({**arguments, name: argument - step * direction})[0]
            numeric.append(np.sum(dvalue * (plus - minus)) / (2 * step))
            if analytic == pytest.approx(numeric[-1], rel=1e-5, abs=1e-7):
                break
        else:
            pytest.fail(f'{name}: gradient {analytic}, differences {numeric}')


def check_op(op, arguments, rng):
    """check_gradients for an op of positional arrays, whose backward gives one array or a tuple."""

    def function(named):
        value, *_, backward = op(*named.values())

        def named_backward(dvalue):
            gradients = backward(dvalue)
            gradients = gradients if isinstance(gradients, tuple) else (gradients,)
            return dict(zip(named, gradients, strict=True))

        return value, named_backward

    check_gradients(function, dict(enumerate(arguments)), rng)


def check_module(module, params, x, rng):
    """check_gradients for module(params, x) -> (y, backward), with respect to x and each leaf."""

    def function(flat):
        params = unflatten({path: leaf for path, leaf in flat.items() if path != 'x'})
        y, backward = module(params, flat['x'])

        def flat_backward(dy):
            dx, grads = backward(dy)
            return {'x': dx, **leaves(grads)}

        return y, flat_backward

    check_gradients(function, {'x': x, **leaves(params)}, rng)


# --- Convolution ---


@pytest.mark.parametrize(
    ('size', 'stride', 'dilation', 'groups'),
    list(itertools.product([(5, 6), (8, 7)], [1, 2, 3], [1, 2], [1, 2, 4])),
)
def test_convolution_gradients(rng, size, stride, dilation, groups):
    x = rng.normal(size=(2, *size, 4))
    kernel = rng.normal(size=(3, 3, 4 // groups, 8))
    options = {'stride': stride, 'dilation': dilation, 'groups': groups}
    y, _ = ref.convolution(x, kernel, **options)
    assert y.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 8)
    check_op(lambda x, kernel: ref.convolution(x, kernel, **options), (x, kernel), rng)


@pytest.mark.parametrize(
    ('kernel_size', 'padding', 'stride', 'out_size'),
    [
        ((1, 1), None, 2, (3, 4)),
        ((2, 2), None, 1, (5, 6)),
        ((1, 3), None, 1, (6, 7)),
        ((5, 2), (2, 0), 1, (6, 6)),
        ((3, 3), 0, 1, (4, 5)),
        ((3, 3), (0, 2), 3, (2, 3)),
        ((7, 7), None, 2, (3, 4)),
    ],
)
def test_convolution_kernel_shapes_and_padding(rng, kernel_size, padding, stride, out_size):
    x, kernel = rng.normal(size=(2, 6, 7, 3)), rng.normal(size=(*kernel_size, 3, 2))
    options = {'padding': padding, 'stride': stride}
    assert ref.convolution(x, kernel, **options)[0].shape == (2, *out_size, 2)
    check_op(lambda x, kernel: ref.convolution(x, kernel, **options), (x, kernel), rng)


def test_convolution_by_hand():
    x = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    # One above and twice the one on the right: y[i, j] = x[i - 1, j] + 2 x[i, j + 1].
    kernel = np.array([[0, 1, 0], [0, 0, 2], [0, 0, 0.0]]).reshape(3, 3, 1, 1)
    y, backward = ref.convolution(x, kernel)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0 + 4, 0 + 6, 0], [1 + 10, 2 + 12, 3], [4 + 16, 5 + 18, 6]])
    strided, _ = ref.convolution(x, kernel, stride=2)
    np.testing.assert_array_equal(strided[0, :, :, 0], [[4, 0], [20, 6]])

    dy = np.zeros_like(y)
    dy[0, 1, 1, 0] = 1.0  # y[1, 1] = sum of x times the kernel
    dx, dkernel = backward(dy)
    np.testing.assert_array_equal(dx, kernel.reshape(x.shape))
    np.testing.assert_array_equal(dkernel, x.reshape(kernel.shape))


def test_strided_convolution_pads_both_sides():
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    center = np.zeros((3, 3, 1, 1))
    center[1, 1] = 1.0
    y, _ = ref.convolution(x, center, stride=2)
    # 'SAME' would pad on the right only and give 5, 7, 13, 15.
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 2], [8, 10]])


def test_convolution_against_its_definition(rng):
    s, d, groups, p = 2, 2, 2, (3, 1)
    x, kernel = rng.normal(size=(2, 8, 9, 4)), rng.normal(size=(3, 2, 2, 6))
    y, _ = ref.convolution(x, kernel, stride=s, padding=p, dilation=d, groups=groups)
    expected = np.zeros((2, 5, 5, 6))
    for n, i, j, o in np.ndindex(expected.shape):
        for u, v, c in itertools.product(range(3), range(2), range(2)):
            row, column = s * i + d * u - p[0], s * j + d * v - p[1]
            if 0 <= row < 8 and 0 <= column < 9:
                channel = (o // 3) * 2 + c
                expected[n, i, j, o] += x[n, row, column, channel] * kernel[u, v, c, o]
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_convolution_errors():
    x = np.zeros((1, 4, 4, 6))
    with pytest.raises(ValueError, match='does not fit 6 channels in 2 groups'):
        ref.convolution(x, np.zeros((3, 3, 6, 4)), groups=2)
    with pytest.raises(ValueError, match='does not fit 6 channels in 3 groups'):
        ref.convolution(x, np.zeros((3, 3, 2, 4)), groups=3)
    with pytest.raises(ValueError, match='too large'):
        ref.convolution(x, np.zeros((5, 5, 6, 4)), padding=0)


# --- Batch normalization ---


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('shape', [(3, 4, 5, 2), (2, 1, 3, 4)])
def test_batch_norm_gradients(rng, train, shape):
    c = shape[-1]
    mean, var = rng.normal(size=c), rng.uniform(0.5, 2, size=c)
    arguments = rng.normal(2, 3, size=shape), rng.normal(size=c), rng.normal(size=c)
    check_op(lambda *args: ref.batch_norm(*args, mean, var, train=train), arguments, rng)


def test_batch_norm_by_hand():
    x = np.array([1.0, 2, 3, 4]).reshape(1, 2, 2, 1)  # mean 2.5, variance 5/4, unbiased 5/3
    scale, bias, mean, var = (np.array([number]) for number in (2.0, 1.0, 10.0, 4.0))
    y, (new_mean, new_var), _ = ref.batch_norm(x, scale, bias, mean, var, train=True)
    std = np.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(y.ravel(), [1 - 3 / std, 1 - 1 / std, 1 + 1 / std, 1 + 3 / std], rtol=1e-12)
    np.testing.assert_allclose(new_mean, [9.0 + 0.25])
    np.testing.assert_allclose(new_var, [3.6 + 0.5 / 3])

    y, (kept_mean, kept_var), _ = ref.batch_norm(x, scale, bias, mean, var, train=False, epsilon=0.0)
    np.testing.assert_allclose(y.ravel(), [-8, -7, -6, -5])  # 2 (x - 10) / 2 + 1
    assert (kept_mean, kept_var) == (mean, var)


def test_batch_norm_of_one_value_keeps_the_biased_variance():
    one, zero = np.ones(1), np.zeros(1)
    x = np.full((1, 1, 1, 1), 5.0)
    y, (mean, var), _ = ref.batch_norm(x, one, zero, zero, one, train=True, decay=0.75)
    assert (y.item(), mean.item(), var.item()) == (0.0, 1.25, 0.75)


# --- Activation, pooling, linear layer ---


def test_relu(rng):
    y, backward = ref.relu(np.array([-2.0, 0.0, 3.0]))
    np.testing.assert_array_equal(y, [0, 0, 3])
    np.testing.assert_array_equal(backward(np.array([5.0, 6.0, 7.0])), [0, 0, 7])
    check_op(ref.relu, (rng.normal(size=(2, 3, 4, 5)),), rng)


@pytest.mark.parametrize('size', [(5, 6), (7, 4)])
@pytest.mark.parametrize('options', [{}, {'window': 2, 'stride': 2, 'padding': 0}, {'stride': 1}, {'stride': 3}])
def test_max_pool_gradients(rng, size, options):
    check_op(lambda x: ref.max_pool(x, **options), (rng.normal(size=(2, *size, 3)),), rng)


def test_max_pool_by_hand():
    x = -np.array([[9.0, 8, 7, 6], [5, 4, 3, 2], [1, 2, 3, 4], [5, 6, 7, 8]])  # below the zeros
    y, backward = ref.max_pool(x.reshape(1, 4, 4, 1))
    np.testing.assert_array_equal(y[0, :, :, 0], [[-4, -2], [-1, -2]])
    dx = backward(np.array([1.0, 10, 100, 1000]).reshape(1, 2, 2, 1))[0, :, :, 0]
    # -2 at [1, 3] is the maximum of the upper right window, and ties in the lower right one with
    # -2 at [2, 1], which comes later.
    np.testing.assert_array_equal(dx, [[0, 0, 0, 0], [0, 1, 0, 1010], [100, 0, 0, 0], [0, 0, 0, 0]])


def test_max_pool_gives_a_tie_to_the_first():
    _, backward = ref.max_pool(np.ones((1, 3, 3, 1)))
    dx = backward(np.array([1.0, 2, 3, 4]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 2, 0], [3, 4, 0], [0, 0, 0]])


@pytest.mark.parametrize('size', [(5, 6), (7, 4), (1, 3)])
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_avg_pool_gradients(rng, size, stride):
    window = 1 if stride == 1 and size[0] == 1 else 2
    check_op(lambda x: ref.avg_pool(x, window, stride), (rng.normal(size=(2, *size, 3)),), rng)


def test_avg_pool_of_an_odd_map_by_hand():
    x = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    y, backward = ref.avg_pool(x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[12 / 4, 9 / 2], [15 / 2, 9]])
    dx = backward(np.ones_like(y))[0, :, :, 0]
    np.testing.assert_array_equal(dx, [[0.25, 0.25, 0.5], [0.25, 0.25, 0.5], [0.5, 0.5, 1]])


@pytest.mark.parametrize(
    ('length', 'window', 'stride', 'means'),
    [
        (4, 2, 1, [0.5, 1.5, 2.5]),
        (6, 2, 3, [0.5, 3.5]),  # a third window would start outside
        (7, 2, 3, [0.5, 3.5, 6]),
        (5, 3, 2, [1, 3]),
        (6, 3, 2, [1, 3, 4.5]),
    ],
)
def test_avg_pool_windows(length, window, stride, means):
    line = np.arange(float(length)).reshape(1, 1, length, 1)
    y, _ = ref.avg_pool(np.repeat(line, length, axis=1), window, stride)
    np.testing.assert_allclose(y[0, :, :, 0], [means] * len(means))


def test_global_avg_pool_and_linear(rng):
    x = np.array([[1.0, 2], [3, 6]]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(ref.global_avg_pool(x)[0], [[3.0]])
    check_op(ref.global_avg_pool, (rng.normal(size=(2, 3, 4, 5)),), rng)

    y, _ = ref.linear(np.array([[1.0, 2]]), np.array([[3.0, 4, 5], [6, 7, 8]]), np.arange(3.0))
    np.testing.assert_array_equal(y, [[15, 19, 23]])
    arguments = rng.normal(size=(3, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    check_op(ref.linear, arguments, rng)


# --- Probabilities and losses ---


def test_probabilities_by_hand(rng):
    logits = np.log([[1.0, 3, 4], [5, 1, 2]])
    p, _ = ref.softmax(logits)
    np.testing.assert_allclose(p, [[1 / 8, 3 / 8, 1 / 2], [5 / 8, 1 / 8, 1 / 4]])
    np.testing.assert_allclose(ref.sigmoid(np.log([3.0, 1, 1 / 4]))[0], [3 / 4, 1 / 2, 1 / 5])
    check_op(ref.softmax, (rng.normal(size=(3, 4)),), rng)
    check_op(ref.sigmoid, (rng.normal(size=(3, 4)),), rng)


def test_losses_by_hand(rng):
    logits, labels = np.log([[1.0, 3], [4, 1]]), np.array([1, 1])
    loss, _ = ref.softmax_cross_entropy(logits, labels)
    assert loss == pytest.approx(-(np.log(3 / 4) + np.log(1 / 5)) / 2)
    loss, _ = ref.softmax_cross_entropy(logits[:1], labels[:1], label_smoothing=0.2)
    assert loss == pytest.approx(-(0.9 * np.log(3 / 4) + 0.1 * np.log(1 / 4)))
    loss, _ = ref.sigmoid_cross_entropy(np.log([[3.0, 1 / 4]]), np.array([[1.0, 0.25]]))
    second = 0.25 * np.log(1 / 5) + 0.75 * np.log(4 / 5)
    assert loss == pytest.approx(-(np.log(3 / 4) + second) / 2)

    logits, labels = rng.normal(size=(4, 5)), np.array([0, 4, 2, 4])
    for smoothing in (0.0, 0.1):
        check_op(lambda z, a=smoothing: ref.softmax_cross_entropy(z, labels, a), (logits,), rng)
    targets = rng.uniform(size=(4, 5))
    check_op(lambda z: ref.sigmoid_cross_entropy(z, targets), (logits,), rng)
    for _, backward in (
        ref.softmax_cross_entropy(logits, labels),
        ref.sigmoid_cross_entropy(logits, targets),
    ):
        np.testing.assert_array_equal(backward(), backward(1.0))


def test_large_logits_are_stable():
    with np.errstate(over='raise', invalid='raise', divide='raise'):
        p, _ = ref.softmax(np.array([[1000.0, 1000, -1000]]))
        np.testing.assert_array_equal(p, [[0.5, 0.5, 0]])
        np.testing.assert_array_equal(ref.sigmoid(np.array([1000.0, -1000]))[0], [1, 0])
        loss, backward = ref.softmax_cross_entropy(np.array([[1000.0, 0]]), np.array([1]))
        assert loss == 1000
        np.testing.assert_array_equal(backward(), [[1, -1]])
        loss, backward = ref.sigmoid_cross_entropy(np.array([1000.0, -1000]), np.array([0.0, 1]))
        assert loss == 1000
        np.testing.assert_array_equal(backward(), [0.5, -0.5])


def test_float32_stays_float32(rng):
    def draw(*shape):
        return rng.uniform(size=shape).astype(np.float32)

    x, c = draw(2, 5, 5, 4), [draw(4) for _ in range(4)]
    results = [
        ref.convolution(x, draw(3, 3, 2, 6), groups=2, stride=2),
        *(ref.batch_norm(x, *c, train=train) for train in (True, False)),
        *(op(x) for op in (ref.relu, ref.max_pool, ref.avg_pool, ref.global_avg_pool)),
        ref.linear(draw(2, 4), draw(4, 3), draw(3)),
        *(op(draw(2, 4)) for op in (ref.softmax, ref.sigmoid)),
        ref.softmax_cross_entropy(draw(2, 4), np.array([0, 3]), 0.1),
        ref.sigmoid_cross_entropy(draw(2, 4), draw(2, 4)),
    ]
    for value, *_, backward in results:
        gradients = backward(value)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        assert {value.dtype, *(gradient.dtype for gradient in gradients)} == {np.dtype(np.float32)}
    for running in results[1][1]:
        assert running.dtype == np.float32


# --- Shortcuts ---


def conv_and_norm_trees(rng, convs, norms):
    """Draws params and stats for convolutions {name: kernel shape} and norms {name: channels}."""
    params = {name: {'kernel': rng.normal(size=shape) / np.sqrt(np.prod(shape[:3]))} for name, shape in convs.items()}
    stats = {}
    for name, c in norms.items():
        params[name] = {'scale': rng.normal(1, 0.3, size=c), 'bias': rng.normal(0, 0.5, size=c)}
        stats[name] = {'mean': rng.normal(0, 0.5, size=c), 'var': rng.uniform(0.5, 2, size=c)}
    return params, stats


def shortcut_trees(rng, c, features, stride, kind, norm=True):
    changes = stride != 1 or c != features
    if not (kind == 'C' or (kind in ('B', 'D') and changes)):
        return {}, {}
    norms = {'norm': features} if norm else {}
    return conv_and_norm_trees(rng, {'conv': (1, 1, c, features)}, norms)


SHORTCUT_CASES = [
    (kind, stride, features, norm)
    for kind, stride, features, norm in itertools.product(
        ('identity', 'A', 'B', 'C', 'D'), (1, 2, 3), (4, 7), (True, False)
    )
    if kind != 'identity' or (stride == 1 and features == 4)
]


@pytest.mark.parametrize(('kind', 'stride', 'features', 'norm'), SHORTCUT_CASES)
def test_shortcut_gradients(rng, kind, stride, features, norm):
    x = rng.normal(size=(3, 5, 4, 4))
    params, stats = shortcut_trees(rng, 4, features, stride, kind, norm)
    options = {'stride': stride, 'kind': kind, 'norm': norm, 'train': True}
    y, new_stats, _ = ref.shortcut(params, stats, x, features, **options)
    assert y.shape == (3, -(-5 // stride), -(-4 // stride), features)
    assert leaves(new_stats).keys() == leaves(stats).keys()

    def module(params, x):
        y, _, backward = ref.shortcut(params, stats, x, features, **options)
        return y, backward

    check_module(module, params, x, rng)


def test_shortcut_a_places_the_channels_in_the_middle():
    x = np.arange(1.0, 19.0).reshape(1, 3, 3, 2)
    y, _, backward = ref.shortcut({}, {}, x, 5, stride=2, kind='A', train=True)
    expected = np.zeros((1, 2, 2, 5))  # 1 zero channel in front, 2 behind
    expected[0, :, :, 1] = [[1, 5], [13, 17]]
    expected[0, :, :, 2] = [[2, 6], [14, 18]]
    np.testing.assert_array_equal(y, expected)
    dx, grads = backward(np.ones_like(y))
    np.testing.assert_array_equal(dx[0, :, :, 1], [[1, 0, 1], [0, 0, 0], [1, 0, 1]])
    assert grads == {}


def test_projections_by_hand():
    x = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    params = {'conv': {'kernel': np.full((1, 1, 1, 1), 2.0)}}

    def project(kind, stride):
        return ref.shortcut(params, {}, x, 1, stride=stride, kind=kind, norm=False, train=True)[0]

    np.testing.assert_array_equal(project('B', 2)[0, :, :, 0], [[2, 6], [14, 18]])
    np.testing.assert_array_equal(project('C', 1), 2 * x)
    np.testing.assert_array_equal(project('D', 2)[0, :, :, 0], [[6, 9], [15, 18]])  # 2 pooled
    np.testing.assert_array_equal(project('D', 3)[0, :, :, 0], [[6]])  # also of 2x2 pixels
    for kind in ('A', 'B', 'D', 'identity'):
        np.testing.assert_array_equal(project(kind, 1), x)  # the shape does not change


def test_shortcut_errors():
    x = np.zeros((2, 5, 4, 8))
    with pytest.raises(ValueError, match='cannot map') as error:
        ref.shortcut({}, {}, x, 16, stride=2, kind='identity', train=True)
    message = str(error.value)
    assert '(2, 5, 4, 8) to (2, 3, 2, 16)' in message
    assert "'A', 'B', 'C' or 'D'" in message
    assert '\n' not in message
    with pytest.raises(ValueError, match='cannot map'):
        ref.shortcut({}, {}, x, 8, stride=2, kind='identity', train=True)
    with pytest.raises(ValueError, match='cannot map 8 to 4'):
        ref.shortcut({}, {}, x, 4, stride=1, kind='A', train=True)
    with pytest.raises(ValueError, match="kind 'E'"):
        ref.shortcut({}, {}, x, 8, stride=1, kind='E', train=True)


# --- Blocks ---


def block_trees(rng, block, c, width, features, stride, kind, cardinality=1):
    """Draws params and stats of a block from c channels through width to features."""
    preact = block.startswith('preact')
    if 'bottleneck' in block:
        shapes = [(1, 1, c, width), (3, 3, width // cardinality, width), (1, 1, width, features)]
    else:
        shapes = [(3, 3, c, features), (3, 3, features, features)]
    convs = {f'conv{i}': shape for i, shape in enumerate(shapes, start=1)}
    # Post-activation normalizes what a convolution gives, pre-activation what it takes.
    inputs = [c] + [shape[3] for shape in shapes[:-1]]
    channels = inputs if preact else [shape[3] for shape in shapes]
    norms = {f'norm{i}': n for i, n in enumerate(channels, start=1)}
    params, stats = conv_and_norm_trees(rng, convs, norms)
    if block != 'plain':
        skip_params, skip_stats = shortcut_trees(rng, c, features, stride, kind, norm=not preact)
        params |= {'shortcut': skip_params} if skip_params else {}
        stats |= {'shortcut': skip_stats} if skip_stats else {}
    return params, stats


BLOCK_CASES = [('plain', None, stride, features) for stride in (1, 2, 3) for features in (4, 6)] + [
    (block, kind, stride, features)
    for block, kind, (stride, features) in itertools.product(
        list(BLOCKS)[1:], ('identity', 'A', 'B', 'C', 'D'), ((1, 4), (1, 6), (2, 4), (2, 6), (3, 6))
    )
    if kind != 'identity' or (stride, features) == (1, 4)
]


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize(('block', 'kind', 'stride', 'features'), BLOCK_CASES)
def test_block_gradients(rng, block, kind, stride, features, train):
    cardinality = 2 if 'bottleneck' in block else 1
    x = rng.normal(size=(3, 5, 6, 4))
    params, stats = block_trees(rng, block, 4, 4, features, stride, kind, cardinality)
    options = {'stride': stride, 'train': train}
    options |= {'shortcut_kind': kind} if kind else {}
    options |= {'cardinality': cardinality} if 'bottleneck' in block else {}

    def module(params, x):
        y, _, backward = BLOCKS[block](params, stats, x, **options)
        return y, backward

    check_module(module, params, x, rng)
    y, new_stats, _ = BLOCKS[block](params, stats, x, **options)
    assert y.shape == (3, -(-5 // stride), -(-6 // stride), features)
    old, new = leaves(stats), leaves(new_stats)
    assert new.keys() == old.keys()
    for path, value in new.items():
        assert np.array_equal(value, old[path]) != train, path


@pytest.mark.parametrize('stride_in_1x1', [True, False])
def test_bottleneck_stride_gradients(rng, stride_in_1x1):
    params, stats = block_trees(rng, 'bottleneck', 4, 4, 6, 2, 'B', 4)

    def module(params, x):
        y, _, backward = ref.bottleneck_block(
            params, stats, x, stride=2, cardinality=4, stride_in_1x1=stride_in_1x1, train=True
        )
        return y, backward

    check_module(module, params, rng.normal(size=(3, 5, 6, 4)), rng)


def scalar_block(weights, norm_scale=1.0, full=()):
    """Returns params and stats that act on one channel, with one weight for each convolution.

    The weight is at the kernel's center, or at every tap of the kernels in full. The norms only
    multiply by norm_scale: their mean and bias are 0, their var is 1 (less epsilon).
    """
    params, stats = {}, {}
    for i, weight in enumerate(weights, start=1):
        size = 1 if len(weights) == 3 and i != 2 else 3
        kernel = np.zeros((size, size, 1, 1))
        kernel[(slice(None),) * 2 if i in full else (size // 2, size // 2)] = weight
        params[f'conv{i}'] = {'kernel': kernel}
        params[f'norm{i}'] = {'scale': np.array([norm_scale]), 'bias': np.zeros(1)}
        stats[f'norm{i}'] = {'mean': np.zeros(1), 'var': np.array([1 - 1e-5])}
    return params, stats


@pytest.mark.parametrize(
    ('block', 'weights', 'x', 'y'),
    [
        # F = w2 relu(w1 x) of a basic block, y = relu(F + x)
        ('basic', (2, -0.25), 4, 2),  # F = -0.25 * 8
        ('basic', (2, 3), -1, 0),  # F = 0, and relu takes the sum
        ('basic', (-2, 3), -1, 5),  # F = 3 * 2
        ('basic', (-2, -3), -1, 0),  # F = -6
        ('plain', (2, -0.25), 4, 0),
        ('plain', (-2, 3), -1, 6),
        ('bottleneck', (2, 3, -0.125), 4, 1),  # F = -0.125 * 24
        ('bottleneck', (-2, -3, -5), -1, 0),  # F = 0 after the second relu
        ('bottleneck', (-2, 3, 5), -1, 29),
        # h = relu(x), F = w2 relu(w1 h), y = F + x
        ('preact_basic', (2, -0.75), 4, -2),
        ('preact_basic', (-2, 3), -1, -1),  # h = 0, the shortcut passes x
        ('preact_basic', (-2, 3), 1, 1),
        ('preact_bottleneck', (2, 3, -0.25), 4, -2),
        ('preact_bottleneck', (2, -3, 5), 4, 4),
        ('preact_bottleneck', (-2, 3, 5), -1, -1),
    ],
)
def test_block_values_by_hand(block, weights, x, y):
    params, stats = scalar_block(weights)
    value, _, _ = BLOCKS[block](params, stats, np.full((1, 1, 1, 1), float(x)), train=False)
    np.testing.assert_allclose(value.item(), y, atol=1e-12)


@pytest.mark.parametrize(
    ('block', 'weights', 'x', 'y'),
    [
        ('basic', (2, -3), -1, 5),  # relu(-(2 * -1)) = 2, F = -(-3 * 2) = 6
        ('bottleneck', (2, -3, -5), -1, 29),  # 2, 6, then F = -(-5 * 6) = 30
        ('plain', (2, -3), -1, 6),
        ('preact_basic', (-2, -3), -1, -7),  # h = 1, then 2, F = -3 * 2
        ('preact_bottleneck', (-2, -3, 5), -1, 29),  # h = 1, then 2, 6, F = 5 * 6
    ],
)
def test_norms_come_before_relus(block, weights, x, y):
    params, stats = scalar_block(weights, norm_scale=-1.0)
    value, _, _ = BLOCKS[block](params, stats, np.full((1, 1, 1, 1), float(x)), train=False)
    np.testing.assert_allclose(value.item(), y, atol=1e-12)


@pytest.mark.parametrize('block', ['preact_basic', 'preact_bottleneck'])
def test_preact_projections_use_h(block):
    weights = (1, 1, 1) if 'bottleneck' in block else (1, 1)
    params, stats = scalar_block(weights, norm_scale=2.0)
    params['shortcut'] = {'conv': {'kernel': np.full((1, 1, 1, 1), 10.0)}}
    branch = 8 if 'bottleneck' in block else 4  # times 2 at each norm

    def run(x, **options):
        x = np.full((1, 1, 1, 1), float(x))
        return BLOCKS[block](params, stats, x, train=False, **options)[0].item()

    assert run(1, shortcut_kind='C') == pytest.approx(branch + 10 * 2)
    assert run(-1, shortcut_kind='C') == pytest.approx(0)  # h = 0
    assert run(1, shortcut_kind='B', stride=2) == pytest.approx(branch + 10 * 2)
    assert run(-1, shortcut_kind='D', stride=2) == pytest.approx(0)
    assert run(1, shortcut_kind='A', stride=2) == pytest.approx(branch + 2)
    assert run(-1, shortcut_kind='A', stride=1) == pytest.approx(-1)
    assert run(-1, shortcut_kind='B') == pytest.approx(-1)
    # More channels at stride 1 change the shape too.
    last = params['conv3' if 'bottleneck' in block else 'conv2']
    last['kernel'] = np.repeat(last['kernel'], 2, axis=3)
    x = np.full((1, 1, 1, 1), 1.0)
    y, _, _ = BLOCKS[block](params, stats, x, shortcut_kind='A', train=False)
    np.testing.assert_allclose(y.ravel(), [branch + 2, branch])


def test_norm_follows_the_projection_of_a_post_activation_block():
    params, stats = scalar_block((0, 0))
    params['shortcut'] = {
        'conv': {'kernel': np.full((1, 1, 1, 1), 3.0)},
        'norm': {'scale': np.array([2.0]), 'bias': np.array([5.0])},
    }
    stats['shortcut'] = {'norm': {'mean': np.array([1.0]), 'var': np.array([4 - 1e-5])}}
    x = np.full((1, 1, 1, 1), 2.0)
    y, _, _ = ref.basic_block(params, stats, x, shortcut_kind='C', train=False)
    np.testing.assert_allclose(y.item(), 2 * (3 * 2 - 1) / 2 + 5)


def test_stride_of_the_bottleneck():
    x = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    params, stats = scalar_block((1, 1, 1), full=(2,))

    def run(block, **options):
        y, _, _ = block(params, stats, x, stride=2, shortcut_kind='A', train=False, **options)
        return y[0, :, :, 0]

    corners = np.array([[1, 3], [7, 9]])
    neighbors = np.array([[1 + 2 + 4 + 5, 2 + 3 + 5 + 6], [4 + 5 + 7 + 8, 5 + 6 + 8 + 9]])
    in_3x3 = corners + neighbors
    in_1x1 = corners + (1 + 3 + 7 + 9)
    np.testing.assert_allclose(run(ref.bottleneck_block), in_3x3, rtol=1e-12)
    np.testing.assert_allclose(run(ref.bottleneck_block, stride_in_1x1=True), in_1x1, rtol=1e-12)
    np.testing.assert_allclose(run(ref.preact_bottleneck_block), in_3x3, rtol=1e-12)


# --- Networks ---


def network_trees(rng, block, stem, kind, cardinality):
    """Draws a network of stages of 2 and 1 blocks, with 4 and 6 channels, strides 1 and 2."""
    preact, size = block.startswith('preact'), 7 if stem == 'imagenet' else 3
    params, stats = {}, {}
    norms = {} if preact else {'norm': 4}
    conv = {'conv': (size, size, 3, 4)}
    params['stem'], stem_stats = conv_and_norm_trees(rng, conv, norms)
    stats |= {'stem': stem_stats} if stem_stats else {}
    for name, c, features, stride in (
        ('stage1_block1', 4, 4, 1),
        ('stage1_block2', 4, 4, 1),
        ('stage2_block1', 4, 6, 2),
    ):
        shape = {'c': c, 'width': 4, 'features': features, 'stride': stride}
        params[name], stats[name] = block_trees(rng, block, kind=kind, cardinality=cardinality, **shape)
    if preact:
        norm_params, norm_stats = conv_and_norm_trees(rng, {}, {'norm': 6})
        params, stats = params | norm_params, stats | norm_stats
    params['head'] = {'kernel': rng.normal(size=(6, 5)), 'bias': rng.normal(size=5)}
    return params, stats


def run_network(params, stats, images, block, stem, kind='B', cardinality=1, train=True):
    return ref.resnet(
        params,
        stats,
        images,
        block=block,
        stage_sizes=(2, 1),
        strides=(1, 2),
        stem=stem,
        train=train,
        shortcut_kind=kind,
        cardinality=cardinality,
    )


NETWORKS = [
    ('plain', 'cifar', 'B', 1),
    ('plain', 'imagenet', 'B', 1),
    ('basic', 'cifar', 'A', 1),
    ('basic', 'imagenet', 'B', 1),
    ('bottleneck', 'cifar', 'C', 1),
    ('bottleneck', 'imagenet', 'D', 2),
    ('preact_basic', 'cifar', 'B', 1),
    ('preact_basic', 'imagenet', 'A', 1),
    ('preact_bottleneck', 'cifar', 'D', 2),
    ('preact_bottleneck', 'imagenet', 'C', 1),
]


@pytest.mark.parametrize(('block', 'stem', 'kind', 'cardinality'), NETWORKS)
def test_resnet_gradients(rng, block, stem, kind, cardinality):
    params, stats = network_trees(rng, block, stem, kind, cardinality)
    images = rng.normal(size=(3, 7, 6, 3) if stem == 'cifar' else (3, 19, 18, 3))

    def module(params, images):
        outputs, _, backward = run_network(params, stats, images, block, stem, kind, cardinality)
        return outputs['logits'], backward

    check_module(module, params, images, rng)
    outputs, new_stats, _ = run_network(params, stats, images, block, stem, kind, cardinality)
    h, w = (7, 6) if stem == 'cifar' else (5, 5)
    half = (-(-h // 2), -(-w // 2))
    assert {name: value.shape for name, value in outputs.items()} == {
        'stem': (3, h, w, 4),
        'stage1': (3, h, w, 4),
        'stage2': (3, *half, 6),
        'pooled': (3, 6),
        'logits': (3, 5),
    }
    assert leaves(new_stats).keys() == leaves(stats).keys()
    if stem == 'cifar' or not block.startswith('preact'):
        # Every running value has moved.
        assert not any(np.array_equal(v, leaves(stats)[p]) for p, v in leaves(new_stats).items())


def normalize(x, norm_params, norm_stats):
    std = np.sqrt(norm_stats['var'] + 1e-5)
    return (x - norm_stats['mean']) / std * norm_params['scale'] + norm_params['bias']


@pytest.mark.parametrize('block', ['basic', 'preact_basic'])
@pytest.mark.parametrize('stem', ['cifar', 'imagenet'])
def test_stem_and_head(rng, block, stem):
    params, stats = network_trees(rng, block, stem, 'B', 1)
    images = rng.normal(size=(2, 9, 9, 3))
    outputs, new_stats, _ = run_network(params, stats, images, block, stem, train=False)
    stride, padding = (2, 3) if stem == 'imagenet' else (1, 1)
    expected = ref.convolution(images, params['stem']['conv']['kernel'], stride=stride, padding=padding)[0]
    if block == 'basic':
        expected = np.maximum(normalize(expected, params['stem']['norm'], stats['stem']['norm']), 0)
    if stem == 'imagenet':
        expected = ref.max_pool(expected, 3, 2, 1)[0]
    np.testing.assert_allclose(outputs['stem'], expected, atol=1e-12)

    last = outputs['stage2']
    if block == 'preact_basic':
        assert last.min() < 0  # no activation after the addition
        last = np.maximum(normalize(last, params['norm'], stats['norm']), 0)
    np.testing.assert_allclose(outputs['pooled'], last.mean((1, 2)), atol=1e-12)
    logits = outputs['pooled'] @ params['head']['kernel'] + params['head']['bias']
    np.testing.assert_allclose(outputs['logits'], logits, atol=1e-12)
    for path, value in leaves(new_stats).items():
        np.testing.assert_array_equal(value, leaves(stats)[path])


def test_resnet_errors(rng):
    params, stats = network_trees(rng, 'basic', 'cifar', 'B', 1)
    images = rng.normal(size=(1, 4, 4, 3))
    with pytest.raises(ValueError, match="block 'wide'"):
        run_network(params, stats, images, 'wide', 'cifar')
    with pytest.raises(ValueError, match="stem 'tiny'"):
        run_network(params, stats, images, 'basic', 'tiny')
    with pytest.raises(ValueError, match='cannot map'):
        run_network(params, stats, images, 'basic', 'cifar', kind='identity')


def test_resnet18(rng):
    params, stats = ref.resnet18_init(rng)
    assert sum(leaf.size for leaf in leaves(params).values()) == 11_689_512
    assert 'shortcut' not in params['stage1_block1']
    assert 'shortcut' in params['stage2_block1']
    kernel = params['stage3_block2']['conv2']['kernel']
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    assert params['stem']['conv']['kernel'].std() == pytest.approx(np.sqrt(2 / (49 * 64)), rel=0.05)
    assert np.abs(params['head']['kernel']).max() == pytest.approx(512**-0.5, rel=1e-3)

    images = rng.normal(size=(2, 64, 48, 3))
    outputs, new_stats, backward = ref.resnet18(params, stats, images, train=True)
    assert {name: value.shape for name, value in outputs.items()} == {
        'stem': (2, 16, 12, 64),
        'stage1': (2, 16, 12, 64),
        'stage2': (2, 8, 6, 128),
        'stage3': (2, 4, 3, 256),
        'stage4': (2, 2, 2, 512),
        'pooled': (2, 512),
        'logits': (2, 1000),
    }
    assert leaves(new_stats).keys() == leaves(stats).keys()
    dimages, grads = backward(ref.softmax_cross_entropy(outputs['logits'], np.array([1, 2]))[1]())
    assert dimages.shape == images.shape
    shapes = {path: leaf.shape for path, leaf in leaves(params).items()}
    assert {path: leaf.shape for path, leaf in leaves(grads).items()} == shapes
    assert all(np.abs(leaf).max() > 0 for leaf in leaves(grads).values())


def test_resnet18_for_other_images_and_classes(rng):
    params, stats = ref.resnet18_init(rng, num_classes=7, in_channels=1)
    outputs, _, _ = ref.resnet18(params, stats, rng.normal(size=(1, 32, 32, 1)), train=False)
    assert outputs['logits'].shape == (1, 7)
