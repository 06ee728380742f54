"""Parameter trees with the project's names, for the optimizer tests."""

import jax
import jax.numpy as jnp
import numpy as np

PARAMS = {'conv1': {'kernel': jnp.array([2.0])}, 'norm1': {'scale': jnp.array([1.0]), 'bias': jnp.array([0.5])}}


# A stem, a block with attention of one unit, and a head.
SHAPES = {
    'stem/conv/kernel': (3, 3, 1, 4),
    'stem/norm/scale': (4,),
    'stem/norm/bias': (4,),
    'stage1_block1/conv1/kernel': (1, 1, 4, 4),
    'stage1_block1/attention/kernel': (3, 1, 1),
    'stage1_block1/se/bias': (4,),
    'head/kernel': (4, 3),
    'head/bias': (3,),
}


STACK = {f'stage1_block{index}/conv1/kernel': (3, 3, 2, 3) for index in (1, 2, 3)} | {
    f'stage1_block{index}/norm1/{name}': (3,) for index in (1, 2, 3) for name in ('scale', 'bias')
}


def tree_of(flat):
    """Converts a dict by path to nested dicts."""
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flat_of(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in flat}


def random_arrays(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: scale * rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def newton_schulz(x):
    """Newton-Schulz iteration on the singular values: s becomes a s + b s^3 + c s^5, five times."""
    left, s, right = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left * s @ right
