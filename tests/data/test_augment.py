"""Augmentation of batches: dependence on keys, and the order of operations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax.data import random_ops
from resnet_jax.data.augment import (
    CROP_FILLS,
    Augmentation,
    Policy,
    ResizedCrop,
    augment,
    augment_views,
    example_keys,
    normalize,
    pad,
)
from resnet_jax.data.policies import OPERATIONS, POLICIES
from resnet_jax.devices import data_mesh, replicated, split_batch

KEYS = jax.random.split(jax.random.key(0), 64)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CIFAR = Augmentation(crop_padding=2, crop_fill='mean', horizontal_flip=True)
EVERYTHING = Augmentation(
    resized_crop=ResizedCrop((0.2, 1.0)),
    crop_size=10,
    horizontal_flip=True,
    policy=Policy('rand_augment'),
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    lighting=0.1,
    random_erasing=0.5,
    cutout=4,
)


@functools.cache  # compiled once for all tests
def jitted(augmentation, mean=MEAN, std=STD):
    return jax.jit(lambda keys, images: augment(keys, images, mean, std, augmentation))


@pytest.fixture
def images(rng):
    """uint8 ``[64, 12, 14, 3]``."""
    return jnp.asarray(rng.integers(0, 255, (64, 12, 14, 3), np.uint8))


def test_normalize():
    images = np.array([[[[0, 255]]]], np.uint8)
    np.testing.assert_allclose(normalize(images, (0.5, 0.25), (0.5, 0.25)), [[[[-1, 3]]]], rtol=1e-6)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ResizedCrop((0.5, 0.1)), 'crop_area=(0.5, 0.1) must be two fractions, 0 < smallest <= largest <= 1'),
        (
            lambda: ResizedCrop((0.1, 1), crop_ratio=(0, 1)),
            'crop_ratio=(0, 1) must be two numbers, 0 < smallest <= largest',
        ),
        (lambda: Policy('auto'), "policy='auto' must be one of rand_augment, trivial_augment_wide, auto_augment"),
        (lambda: Policy('rand_augment', 'cubic'), "policy_interpolation='cubic' must be one of nearest, bilinear"),
        (lambda: Augmentation(crop_fill='white'), "crop_fill='white' must be one of black, mean, reflect"),
        (
            lambda: Augmentation(crop_padding=4, resized_crop=ResizedCrop((0.08, 1.0))),
            'crop_padding=4 cannot be combined with crop_area=(0.08, 1.0)',
        ),
        (lambda: Augmentation(color_jitter=(0.1,)), 'color_jitter=(0.1,) must be three or four numbers'),
        (lambda: Augmentation(color_jitter=(0, 0, 0, 0.6)), 'the hue range must be at most 0.5'),
        (lambda: Augmentation(random_erasing=1.5), 'random_erasing=1.5 must be in [0, 1]'),
        (lambda: Augmentation(mixup=-1), 'mixup=-1 must be at least 0'),
        (lambda: Augmentation(views=0), 'views=0 must be at least 1'),
        (lambda: Augmentation(crop_size=0), 'crop_size=0 must be at least 1'),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


def test_settings_can_be_used_in_jitted_closures():
    assert hash(EVERYTHING) == hash(dataclasses.replace(EVERYTHING))


def test_without_augmentation_images_are_only_normalized(images):
    np.testing.assert_array_equal(augment(KEYS, images, MEAN, STD), normalize(images, MEAN, STD))


def test_padded_crops_are_shifts(rng):
    images = rng.integers(1, 255, (64, 5, 6, 2), np.uint8)
    cropped = jitted(Augmentation(crop_padding=2), (0, 0), (1 / 255, 1 / 255))(KEYS, jnp.asarray(images))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    shifts = []
    for before, after in zip(padded, np.round(cropped), strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(before[y : y + 5, x : x + 6], after)]
        assert len(found) == 1
        shifts += found
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))


@pytest.mark.parametrize(('fill', 'border'), [('black', -1.5), ('mean', 0.0), ('reflect', 3.5)])
def test_crop_fill(fill, border):
    """White images, with mean 0.3 and deviation 0.2: black becomes -1.5, white 3.5, and the mean 0."""
    images = jnp.full((32, 4, 4, 1), 255, jnp.uint8)
    cropped = jitted(Augmentation(crop_padding=2, crop_fill=fill), (0.3,), (0.2,))(KEYS[:32], images)
    # The mean color is rounded to one of 256 levels.
    atol = 0.5 / 255 / 0.2 if fill == 'mean' else 1e-4
    np.testing.assert_allclose(sorted({round(float(v), 4) for v in cropped.ravel()}), sorted({border, 3.5}), atol=atol)
    assert fill in CROP_FILLS


def test_padding_keeps_the_dtype():
    padded = pad(jnp.ones((1, 2, 2, 3)), 1, jnp.array([2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(padded[0, 0, 0], [2, 3, 4])
    assert padded.shape == (1, 4, 4, 3)
    assert padded.dtype == jnp.float32


class TestKeys:
    """The same image with the same key has a bit-identical result."""

    @pytest.mark.parametrize('augmentation', [CIFAR, EVERYTHING], ids=['cifar', 'everything'])
    def test_results_do_not_depend_on_the_batch(self, augmentation, images, rng):
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
    def test_results_do_not_depend_on_the_number_of_devices(self, augmentation, images):
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

    def test_operations_have_independent_keys(self, images):
        """Outside of the erased box, images are the same with and without erasing."""
        plain = np.asarray(jitted(CIFAR)(KEYS, images))
        erased = np.asarray(jitted(dataclasses.replace(CIFAR, cutout=4))(KEYS, images))
        assert ((erased == plain) | (erased == 0)).all()
        assert (erased != plain).any((1, 2, 3)).mean() > 0.9

    def test_keys_of_examples(self):
        """Keys depend on epoch, example and copy, but not on the position."""
        root = jax.random.key(5)
        indices, copies = jnp.array([4, 4, 9, 2]), jnp.array([0, 1, 0, 1])
        data = [jax.random.key_data(example_keys(root, epoch, indices, copies)) for epoch in (0, 1)]
        assert len({tuple(map(int, key)) for key in np.concatenate(data)}) == 8
        again = jax.random.key_data(example_keys(root, 1, indices[::-1], copies[::-1]))
        np.testing.assert_array_equal(again, data[1][::-1])


class TestOrder:
    def test_crop_then_jitter_then_normalization_then_erasing(self, images):
        """One image by hand, with the keys of the operations."""

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

    def test_erased_pixels_have_the_mean(self, images):
        """Also after a shift of the colors."""
        found = jitted(Augmentation(lighting=0.5, cutout=6))(KEYS, images)
        assert (np.asarray(found) == 0).all(-1).any((1, 2)).all()


class TestSizes:
    @pytest.mark.parametrize(
        ('augmentation', 'expected'),
        [
            (Augmentation(resized_crop=ResizedCrop((0.1, 1))), (12, 14)),
            (Augmentation(resized_crop=ResizedCrop((0.1, 1)), crop_size=20), (20, 20)),
            (Augmentation(crop_padding=3), (12, 14)),
            (Augmentation(crop_padding=3, crop_size=18), (18, 18)),
            (Augmentation(crop_size=12), (12, 12)),
            (Augmentation(crop_size=9, horizontal_flip=True, policy=Policy('trivial_augment_wide')), (9, 9)),
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
        with pytest.raises(InputError, match=f'crop_size=17 must be at most {room}, the smaller side of'):
            augment(KEYS, images, MEAN, STD, Augmentation(crop_size=17, crop_padding=padding))

    @pytest.mark.parametrize(
        ('settings', 'message'),
        [
            ({'crop_padding': 12}, 'crop_padding=12 must be below 12, the smaller side of the crop'),
            ({'crop_padding': 100, 'crop_fill': 'reflect'}, 'crop_padding=100 must be below 12, the smaller side of'),
            ({'crop_padding': 6, 'crop_size': 6}, 'crop_padding=6 must be below 6, the smaller side of the crop'),
            ({'cutout': 14}, 'cutout=14 must be below 14, the larger side of the images'),
            ({'cutout': 6, 'crop_size': 6}, 'cutout=6 must be below 6, the larger side of the images'),
        ],
    )
    def test_what_could_remove_the_whole_image_is_refused(self, settings, message, images):
        with pytest.raises(InputError, match=message):
            augment(KEYS, images, MEAN, STD, Augmentation(**settings))

    @pytest.mark.parametrize('settings', [{'crop_padding': 11}, {'crop_padding': 5, 'crop_size': 6}])
    def test_every_crop_contains_a_part_of_the_image(self, settings):
        white = np.full((256, 12, 12, 1), 255, np.uint8)
        cropped = jitted(Augmentation(**settings), (0,), (1,))(jax.random.split(jax.random.key(1), 256), white)
        assert np.asarray(cropped).max((1, 2, 3)).min() == 1

    def test_erasing_of_a_single_row_is_refused(self):
        assert Augmentation(random_erasing=0.5).result_shape((2, 9, 3)) == (2, 9, 3)
        with pytest.raises(InputError, match=r'random_erasing=0.5 has no effect on images of 1 x 9 pixels'):
            Augmentation(random_erasing=0.5).result_shape((1, 9, 3))

    def test_lighting_needs_three_channels(self, images):
        with pytest.raises(InputError, match=r'lighting=0.1 needs images with 3 channels, got 1'):
            augment(KEYS, images[..., :1], (0.5,), (0.2,), Augmentation(lighting=0.1))


class TestFunction:
    """A user-supplied function."""

    def test_function_runs_before_normalization(self, images):
        def noisy(key, image):
            assert (image.dtype, image.shape) == (jnp.float32, (12, 14, 3))
            assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            return image + jax.random.uniform(key, image.shape, maxval=9.0)

        found = jitted(dataclasses.replace(CIFAR, function=noisy))(KEYS, images)
        before = jitted(CIFAR)(KEYS, images)
        added = 255 * (np.asarray(found) - np.asarray(before)) * np.array(STD)
        assert added.min() > -1e-3
        assert added.max() < 9 + 1e-3
        assert len(np.unique(added[:, 0, 0, 0].round(3))) > 50  # each example has its own key

    def test_may_change_the_size(self, images):
        halved = Augmentation(horizontal_flip=True, function=lambda key, image: image[::2, ::2])
        assert halved.result_shape((12, 14, 3)) == (6, 7, 3)
        assert augment(KEYS, images, MEAN, STD, halved).shape == (64, 6, 7, 3)

    @pytest.mark.parametrize(
        ('function', 'found'),
        [
            (lambda key, image: image[..., :1], r'float32 \[12, 14, 1\]'),
            (lambda key, image: image.astype(jnp.uint8), r'uint8 \[12, 14, 3\]'),
            (lambda key, image: None, r'NoneType \[\]'),
        ],
    )
    def test_function_must_return_an_image(self, function, found, images):
        with pytest.raises(InputError, match=rf'must return floats \[H, W, 3\], got {found}'):
            augment(KEYS, images, MEAN, STD, Augmentation(function=function))

    def test_user_supplied_policy(self, images):
        def invert(key, height, width):
            return jnp.array([OPERATIONS.index('invert')]), jnp.zeros(1)

        found = augment(KEYS[:2], images[:2], (0.0,) * 3, (1 / 255,) * 3, Augmentation(policy=Policy(invert)))
        np.testing.assert_allclose(found, 255.0 - np.asarray(images[:2]), atol=1e-3)


def test_views_are_independent(images):
    two = dataclasses.replace(CIFAR, views=2)
    first, second = jax.jit(lambda keys, images: augment_views(keys, images, MEAN, STD, two))(KEYS, images)
    np.testing.assert_allclose(first, jitted(CIFAR)(KEYS, images), atol=1e-6)
    assert np.mean(np.asarray(first) != np.asarray(second)) > 0.5


DRAWS = {
    'crop_box': lambda key: random_ops.crop_box(key, 17, 23, (0.08, 1.0), (0.75, 1.33)),
    'erasing_box': lambda key: random_ops.erasing_box(key, 17, 23),
    'jitter': lambda key: random_ops.jitter_parameters(key, (0.4, 0.4, 0.4, 0.1)),
    'lighting': lambda key: random_ops.lighting_shift(key, 0.1),
    **{name: functools.partial(lambda draw, key: draw(key, 17, 23), draw) for name, draw in POLICIES.items()},
}
ALL_OPERATIONS = Augmentation(crop_padding=3, horizontal_flip=True, lighting=0.1, random_erasing=0.5, cutout=3).replace(
    policy='trivial_augment_wide', policy_interpolation='bilinear', color_jitter=(0.4, 0.4, 0.4, 0.1)
)


@pytest.mark.parametrize('name', DRAWS)
def test_draws_do_not_depend_on_the_default_dtypes(name, under):
    """The default dtypes are 64-bit with ``jax_enable_x64``, and so are draws that do not state theirs."""
    keys = jax.random.split(jax.random.key(5), 64)

    def draws():
        return jax.jit(jax.vmap(DRAWS[name]))(keys)

    plain, wide = (jax.tree.leaves(under(draws, jax_enable_x64=value)) for value in (False, True))
    assert [leaf.dtype for leaf in wide] == [leaf.dtype for leaf in plain]
    for one, other in zip(plain, wide, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert len(np.unique(one)) > 1


def test_augmented_images_do_not_depend_on_the_default_dtypes(under, rng):
    images = rng.integers(0, 256, (8, 9, 7, 3)).astype(np.uint8)
    keys = jax.random.split(jax.random.key(5), 8)

    def augmented():
        return jax.jit(lambda keys: augment(keys, images, (0.4, 0.5, 0.3), (0.2, 0.3, 0.25), ALL_OPERATIONS))(keys)

    plain, wide = (under(augmented, jax_enable_x64=value) for value in (False, True))
    assert wide.dtype == plain.dtype == np.float32
    # One gray level is 1 / (255 * 0.2) = 0.02; single pixels may round to another one.
    assert np.mean(np.abs(plain - wide) > 1e-5) < 0.002
