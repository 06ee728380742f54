"""The ResNet family in pure NumPy: every layer, block and network, forward and backward.

Written to be read alongside the papers, and used as the oracle in the tests of the Flax modules.
Each function returns its value and a closure `backward`, which maps the gradient of a loss with
respect to that value to the gradients with respect to the inputs and parameters, by a formula
written out here.

Papers: residual learning and the shortcuts A, B, C (He et al. 2015, arXiv:1512.03385), batch
normalization (Ioffe & Szegedy 2015, arXiv:1502.03167), pre-activation (He et al. 2016,
arXiv:1603.05027), wide networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146), grouped
bottlenecks (Xie et al. 2017, arXiv:1611.05431), the shortcut D (He et al. 2018, arXiv:1812.01187).

Conventions: images are [N, H, W, C], kernels [kh, kw, C / groups, C_out]; padding is explicit and
the same on both sides; s is the stride; dz always means d loss / d z. Parameters, running
statistics and gradients are nested dicts with the Flax modules' names.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy import ndarray

Tree = dict[str, Any]
Backward = Callable[..., Any]
ModuleResult = tuple[ndarray, Tree, Backward]  # y, new running statistics, backward

# --- Convolution and batch normalization ---


def _taps(padded: ndarray, window: tuple[int, int], stride: int, dilation: int = 1) -> list[ndarray]:
    """Lists the views padded[:, s i + d u, s j + d v] [N, H', W', C], one for each offset (u, v).

    A sliding window needs no loop over pixels: each of its few offsets, in row-major order,
    corresponds to one strided slice of the whole map.
    """
    rows, columns = (padded.shape[1 + i] - dilation * (window[i] - 1) for i in (0, 1))
    if rows < 1 or columns < 1:
        raise ValueError(f'window {window} with dilation {dilation} is too large for {padded.shape[1:3]}')
    offsets = [(u * dilation, v * dilation) for u in range(window[0]) for v in range(window[1])]
    return [padded[:, u : u + rows : stride, v : v + columns : stride] for u, v in offsets]


def convolution(
    x: ndarray,
    kernel: ndarray,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    dilation: int = 1,
    groups: int = 1,
) -> tuple[ndarray, Backward]:
    """Computes a strided, dilated, grouped convolution (a cross-correlation: no flipping).

        y[n, i, j, o] = sum_{u, v, c} x[n, s i + d u - p, s j + d v - p, c] kernel[u, v, c, o]

    where c runs over the input channels in the group of o, and x is 0 outside the image.

    Args: x [N, H, W, C]; kernel [kh, kw, C / groups, C_out]; padding p, the number of zeros on
        each side, one number or (vertical, horizontal), by default (k - 1) // 2 * d.
    Returns: y [N, H', W', C_out], H' = floor((H + 2 p - d (kh - 1) - 1) / s) + 1;
        backward(dy) -> (dx, dkernel).
    """
    (_, h, w, c), (kh, kw, group_c, features) = x.shape, kernel.shape
    if c != group_c * groups or features % groups:
        raise ValueError(f'kernel {kernel.shape} does not fit {c} channels in {groups} groups')
    if padding is None:
        padding = ((kh - 1) // 2 * dilation, (kw - 1) // 2 * dilation)
    ph, pw = (padding, padding) if isinstance(padding, int) else padding
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    taps = _taps(padded, (kh, kw), stride, dilation)
    out_shape = taps[0].shape[:3]

    def split(z: ndarray) -> ndarray:  # [N, H', W', channels] -> [groups, pixels, channels]
        return z.reshape(-1, groups, z.shape[-1] // groups).swapaxes(0, 1)

    def merge(z: ndarray) -> ndarray:
        return z.swapaxes(0, 1).reshape(*out_shape, -1)

    # A group's outputs are adjacent channels: C_out is (groups, C_out / groups).
    weights = kernel.reshape(kh * kw, group_c, groups, -1).swapaxes(1, 2)
    # Each tap adds the matrix product x_uv K_uv to y, so dK_uv = x_uv^T dy and dx_uv = dy K_uv^T.
    y = merge(reduce(np.add, (split(x_uv) @ k for x_uv, k in zip(taps, weights, strict=True))))

    def backward(dy: ndarray) -> tuple[ndarray, ndarray]:
        dy_split, dweights, dpadded = split(dy), np.zeros_like(weights), np.zeros_like(padded)
        dtaps = _taps(dpadded, (kh, kw), stride, dilation)
        for x_uv, k, dx_uv, dk in zip(taps, weights, dtaps, dweights, strict=True):
            dk += split(x_uv).mT @ dy_split
            dx_uv += merge(dy_split @ k.mT)
        dkernel = dweights.swapaxes(1, 2).reshape(kernel.shape)
        return dpadded[:, ph : ph + h, pw : pw + w], dkernel

    return y, backward


def batch_norm(
    x: ndarray,
    scale: ndarray,
    bias: ndarray,
    mean: ndarray,
    var: ndarray,
    *,
    train: bool,
    decay: float = 0.9,
    epsilon: float = 1e-5,
) -> tuple[ndarray, tuple[ndarray, ndarray], Backward]:
    """Normalizes each channel over the batch and its pixels, then scales and shifts it.

        x_hat = (x - mean) / sqrt(var + epsilon),    y = scale x_hat + bias

    In training, mean and (biased) var are computed over the m = N H W values of the batch, and
    new running = decay running + (1 - decay) batch, where the batch's var is multiplied by
    m / (m - 1) to make it unbiased. Otherwise they are the running values.

    Args: x [N, H, W, C]; scale, bias and the running mean and var [C].
    Returns: y [N, H, W, C]; new running (mean, var); backward(dy) -> (dx, dscale, dbias).
    """
    axes = tuple(range(x.ndim - 1))
    running = (mean, var)
    if train:
        m, old_mean, old_var = x.size // x.shape[-1], mean, var
        mean, var = x.mean(axes), x.var(axes)
        unbiased = var * (m / max(m - 1, 1))
        running = (decay * old_mean + (1 - decay) * mean, decay * old_var + (1 - decay) * unbiased)
    inv_std = 1 / np.sqrt(var + epsilon)
    x_hat = (x - mean) * inv_std

    def backward(dy: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        dx_hat, dscale, dbias = dy * scale, (dy * x_hat).sum(axes), dy.sum(axes)
        if train:
            # mean and var depend on x, too: mean cancels a shift of x and var a rescaling, so the
            # gradient loses its components along 1 and along x_hat.
            dx_hat = dx_hat - dx_hat.mean(axes) - x_hat * (dx_hat * x_hat).mean(axes)
        return dx_hat * inv_std, dscale, dbias

    return scale * x_hat + bias, running, backward


# --- Activation, pooling, the linear layer ---


def relu(x: ndarray) -> tuple[ndarray, Backward]:
    """Computes y = max(x, 0); backward(dy) -> dx, which is 0 where x <= 0."""
    return np.maximum(x, 0), lambda dy: dy * (x > 0)


def max_pool(x: ndarray, window: int = 3, stride: int = 2, padding: int = 1) -> tuple[ndarray, Backward]:
    """Takes the maximum of each window.

        y[n, i, j, c] = max_{u, v} x[n, s i + u - p, s j + v - p, c],  x = -inf outside the image

    Args: x [N, H, W, C].
    Returns: y [N, H', W', C], H' = floor((H + 2 p - window) / s) + 1; backward(dy) -> dx, where
        the first maximum of a window, in row-major order, gets all of its gradient.
    """
    (_, h, w, _), p = x.shape, padding
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=-np.inf)
    candidates = np.stack(_taps(padded, (window, window), stride))
    winner = candidates.argmax(axis=0)  # the first of equal ones

    def backward(dy: ndarray) -> ndarray:
        dpadded = np.zeros_like(padded)
        for index, dx_uv in enumerate(_taps(dpadded, (window, window), stride)):
            dx_uv += dy * (winner == index)
        return dpadded[:, p : p + h, p : p + w]

    return candidates.max(axis=0), backward


def avg_pool(x: ndarray, window: int = 2, stride: int = 2) -> tuple[ndarray, Backward]:
    """Takes the mean of each window, over its valid pixels only where it extends past the edge.

        y[n, i, j, c] = mean{ x[n, s i + u, s j + v, c] : 0 <= u, v < window, inside the image }

    Args: x [N, H, W, C].
    Returns: y [N, H', W', C], H' = ceil((H - window) / s) + 1, or one less if the last window
        would start outside the image; backward(dy) -> dx.
    """
    _, h, w, _ = x.shape
    overhangs = [(window - size) % stride for size in (h, w)]
    after = [(0, overhang if overhang < window else 0) for overhang in overhangs]

    def window_sum(z: ndarray) -> ndarray:
        padded = np.pad(z, ((0, 0), *after, (0, 0)))
        return reduce(np.add, _taps(padded, (window, window), stride))

    count = window_sum(np.ones_like(x[:1, :, :, :1]))

    def backward(dy: ndarray) -> ndarray:
        dpadded = np.pad(np.zeros_like(x), ((0, 0), *after, (0, 0)))
        for dx_uv in _taps(dpadded, (window, window), stride):
            dx_uv += dy / count
        return dpadded[:, :h, :w]

    return window_sum(x) / count, backward


def global_avg_pool(x: ndarray) -> tuple[ndarray, Backward]:
    """Takes the mean of each map: y[n, c] = 1 / (H W) sum_{i, j} x[n, i, j, c].

    Args: x [N, H, W, C].
    Returns: y [N, C]; backward(dy) -> dx.
    """
    pixels = x.shape[1] * x.shape[2]
    return x.mean((1, 2)), lambda dy: np.broadcast_to(dy[:, None, None] / pixels, x.shape)


def linear(x: ndarray, kernel: ndarray, bias: ndarray) -> tuple[ndarray, Backward]:
    """Computes the fully connected layer y = x kernel + bias.

    Args: x [N, C_in]; kernel [C_in, C_out]; bias [C_out].
    Returns: y [N, C_out]; backward(dy) -> (dx, dkernel, dbias).
    """
    return x @ kernel + bias, lambda dy: (dy @ kernel.T, x.T @ dy, dy.sum(0))


# --- Probabilities and losses ---


def softmax(logits: ndarray) -> tuple[ndarray, Backward]:
    """Computes p_k = exp(z_k) / sum_l exp(z_l) along the last axis of the logits z.

    Returns: p, of the shape of z; backward(dp) -> dlogits, from dp_k / dz_l = p_k (1[k=l] - p_l).
    """
    exp = np.exp(logits - logits.max(-1, keepdims=True))  # a shift of z cancels in p
    p = exp / exp.sum(-1, keepdims=True)
    return p, lambda dp: p * (dp - (dp * p).sum(-1, keepdims=True))


def sigmoid(logits: ndarray) -> tuple[ndarray, Backward]:
    """Computes p = 1 / (1 + exp(-z)) of each logit z; backward(dp) -> dlogits."""
    exp = np.exp(-np.abs(logits))  # at most 1, so neither form overflows
    p = np.where(logits >= 0, 1, exp) / (1 + exp)
    return p, lambda dp: dp * p * (1 - p)


def softmax_cross_entropy(
    logits: ndarray, labels: ndarray, label_smoothing: float = 0.0
) -> tuple[np.floating, Backward]:
    """Computes the mean cross-entropy of images with one label each.

        loss = -1/N sum_{n, k} t_nk log softmax(z_n)_k,    t_n = (1 - a) onehot(label_n) + a / K

    Args: logits z [N, K]; labels [N], integers below K; label_smoothing a.
    Returns: loss; backward(dloss=1.0) -> dlogits.
    """
    n, k = logits.shape
    targets = np.full_like(logits, label_smoothing / k)
    targets[np.arange(n), labels] += 1 - label_smoothing
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    # d(-t . log p) / dz = p sum(t) - t, and t_n sums to 1.
    return -(targets * log_p).sum() / n, lambda dloss=1.0: dloss * (np.exp(log_p) - targets) / n


def sigmoid_cross_entropy(logits: ndarray, targets: ndarray) -> tuple[np.floating, Backward]:
    """Computes the cross-entropy of independent binary labels, averaged over all entries.

        loss = mean[-t log p - (1 - t) log(1 - p)] = mean[max(z, 0) - z t + log(1 + exp(-|z|))]

    Args: logits z of any shape, p = sigmoid(z); targets t in [0, 1], of the same shape.
    Returns: loss; backward(dloss=1.0) -> dlogits.
    """
    losses = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return losses.mean(), lambda dloss=1.0: dloss * (sigmoid(logits)[0] - targets) / logits.size


# --- Shortcuts and blocks ---


def _sequence(params: Tree, stats: Tree, x: ndarray, layers: str, train: bool, **conv_options: Tree) -> ModuleResult:
    """Composes the named layers in order, for example 'conv1 norm1 relu' with conv1={'stride': 2}."""
    new_stats: Tree = {}
    steps: list[tuple[str, tuple[str, ...], Backward]] = []
    for name in layers.split():
        if name == 'relu':
            x, back = relu(x)
            leaves: tuple[str, ...] = ()
        elif name.startswith('conv'):
            x, back = convolution(x, params[name]['kernel'], **conv_options.get(name, {}))
            leaves = ('kernel',)
        else:
            x, (mean, var), back = batch_norm(x, **params[name], **stats[name], train=train)
            new_stats[name] = {'mean': mean, 'var': var}
            leaves = ('scale', 'bias')
        steps.append((name, leaves, back))

    def backward(dy: ndarray) -> tuple[ndarray, Tree]:
        grads: Tree = {}
        for name, leaves, back in reversed(steps):  # the chain rule
            dy, *dleaves = back(dy) if leaves else (back(dy),)
            if leaves:
                grads[name] = dict(zip(leaves, dleaves, strict=True))
        return dy, grads

    return x, new_stats, backward


def _pad_channels(x: ndarray, features: int, stride: int) -> ModuleResult:
    """Subsamples x [N, H, W, C] and pads it with features - C zero channels (option A)."""
    c = x.shape[-1]
    if features < c:
        raise ValueError(f"shortcut 'A' cannot map {c} to {features} channels: it can only add channels")
    front = (features - c) // 2
    y = np.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((front, features - c - front),))

    def backward(dy: ndarray) -> tuple[ndarray, Tree]:
        dx = np.zeros_like(x)
        dx[:, ::stride, ::stride] = dy[..., front : front + c]
        return dx, {}

    return y, {}, backward


def shortcut(
    params: Tree,
    stats: Tree,
    x: ndarray,
    features: int,
    *,
    stride: int,
    kind: str,
    norm: bool = True,
    train: bool,
) -> ModuleResult:
    """Computes the shortcut around the residual branch: the identity, or a mapping by kind.

        'identity'  y = x always; an error if the shape changes
        'A'         y = x[:, ::s, ::s], padded with zero channels in front and behind
        'B'         y = norm(conv(x)), a 1x1 convolution with the stride, if the shape changes
        'C'         y = norm(conv(x)) in every block
        'D'         y = norm(conv(avg_pool(x))) if the shape changes; uses every pixel

    Args: params {'conv': {'kernel'}, 'norm': {'scale', 'bias'}} and stats {'norm': {'mean',
        'var'}} for projections, else {}; x [N, H, W, C]; features, the channels of y;
        norm, False for no norm (pre-activation).
    Returns: y [N, ceil(H / s), ceil(W / s), features]; new stats; backward(dy) -> (dx, grads).
    """
    if kind not in ('identity', 'A', 'B', 'C', 'D'):
        raise ValueError(f"shortcut kind {kind!r} must be one of 'identity', 'A', 'B', 'C', 'D'")
    changes_shape = stride != 1 or x.shape[-1] != features
    if kind == 'identity' and changes_shape:
        target = (x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), features)
        others = "use kind 'A', 'B', 'C' or 'D'"
        raise ValueError(f"shortcut 'identity' cannot map {x.shape} to {target}; {others}")
    if kind == 'A':
        return _pad_channels(x, features, stride)
    if kind != 'C' and not changes_shape:
        return x, {}, lambda dy: (dy, {})
    layers = 'conv norm' if norm else 'conv'
    if kind != 'D' or stride == 1:
        return _sequence(params, stats, x, layers, train, conv={'stride': stride})
    pooled, pool_back = avg_pool(x, 2, stride)
    y, new_stats, project_back = _sequence(params, stats, pooled, layers, train)

    def backward(dy: ndarray) -> tuple[ndarray, Tree]:
        dpooled, grads = project_back(dy)
        return pool_back(dpooled), grads

    return y, new_stats, backward


def _without_empty(tree: Tree) -> Tree:
    return {name: child for name, child in tree.items() if child}


def _residual(
    params: Tree, stats: Tree, x: ndarray, layers: str, train: bool, skip: Tree, **convs: Tree
) -> ModuleResult:
    """Computes y = relu(F(x) + shortcut(x)); F: the named layers, skip: options of the shortcut."""
    branch, new_stats, branch_back = _sequence(params, stats, x, layers, train, **convs)
    skip_trees = params.get('shortcut', {}), stats.get('shortcut', {})
    carried, skip_stats, skip_back = shortcut(*skip_trees, x, branch.shape[-1], train=train, **skip)
    y, relu_back = relu(branch + carried)

    def backward(dy: ndarray) -> tuple[ndarray, Tree]:
        dsum = relu_back(dy)
        dx_branch, grads = branch_back(dsum)
        dx_skip, skip_grads = skip_back(dsum)  # an identity passes dsum on unchanged
        return dx_branch + dx_skip, _without_empty({**grads, 'shortcut': skip_grads})

    return y, _without_empty({**new_stats, 'shortcut': skip_stats}), backward


def _preact_residual(
    params: Tree, stats: Tree, x: ndarray, layers: str, train: bool, skip: Tree, first: bool, **convs: Tree
) -> ModuleResult:
    """Computes h = relu(norm1(x)), y = F(h) + shortcut(h or x); F and skip as in _residual."""
    h, first_stats, first_back = _sequence(params, stats, x, 'norm1 relu', train)
    branch, new_stats, branch_back = _sequence(params, stats, h, layers, train, **convs)
    features = branch.shape[-1]
    # An identity passes on the raw x; a projection has the same input as F.
    from_h = first or skip['kind'] == 'C' or skip['stride'] != 1 or x.shape[-1] != features
    skip_trees = params.get('shortcut', {}), stats.get('shortcut', {})
    carried, skip_stats, skip_back = shortcut(
        *skip_trees, h if from_h else x, features, norm=False, train=train, **skip
    )

    def backward(dy: ndarray) -> tuple[ndarray, Tree]:
        dh, grads = branch_back(dy)
        dcarried, skip_grads = skip_back(dy)
        dx, first_grads = first_back(dh + dcarried if from_h else dh)
        grads = _without_empty({**first_grads, **grads, 'shortcut': skip_grads})
        return dx if from_h else dx + dcarried, grads

    new_stats = _without_empty({**first_stats, **new_stats, 'shortcut': skip_stats})
    return branch + carried, new_stats, backward


def plain_block(params: Tree, stats: Tree, x: ndarray, *, stride: int = 1, train: bool) -> ModuleResult:
    """Computes the block of plain networks, the baseline of residual learning.

        y = relu(norm2(conv2(relu(norm1(conv1(x))))))

    Args, Returns: as basic_block, without a shortcut.
    """
    layers = 'conv1 norm1 relu conv2 norm2 relu'
    return _sequence(params, stats, x, layers, train, conv1={'stride': stride})


def basic_block(
    params: Tree, stats: Tree, x: ndarray, *, stride: int = 1, shortcut_kind: str = 'B', train: bool
) -> ModuleResult:
    """Computes the basic residual block of two 3x3 convolutions.

        y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))

    Args: params {'conv1': {'kernel'}, 'norm1': {'scale', 'bias'}, 'conv2', 'norm2', 'shortcut'},
        stats {'norm1': {'mean', 'var'}, 'norm2', 'shortcut'}, 'shortcut' only for projections;
        x [N, H, W, C].
    Returns: y [N, ceil(H / s), ceil(W / s), C_out]; new stats; backward(dy) -> (dx, grads).
    """
    layers, skip = 'conv1 norm1 relu conv2 norm2', {'stride': stride, 'kind': shortcut_kind}
    return _residual(params, stats, x, layers, train, skip, conv1={'stride': stride})


def bottleneck_block(
    params: Tree,
    stats: Tree,
    x: ndarray,
    *,
    stride: int = 1,
    shortcut_kind: str = 'B',
    cardinality: int = 1,
    stride_in_1x1: bool = False,
    train: bool,
) -> ModuleResult:
    """Computes the bottleneck: 1x1 to fewer channels, 3x3 in groups, 1x1 to more channels.

        y = relu(norm3(conv3(relu(norm2(conv2(relu(norm1(conv1(x)))))))) + shortcut(x))

    Args, Returns: as basic_block, and conv3, norm3; cardinality, the groups of the 3x3 (ResNeXt);
        stride_in_1x1, True for the stride in conv1 (the paper, v1), False for conv2 (v1.5).
    """
    layers = 'conv1 norm1 relu conv2 norm2 relu conv3 norm3'
    conv1 = {'stride': stride if stride_in_1x1 else 1}
    conv2 = {'stride': 1 if stride_in_1x1 else stride, 'groups': cardinality}
    skip = {'stride': stride, 'kind': shortcut_kind}
    return _residual(params, stats, x, layers, train, skip, conv1=conv1, conv2=conv2)


def preact_basic_block(
    params: Tree,
    stats: Tree,
    x: ndarray,
    *,
    stride: int = 1,
    shortcut_kind: str = 'B',
    first: bool = False,
    train: bool,
) -> ModuleResult:
    """Computes the pre-activation basic block, which wide networks use, too.

        h = relu(norm1(x)),    y = conv2(relu(norm2(conv1(h)))) + shortcut(h or x)

    The input of the shortcut is h if it changes the shape, is of kind 'C', or the block is the
    network's first (appendix of He et al. 2016), else x.
    Args, Returns: as basic_block, with C channels in norm1 and no norm in the shortcut.
    """
    layers, skip = 'conv1 norm2 relu conv2', {'stride': stride, 'kind': shortcut_kind}
    return _preact_residual(params, stats, x, layers, train, skip, first, conv1={'stride': stride})


def preact_bottleneck_block(
    params: Tree,
    stats: Tree,
    x: ndarray,
    *,
    stride: int = 1,
    shortcut_kind: str = 'B',
    cardinality: int = 1,
    first: bool = False,
    train: bool,
) -> ModuleResult:
    """Computes the pre-activation bottleneck, with the stride in its 3x3 convolution.

        h = relu(norm1(x)),    y = conv3(relu(norm3(conv2(relu(norm2(conv1(h))))))) + shortcut

    Args, Returns: as preact_basic_block, and conv3, norm3; cardinality, the groups of the 3x3.
    """
    layers = 'conv1 norm2 relu conv2 norm3 relu conv3'
    conv2 = {'stride': stride, 'groups': cardinality}
    skip = {'stride': stride, 'kind': shortcut_kind}
    return _preact_residual(params, stats, x, layers, train, skip, first, conv2=conv2)


# --- Networks ---

_BLOCKS: dict[str, Callable[..., ModuleResult]] = {
    'plain': plain_block,
    'basic': basic_block,
    'bottleneck': bottleneck_block,
    'preact_basic': preact_basic_block,
    'preact_bottleneck': preact_bottleneck_block,
}


def _stem(params: Tree, stats: Tree, images: ndarray, kind: str, layers: str, train: bool) -> ModuleResult:
    """Computes layers(images); for kind 'imagenet' with stride 2 and followed by a max-pool."""
    if kind == 'cifar':
        return _sequence(params, stats, images, layers, train)
    if kind != 'imagenet':
        raise ValueError(f"stem {kind!r} must be 'imagenet' or 'cifar'")
    x, new_stats, conv_back = _sequence(params, stats, images, layers, train, conv={'stride': 2})
    y, pool_back = max_pool(x, window=3, stride=2, padding=1)
    return y, new_stats, lambda dy: conv_back(pool_back(dy))


def resnet(
    params: Tree,
    stats: Tree,
    images: ndarray,
    *,
    block: str,
    stage_sizes: Sequence[int],
    strides: Sequence[int],
    stem: str,
    train: bool,
    shortcut_kind: str = 'B',
    cardinality: int = 1,
    stride_in_1x1: bool = False,
) -> tuple[Tree, Tree, Backward]:
    """Computes a residual network: stem, stages of blocks, global average pool, linear head.

    The first block of a stage has the stage's stride. Pre-activation stems are plain convolutions:
    norm and relu follow the last stage instead.

    Args: params {'stem': {'conv', 'norm'}, 'stage1_block1', ..., 'head': {'kernel', 'bias'}} and
        for pre-activation 'norm', stats likewise; images [N, H, W, C]; block, a key of _BLOCKS;
        stem, 'imagenet' (7x7 stride 2, max-pool) or 'cifar' (3x3); the rest as for the block.
    Returns: outputs 'stem', 'stage1', ..., 'pooled' and 'logits'; new stats;
        backward(dlogits) -> (dimages, grads).
    """
    if block not in _BLOCKS:
        raise ValueError(f'block {block!r} must be one of {", ".join(_BLOCKS)}')
    preact = block.startswith('preact')
    options: Tree = {} if block == 'plain' else {'shortcut_kind': shortcut_kind}
    options |= {'cardinality': cardinality} if 'bottleneck' in block else {}
    options |= {'stride_in_1x1': stride_in_1x1} if block == 'bottleneck' else {}
    outputs: Tree = {}
    new_stats: Tree = {}
    layers, stem_stats = 'conv' if preact else 'conv norm relu', stats.get('stem', {})
    x, new_stats['stem'], back = _stem(params['stem'], stem_stats, images, stem, layers, train)
    outputs['stem'], backwards = x, [('stem', back)]
    for stage, (size, stride) in enumerate(zip(stage_sizes, strides, strict=True), start=1):
        for index in range(1, size + 1):
            name, options['stride'] = f'stage{stage}_block{index}', stride if index == 1 else 1
            options |= {'first': stage == index == 1} if preact else {}
            trees = params[name], stats[name]
            x, new_stats[name], back = _BLOCKS[block](*trees, x, train=train, **options)
            backwards.append((name, back))
        outputs[f'stage{stage}'] = x
    x, norm_stats, norm_back = _sequence(params, stats, x, 'norm relu' if preact else '', train)
    outputs['pooled'], pool_back = global_avg_pool(x)
    outputs['logits'], head_back = linear(outputs['pooled'], **params['head'])

    def backward(dlogits: ndarray) -> tuple[ndarray, Tree]:
        dpooled, dkernel, dbias = head_back(dlogits)
        dx, grads = norm_back(pool_back(dpooled))
        grads['head'] = {'kernel': dkernel, 'bias': dbias}
        for name, back in reversed(backwards):
            dx, grads[name] = back(dx)
        return dx, grads

    return outputs, _without_empty({**new_stats, **norm_stats}), backward


def resnet18(params: Tree, stats: Tree, images: ndarray, *, train: bool) -> tuple[Tree, Tree, Backward]:
    """Computes ResNet-18: basic blocks, two in each of four stages of 64 to 512 channels.

    Args, Returns: as resnet; images [N, H, W, C], logits [N, num_classes].
    """
    layout: Tree = {'stage_sizes': (2, 2, 2, 2), 'strides': (1, 2, 2, 2), 'stem': 'imagenet'}
    return resnet(params, stats, images, block='basic', train=train, **layout)


def resnet18_init(rng: np.random.Generator, num_classes: int = 1000, in_channels: int = 3) -> tuple[Tree, Tree]:
    """Draws the initial parameters of ResNet-18.

        kernel ~ N(0, 2 / fan_out), fan_out = kh kw C_out;    head ~ U(-1, 1) / sqrt(C_in)

    which preserves the variance of gradients through relu; scale, var = 1 and bias, mean = 0.

    Returns: params, stats.
    """

    def conv_norm(size: int, c: int, features: int, suffix: str = '') -> tuple[Tree, Tree]:
        kernel = rng.normal(0, np.sqrt(2 / (size**2 * features)), (size, size, c, features))
        norm = {'scale': np.ones(features), 'bias': np.zeros(features)}
        running = {'mean': np.zeros(features), 'var': np.ones(features)}
        params = {f'conv{suffix}': {'kernel': kernel}, f'norm{suffix}': norm}
        return params, {f'norm{suffix}': running}

    params: Tree = {}
    stats: Tree = {}
    params['stem'], stats['stem'] = conv_norm(7, in_channels, 64)
    c = 64
    for stage, features in enumerate((64, 128, 256, 512), start=1):
        for index in (1, 2):
            name = f'stage{stage}_block{index}'
            params1, stats1 = conv_norm(3, c, features, '1')
            params2, stats2 = conv_norm(3, features, features, '2')
            params[name], stats[name] = params1 | params2, stats1 | stats2
            if c != features:
                params[name]['shortcut'], stats[name]['shortcut'] = conv_norm(1, c, features)
            c = features
    bound = 1 / np.sqrt(c)
    kernel = rng.uniform(-bound, bound, (c, num_classes))
    params['head'] = {'kernel': kernel, 'bias': rng.uniform(-bound, bound, num_classes)}
    return params, stats
