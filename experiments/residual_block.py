"""Shows shortcuts, common mistakes, and gradients of plain and residual networks.

python -m experiments.residual_block                                      # tables, and a plot in runs/residual_block
python -m experiments.residual_block --depth=20 --seed=1
"""

import pathlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.shared import outputs, scripts
from resnet_jax import BatchNorm, Conv, InputError, ResNet, Shortcut, get_spec, init_variables
from resnet_jax.checkpoints.storage import make_folder
from resnet_jax.data.augment import normalize
from resnet_jax.data.datasets import load_dataset
from resnet_jax.models.layers import SHORTCUTS
from resnet_jax.tasks.drawing import readable
from resnet_jax.tasks.losses import softmax_cross_entropy
from resnet_jax.text import printable
from resnet_jax.training.report import save_figure

GROUP = 'studies'
FLAGS = flags.FLAGS

_BATCH = 128


def define_flags() -> None:
    flags.DEFINE_enum(
        'depth',
        '56',
        ['20', '32', '44', '56', '110'],
        'Depth of the plain and the residual network whose gradients are compared.',
    )
    flags.DEFINE_integer('seed', 0, 'Seed of the initial weights.', lower_bound=0)
    flags.DEFINE_string(
        'out', None, 'Output file, a plot: .png, .pdf or .svg. Default: runs/residual_block/gradients.png.'
    )


def print_shortcuts() -> None:
    """Prints the output shape and the number of parameters of each shortcut for 64 channels of 56 x 56 pixels."""
    x = jnp.zeros((1, 56, 56, 64))
    for features, stride in ((64, 1), (128, 2)):
        print(f'\nshortcuts from 64 to {features} channels with stride {stride}')
        for kind in SHORTCUTS:
            try:
                y, variables = Shortcut(features, stride, kind).init_with_output(jax.random.key(0), x, train=False)
            except InputError as error:
                print(f'  {kind:>8}  error: {error}')
                continue
            count = sum(leaf.size for leaf in jax.tree.leaves(variables.get('params', {})))
            print(f'  {kind:>8}  {x.shape[1:]} to {y.shape[1:]!s:<14} {count:6,} parameters  {SHORTCUTS[kind]}')


