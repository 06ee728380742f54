"""Augmentation by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.augment import normalize, random_crop, random_flip, training_images
from resnet_jax.data.policies import POLICIES
from resnet_jax.training.config import AUGMENT_POLICIES

KEY = jax.random.key(0)


def test_normalize():
    images = np.array([[[[0, 255]]]], np.uint8)
    np.testing.assert_allclose(normalize(images, (0.5, 0.25), (0.5, 0.25)), [[[[-1, 3]]]], rtol=1e-6)


def test_crops_are_shifts_filled_with_zeros(rng):
    images = rng.integers(1, 255, (64, 5, 6, 2), np.uint8)
    cropped = np.asarray(random_crop(KEY, images, 2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    shifts = []
    for before, after in zip(padded, cropped, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(before[y : y + 5, x : x + 6], after)]
        assert len(found) == 1
        shifts += found
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))
    assert cropped.dtype == np.uint8


def test_flips_mirror_about_half(rng):
    images = rng.integers(0, 255, (200, 3, 4, 1), np.uint8)
    flipped = np.asarray(random_flip(KEY, images))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    same = (flipped == images).all((1, 2, 3))
    assert (mirrored | same).all()
    assert 70 < mirrored.sum() < 130


def test_off_means_only_normalized(rng):
    images = jnp.asarray(rng.integers(0, 255, (4, 3, 4, 1), np.uint8))
    plain = normalize(images, (0.3,), (0.2,))
    np.testing.assert_array_equal(training_images(KEY, images, (0.3,), (0.2,)), plain)
    changed = training_images(KEY, images, (0.3,), (0.2,), crop_padding=1, horizontal_flip=True)
    assert not np.array_equal(changed, plain)


@pytest.mark.parametrize(('fill', 'border'), [('black', -1.5), ('mean', 0.0), ('reflect', 3.5)])
def test_what_a_crop_is_filled_with(fill, border):
    """White images, with mean 0.3 and deviation 0.2: black is -1.5, white 3.5, and the mean 0."""
    images = jnp.full((32, 4, 4, 1), 255, jnp.uint8)
    cropped = training_images(KEY, images, (0.3,), (0.2,), crop_padding=2, crop_fill=fill)
    # The mean colour is rounded to one of 256 levels.
    atol = 0.5 / 255 / 0.2 if fill == 'mean' else 1e-4
    np.testing.assert_allclose(sorted({round(float(v), 4) for v in cropped.ravel()}), sorted({border, 3.5}), atol=atol)


@pytest.mark.parametrize('policy', ['rand_augment', 'trivial_augment_wide'])
def test_a_policy_draws_for_each_example_by_its_key(policy, rng):
    """The same image with the same key becomes the same, wherever in the batch it lies."""
    images = jnp.asarray(rng.integers(0, 255, (6, 8, 8, 3), np.uint8))
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def augmented(images, keys):
        return training_images(KEY, images, (0.5,) * 3, (0.2,) * 3, policy=policy, example_keys=keys)

    whole = augmented(images, keys)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_array_equal(augmented(images[order], keys[order]), whole[order])
    others = augmented(images, jax.random.split(jax.random.key(2), 6))
    assert sum(not np.array_equal(a, b) for a, b in zip(whole, others, strict=True)) >= 3


def test_recipes_know_the_policies():
    assert set(AUGMENT_POLICIES) == set(POLICIES)
