"""Mixup and CutMix of images and targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.augment import Augmentation
from resnet_jax.data.mixing import cutmix, mix, mixup
from resnet_jax.devices import data_mesh, split_batch

KEYS = jax.random.split(jax.random.key(0), 300)


@pytest.fixture(scope='module')
def batch():
    """Each image is filled with its index, and each target is the index's one-hot vector."""
    return jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 8, 6, 3)), jnp.eye(4)


def many(function, batch, **options):
    return jax.jit(jax.vmap(lambda key: function(key, *batch, **options)))(KEYS)


def test_mixup_uses_the_same_share_for_images_and_targets(batch):
    images, targets = many(mixup, batch, alpha=0.4)
    shares = targets[:, 0, 0]
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(targets[:, 0, 3], 1 - shares, atol=1e-6)
    np.testing.assert_allclose(images[:, 0, 2, 3, 1], 3 * (1 - shares), atol=1e-5)  # of images 0 and 3
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1)).
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.08)
    assert float(shares.var()) == pytest.approx(1 / (4 * 1.8), rel=0.2)


def test_cutmix_mixes_targets_by_the_area_of_the_box(batch):
    images, targets = many(cutmix, batch, alpha=1.0)
    foreign = np.asarray(images[:, 0, :, :, 0] == 3)  # from the other image
    np.testing.assert_allclose(targets[:, 0, 3], foreign.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-5)
    assert set(np.unique(images[:, 0])) == {0, 3}
    for mask in foreign:  # a box: the product of its rows and its columns
        np.testing.assert_array_equal(mask, mask.any(1)[:, None] & mask.any(0)[None])
    assert 0.15 < foreign.mean() < 0.45  # a half, minus what is clipped at the border
    assert len({mask.tobytes() for mask in foreign}) > 100


def test_with_both_each_batch_gets_one(batch):
    images, _ = many(mix, batch, augmentation=Augmentation(mixup=0.5, cutmix=0.5))
    cut = np.array([set(np.unique(image)) <= {0, 3} for image in np.asarray(images[:, 0])])
    assert 0.4 < cut.mean() < 0.6


@pytest.mark.parametrize(('options', 'alone'), [({'mixup': 0.5}, mixup), ({'cutmix': 0.5}, cutmix)])
def test_mixup_or_cutmix_alone(batch, options, alone):
    key = jax.random.key(3)
    expected = alone(jax.random.split(key)[1], *batch, 0.5)
    jax.tree.map(np.testing.assert_array_equal, mix(key, *batch, Augmentation(**options)), expected)


@pytest.mark.parametrize('augmentation', [Augmentation(mixup=0.5), Augmentation(cutmix=1.0)])
def test_pairs_do_not_depend_on_the_number_of_devices(batch, augmentation):
    """The first image is mixed with the last one, which is on another device."""
    mesh = data_mesh()
    assert mesh.size == 2
    function = jax.jit(lambda key, images, targets: mix(key, images, targets, augmentation))
    split = function(KEYS[1], *jax.device_put(batch, split_batch(mesh)))
    jax.tree.map(np.testing.assert_array_equal, split, function(KEYS[1], *batch))
    assert 0 < split[1][0, 3] < 1


@pytest.mark.parametrize('options', [{'mixup': 0.2}, {'cutmix': 1.0}, {'mixup': 0.2, 'cutmix': 1.0}])
def test_mixing_does_not_depend_on_the_default_dtypes(options, batch, under):
    keys = jax.random.split(jax.random.key(1), 16)
    arrays = jax.device_get(batch)

    def mixed():
        return jax.jit(jax.vmap(lambda key: mix(key, *map(jnp.asarray, arrays), Augmentation(**options))))(keys)

    plain, wide = (under(mixed, jax_enable_x64=value) for value in (False, True))
    for one, other in zip(plain, wide, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
