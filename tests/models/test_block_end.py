"""The end of a block: the order of its parts, all of which are optional."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import Block, finish_block
from resnet_jax.models import block_end, blocks, branch_blocks
from resnet_jax.models.branch_blocks import BLOCKS


class Ending(Block):
    """A block that consists only of ``finish_block``."""

    norm: str | None = 'norm'
    zero_init: bool = False
    relu_in_branch: bool = False
    steps: tuple = ()
    relu: bool = True
    has_shortcut: bool = True

    def forward(self, x, mode, drop_rate):
        return finish_block(
            self,
            mode,
            x,
            0.5 * x if self.has_shortcut else None,
            conv=self.conv('conv', self.features, 1),
            norm=self.norm,
            zero_init=self.zero_init,
            relu_in_branch=self.relu_in_branch,
            branch=self.steps,
            relu=self.relu,
        )


def halved(h):
    return h / 2


def shifted(h):
    return h + 1


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'has_shortcut': False},
        {'relu': False},
        {'norm': None, 'relu': False},
        {'norm': None, 'relu': False, 'steps': (halved,)},
        {'steps': (halved, shifted)},
        {'steps': (halved, shifted), 'relu_in_branch': True},
        {'steps': (shifted,), 'relu': False, 'has_shortcut': False},
    ],
    ids=lambda options: ' '.join(options) or 'plain',
)
def test_order_of_the_parts(options, rng, variables_of, by_hand):
    block = Ending(4, **options)
    x = rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
    variables = variables_of(block, x.shape, train=False)
    layers = by_hand(variables, train=True)
    h = layers.conv('conv', np.float64(x))
    h = layers.norm('norm', h) if block.norm else h
    h = np.maximum(h, 0) if block.relu_in_branch else h
    for step in block.steps:
        h = step(h)
    h = h + 0.5 * x if block.has_shortcut else h
    expected = np.maximum(h, 0) if block.relu else h
    y, _ = block.apply(variables, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-5)


def test_zero_init():
    variables = Ending(4, zero_init=True).init(jax.random.key(0), jnp.ones((1, 2, 2, 4)), train=False)
    np.testing.assert_array_equal(variables['params']['norm']['scale'], np.zeros(4))


@pytest.mark.parametrize('name', BLOCKS)
def test_every_block_returns_the_result_of_finish_block(name, monkeypatch):
    """So a version for one platform only needs a change of this function."""
    ends = []

    def spy(*args, **kwargs):
        ends.append(block_end.finish_block(*args, **kwargs))
        return ends[-1]

    for module in (blocks, branch_blocks):
        monkeypatch.setattr(module, 'finish_block', spy, raising=False)  # not all files call it
    block = BLOCKS[name](32)
    x = jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.float32)
    same = []

    def call(key, x):
        y, _ = block.init_with_output(key, x, train=False)
        same.append(y is ends[-1])
        return y

    jax.eval_shape(call, jax.random.key(0), x)
    assert same == [True]
    assert len(ends) == 1


def test_only_finish_block_calls_relu():
    for module in (blocks, branch_blocks):
        assert 'nn.relu(' not in pathlib.Path(module.__file__).read_text()
