"""Augmentation of batches: what belongs to a key, and the order in which things happen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax.data import random_ops
from resnet_jax.data.augment import Augmentation, augment, example_keys, normalize, pad
from resnet_jax.data.policies import POLICIES
from resnet_jax.training.config import AUGMENT_POLICIES, CROP_FILLS, TrainConfig
from resnet_jax.training.sharding import data_mesh, replicated, split_batch

KEYS = jax.random.split(jax.random.key(0), 64)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CIFAR = Augmentation(crop_padding=2, crop_fill='mean', horizontal_flip=True)
EVERYTHING = Augmentation(
    crop_area=(0.2, 1.0),
    crop_size=10,
    horizontal_flip=True,
    policy='rand_augment',
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    lighting=0.1,
    random_erasing=0.5,
    cutout=4,
)


def jitted(augmentation):
    return jax.jit(lambda keys, images: augment(keys, images, MEAN, STD, augmentation))


@pytest.fixture
def images(rng):
    """uint8 ``[64, 12, 14, 3]``."""
    return jnp.asarray(rng.integers(0, 255, (64, 12, 14, 3), np.uint8))


def test_normalize():
    images = np.array([[[[0, 255]]]], np.uint8)
    np.testing.assert_allclose(normalize(images, (0.5, 0.25), (0.5, 0.25)), [[[[-1, 3]]]], rtol=1e-6)


def test_the_settings_are_those_of_training():
    """In name and default, so that one can be made of the other."""
    settings = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    ours = {field.name: field.default for field in dataclasses.fields(Augmentation)}
    assert ours == {name: settings[name] for name in ours}
    # The order of the examples has the one, evaluations the others.
    of_data = {'augmentation_repeats', 'test_flip', 'crop_pct'}
    about = ('crop', 'flip', 'policy', 'jitter', 'lighting', 'erasing', 'cutout', 'augment')
    assert {name for name in settings if any(word in name for word in about)} == set(ours) | of_data
    assert Augmentation.of(TrainConfig(cutout=5, crop_area=(0.5, 1))) == Augmentation(cutout=5, crop_area=(0.5, 1))
    assert hash(EVERYTHING) == hash(dataclasses.replace(EVERYTHING))
    assert set(AUGMENT_POLICIES) == set(POLICIES)


def test_off_means_only_normalized(images):
    np.testing.assert_array_equal(augment(KEYS, images, MEAN, STD), normalize(images, MEAN, STD))


def test_crops_are_shifts_filled_with_zeros(rng):
    images = rng.integers(1, 255, (64, 5, 6, 2), np.uint8)
    cropped = augment(KEYS, jnp.asarray(images), (0, 0), (1 / 255, 1 / 255), Augmentation(crop_padding=2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    shifts = []
    for before, after in zip(padded, np.round(cropped), strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(before[y : y + 5, x : x + 6], after)]
        assert len(found) == 1
        shifts += found
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))


@pytest.mark.parametrize(('fill', 'border'), [('black', -1.5), ('mean', 0.0), ('reflect', 3.5)])
def test_what_a_crop_is_filled_with(fill, border):
    """White images, with mean 0.3 and deviation 0.2: black is -1.5, white 3.5, and the mean 0."""
    images = jnp.full((32, 4, 4, 1), 255, jnp.uint8)
    cropped = augment(KEYS[:32], images, (0.3,), (0.2,), Augmentation(crop_padding=2, crop_fill=fill))
    # The mean colour is rounded to one of 256 levels.
    atol = 0.5 / 255 / 0.2 if fill == 'mean' else 1e-4
    np.testing.assert_allclose(sorted({round(float(v), 4) for v in cropped.ravel()}), sorted({border, 3.5}), atol=atol)
    assert fill in CROP_FILLS


def test_padding_keeps_the_dtype():
    padded = pad(jnp.ones((1, 2, 2, 3)), 1, jnp.array([2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(padded[0, 0, 0], [2, 3, 4])
    assert padded.shape == (1, 4, 4, 3)
    assert padded.dtype == jnp.float32


class TestKeys:
    """The same image with the same key becomes the same, bit for bit."""

    @pytest.mark.parametrize('augmentation', [CIFAR, EVERYTHING], ids=['cifar', 'everything'])
    def test_in_any_batch(self, augmentation, images, rng):
        function = jitted(augmentation)
        whole = function(KEYS, images)
        for number in (64, 7):
            order = rng.permutation(64)[:number]
            np.testing.assert_array_equal(function(KEYS[order], images[order]), whole[order])
        others = function(jax.random.split(jax.random.key(1), 64), images)
        assert sum(not np.array_equal(one, other) for one, other in zip(whole, others, strict=True)) > 60

    @pytest.mark.parametrize(
        'augmentation', [CIFAR, pytest.param(EVERYTHING, marks=pytest.mark.slow)], ids=['cifar', 'everything']
    )
    def test_on_any_number_of_devices(self, augmentation, images):
        mesh = data_mesh()
        assert mesh.size == 2

        @jax.jit
        def batch(images, indices):
            keys = example_keys(jax.random.key(0), 3, indices, indices * 0)
            return augment(keys, images[indices], MEAN, STD, augmentation)

        indices = jnp.arange(64)[::-1]
        split = batch(jax.device_put(images, replicated(mesh)), jax.device_put(indices, split_batch(mesh)))
        assert len(split.sharding.device_set) == 2
        np.testing.assert_array_equal(split, batch(images, indices))

    def test_one_operation_does_not_move_another(self, images):
        """Where nothing is erased, the crop is the same with and without erasing."""
        plain = np.asarray(jitted(CIFAR)(KEYS, images))
        erased = np.asarray(jitted(dataclasses.replace(CIFAR, cutout=4))(KEYS, images))
        assert ((erased == plain) | (erased == 0)).all()
        assert (erased != plain).any((1, 2, 3)).mean() > 0.9

    def test_of_examples(self):
        """Each of epoch, example and copy makes another key; their place makes none."""
        root = jax.random.key(5)
        indices, copies = jnp.array([4, 4, 9, 2]), jnp.array([0, 1, 0, 1])
        data = [jax.random.key_data(example_keys(root, epoch, indices, copies)) for epoch in (0, 1)]
        assert len({tuple(map(int, key)) for key in np.concatenate(data)}) == 8
        again = jax.random.key_data(example_keys(root, 1, indices[::-1], copies[::-1]))
        np.testing.assert_array_equal(again, data[1][::-1])


class TestOrder:
    def test_crop_then_jitter_then_normalization_then_erasing(self, images):
        """One image by hand, from the keys that the operations have."""

        @jax.jit
        def by_hand(key, image):
            crop, flip, _, jitter, lighting, erasing, cut = (jax.random.fold_in(key, number) for number in range(7))
            image = random_ops.random_resized_crop(crop, image, (10, 10), (0.2, 1.0))
            image = random_ops.random_flip(flip, image)
            image = random_ops.color_jitter(jitter, image, (0.4, 0.4, 0.4, 0.1))
            shifted = image / 255 + random_ops.lighting_shift(lighting, 0.1)[None, None]  # before normalization
            normalized = (shifted - jnp.array(MEAN)[None, None]) / jnp.array(STD)[None, None]
            return random_ops.cutout(cut, random_ops.random_erasing(erasing, normalized, 1.0), 4)

        everything = dataclasses.replace(EVERYTHING, policy=None, random_erasing=1.0)
        found = jitted(everything)(KEYS[3:5], images[3:5])
        for result, key, image in zip(found, KEYS[3:5], images[3:5], strict=True):
            np.testing.assert_allclose(result, by_hand(key, image), atol=2e-5)

    def test_what_is_erased_is_the_mean(self, images):
        """Also where a shift of the colours came before."""
        found = jitted(Augmentation(lighting=0.5, cutout=6))(KEYS, images)
        assert (np.asarray(found) == 0).all(-1).any((1, 2)).all()


class TestSizes:
    @pytest.mark.parametrize(
        ('augmentation', 'expected'),
        [
            (Augmentation(crop_area=(0.1, 1)), (12, 14)),
            (Augmentation(crop_area=(0.1, 1), crop_size=20), (20, 20)),
            (Augmentation(crop_padding=3), (12, 14)),
            (Augmentation(crop_padding=3, crop_size=18), (18, 18)),
            (Augmentation(crop_size=12), (12, 12)),
            (Augmentation(crop_size=9, horizontal_flip=True, policy='trivial_augment_wide'), (9, 9)),
            (Augmentation(color_jitter=(0.4, 0.4, 0.4), random_erasing=0.5), (12, 14)),
        ],
    )
    @pytest.mark.parametrize('channels', [1, 3])
    def test_result(self, augmentation, expected, channels, images):
        given = images[:2, ..., :channels]
        function = jax.jit(lambda k, i: augment(k, i, MEAN[:channels], STD[:channels], augmentation))
        found = function(KEYS[:2], given)
        assert found.shape == (2, *expected, channels)
        assert augmentation.result_shape(given.shape[1:]) == (*expected, channels)
        assert found.dtype == jnp.float32
        assert np.isfinite(found).all()

    @pytest.mark.parametrize(('padding', 'room'), [(0, 12), (2, 16)])
    def test_a_crop_larger_than_the_image_is_refused(self, padding, room, images):
        with pytest.raises(InputError, match=f'crop_size=17 must be at most {room}, the smaller side'):
            augment(KEYS, images, MEAN, STD, Augmentation(crop_size=17, crop_padding=padding))

    def test_lighting_needs_colours(self, images):
        with pytest.raises(InputError, match=r'lighting=0.1 is for images of 3 channels, not 1: 0 leaves it out'):
            augment(KEYS, images[..., :1], (0.5,), (0.2,), Augmentation(lighting=0.1))
