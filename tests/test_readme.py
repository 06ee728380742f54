"""Commands, links and Python of the README run, and the list of commands names every architecture."""

import contextlib
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnet_jax import ResNet, init_variables, list_models, make_spec


def code_blocks(root, language):
    return re.findall(rf'```{language}\n(.*?)```', (root / 'README.md').read_text(), re.DOTALL)


@pytest.mark.slow
def test_python_examples_run(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they write files
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for example in code_blocks(root, 'python'):  # in one namespace, since later blocks use earlier names
            exec(example, names)
    assert int(names['state'].step) == 1
    assert names['logits'].shape == (8, 10)
    assert {'stem', 'stage3', 'pooled'} <= set(names['features'])
    assert set(names['updates']) == {'batch_stats'}


def test_scripts_and_recipes_of_the_readme_exist(root):
    text = (root / 'README.md').read_text()
    for name in re.findall(r'python -m experiments\.(\w+)', text):
        assert (root / 'experiments' / f'{name}.py').exists()
    for name in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert (root / name).exists(), name


def test_every_architecture_is_in_the_list_of_commands(root):
    """The table writes a common prefix once: ``resnet18 34 50`` names three; a star stands for anything."""
    text = re.sub(r'```.*?```', '', (root / 'docs' / 'commands.md').read_text(), flags=re.DOTALL)
    named = set()
    for group in re.findall(r'`([^`]+)`', text):
        first, *rest = group.split()
        named.add(first)
        for tail in rest:
            # resnet18 34: digits after the stem; resnext101_32x4d 32x8d, wrn28_10 40_2: what follows the last letters
            for cut in range(len(first)):
                named |= {first[:cut] + tail, first[:cut] + tail + first[len(first) - 6 :]}
    patterns = [name for name in named if re.fullmatch(r'[a-z]\w+\*\w*', name)]
    assert set(list_models()) <= named.union(*map(list_models, patterns))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_network_can_be_used_from_nnx():
    """``ToNNX`` wraps a Linen module; ``lazy_init`` initializes its variables from an example."""
    spec = make_spec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=3)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 3)), jnp.float32)
    model = nnx.bridge.ToNNX(ResNet(spec), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, images, train=False)
    logits = model(images, train=False)

    @nnx.jit
    def step(model, images):
        def loss_fn(model):
            return jnp.sum(model(images, train=True, mutable=['batch_stats']) ** 2)

        return nnx.value_and_grad(loss_fn)(model)

    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    loss, grads = step(model, images)
    after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert np.isfinite(loss)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    assert not all(np.allclose(a, b) for a, b in zip(before, after, strict=True))
    assert logits.shape == (4, 3)
    linen = jax.eval_shape(lambda key: init_variables(ResNet(spec), key, (6, 6, 3)), jax.random.key(0))
    assert len(jax.tree.leaves(linen['params'])) == len(jax.tree.leaves(nnx.state(model, nnx.Param)))
