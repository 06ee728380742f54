"""Dense forms of grouped convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import conv_common


@pytest.mark.parametrize(('channels', 'blocks'), [(1, 4), (4, 2), (6, 2), (8, 1), (100, 1)])
def test_dense_blocks_hold_the_groups_on_their_diagonal(channels, blocks, rng):
    kernel = rng.normal(size=(3, 2, 2, 12)).astype(np.float32)  # four groups, each from two channels to three
    dense = conv_common.dense_blocks(kernel, 4, channels)
    assert dense.shape == (blocks, 3, 2, 8 // blocks, 12 // blocks)
    together = 4 // blocks
    for group in range(4):
        block, i = divmod(group, together)
        rows = dense[block, :, :, 2 * i : 2 * i + 2]
        np.testing.assert_array_equal(rows[..., 3 * i : 3 * i + 3], kernel[..., 3 * group : 3 * group + 3])
        assert not rows[..., : 3 * i].any()
        assert not rows[..., 3 * i + 3 :].any()


def test_nan_stays_in_its_group():
    kernel = jnp.ones((1, 1, 1, 2)).at[..., 0].set(jnp.nan)
    assert int(jnp.isnan(conv_common.dense_blocks(kernel, 2, 2)).sum()) == 1


@pytest.mark.parametrize('channels', [2, 4, 8])
def test_dense_blocks_equal_the_grouped_convolution(channels, rng):
    x = rng.normal(size=(2, 5, 6, 8)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 12)).astype(np.float32)
    y = conv_common.convolve_blocks(lambda x, kernel: conv_common.plain(x, kernel, 2, 1), x, kernel, 4, channels)
    np.testing.assert_allclose(y, conv_common.plain(x, kernel, 2, 1, 4), rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(lambda: y).shape == (2, 3, 3, 12)