class Branch(nn.Module):
    """``y = relu(x + F(x))`` with two 3x3 convolutions, either correct or with a common mistake.

    Attributes:
      kind: ``correct``; ``relu_in_branch``: another ReLU before the addition; ``no_normalization``.
    """

    kind: str = 'correct'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, H, W, C]`` to the same shape."""
        h = Conv(x.shape[-1], name='conv1')(x)
        h = h if self.kind == 'no_normalization' else BatchNorm(name='norm1')(h, train=True)
        h = Conv(x.shape[-1], name='conv2')(nn.relu(h))
        h = h if self.kind == 'no_normalization' else BatchNorm(name='norm2')(h, train=True)
        return nn.relu(x + (nn.relu(h) if self.kind == 'relu_in_branch' else h))


def print_mistakes(seed: int, blocks: int = 20) -> None:
    """Prints how activations grow through a stack of blocks at initialization."""
    reported = (1, 5, 10, blocks)
    key = jax.random.key(seed)
    start = nn.relu(jax.random.normal(jax.random.fold_in(key, blocks), (8, 16, 16, 32)))
    print(f'\nroot mean square and mean after block {", ".join(map(str, reported))} of {blocks}, at initialization')
    labels = {
        'correct': 'ReLU after the addition',
        'relu_in_branch': 'ReLU before the addition too: blocks can only increase values, so the mean grows',
        'no_normalization': 'no normalization: every block at least doubles the variance',
    }
    for kind, label in labels.items():
        x, cells = start, []
        for block in range(1, blocks + 1):
            x = Branch(kind).init_with_output(jax.random.fold_in(key, block), x)[0]
            if block in reported:
                cells.append(f'{float(jnp.sqrt(jnp.square(x).mean())):9.3g} {float(x.mean()):9.3g}')
        print(f'  {"  ".join(cells)}   {label}')


def print_derivative(seed: int) -> None:
    """Checks dy/dx = dF/dx + I on a block without the last ReLU."""
    key = jax.random.key(seed)
    x, conv = jax.random.normal(key, (3, 3, 4)), Conv(4, implementation='xla')

    def branch(x: jax.Array, params: Any) -> jax.Array:
        h: Any = conv.apply({'params': params[0]}, x[None])
        h = conv.apply({'params': params[1]}, nn.relu(h))
        return h[0]

    params = [conv.init(jax.random.fold_in(key, index), x[None])['params'] for index in range(2)]
    of_branch = jax.jacobian(branch)(x, params).reshape(36, 36)
    of_block = jax.jacobian(lambda x: branch(x, params) + x)(x).reshape(36, 36)
    difference = np.abs(of_block - of_branch - np.eye(36)).max()
    print(f'\ny = F(x) + x: the largest entry of dy/dx - dF/dx - I is {difference:.1e}')


def gradient_norms(arch: str, seed: int) -> np.ndarray:
    """Norms of the loss gradient of all 3x3 kernels, from stem to head, on digits at initialization."""
    dataset = load_dataset('digits')
    train_images, train_labels = dataset.train.arrays
    images = normalize(jnp.asarray(train_images[:_BATCH]), dataset.mean, dataset.std)
    labels = jnp.asarray(train_labels[:_BATCH])
    model = ResNet(get_spec(arch))
    variables = init_variables(model, jax.random.key(seed), dataset.image_shape)

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits: Any = model.apply(variables | {'params': params}, images, train=True, update_stats=False)
            return softmax_cross_entropy(logits, labels).mean()

        return jax.grad(loss)(params)

    named = {
        jax.tree_util.keystr(path, simple=True, separator='/'): float(jnp.linalg.norm(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradient(variables['params']))[0]
        if path[-1].key == 'kernel' and leaf.ndim == 4
    }
    stem = named.pop('stem/conv/kernel')
    blocks = sorted(named, key=lambda name: [int(number) for number in re.findall(r'\d+', name)])
    return np.array([stem, *(named[name] for name in blocks)])


def draw(path: pathlib.Path, norms: dict[str, np.ndarray]) -> None:
    """Plots gradient norms over the layers of each network."""
    figure = Figure(figsize=(9, 4.5), layout='constrained')
    axes = figure.subplots()
    for (label, values), color in zip(norms.items(), ('#c4372c', '#1f5f8b'), strict=True):
        axes.plot(range(1, len(values) + 1), values, label=label, color=readable(color), marker='.', markersize=4)
    axes.set(xlabel='convolution, from input to output', ylabel='gradient norm', yscale='log')
    axes.set_title('gradients at initialization, 128 digits')
    axes.legend()
    save_figure(figure, path)


def main() -> None:
    names = {'plain': f'plain{FLAGS.depth}', 'residual': f'resnet{FLAGS.depth}'}
    for arch in names.values():
        get_spec(arch)  # raises InputError for an unknown depth
    out = outputs.output_file(outputs.IMAGES, 'runs/residual_block/gradients.png')
    make_folder(out.parent)
    print_shortcuts()
    print_mistakes(FLAGS.seed)
    print_derivative(FLAGS.seed)
    norms = {arch: gradient_norms(arch, FLAGS.seed) for arch in names.values()}
    print('\ngradient norms of kernels in the first, middle and last block')
    for arch, values in norms.items():
        print(f'  {arch:>10}  {values[1]:9.3g}  {values[len(values) // 2]:9.3g}  {values[-1]:9.3g}')
    draw(out, norms)
    print('\n' + printable(f'wrote {out}'))


if __name__ == '__main__':
    scripts.run(main, define_flags)
