"""Policies: their draws, and their operations compared with Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data import policies
from resnet_jax.data.policies import OPERATIONS, POLICIES, apply_operations

# One magnitude per operation, as torchvision passes it to Pillow.
ONE_OF_EACH = {
    'identity': (0.0, lambda p: p),
    'shear_x': (0.25, lambda p: p.transform(p.size, Image.Transform.AFFINE, (1, 0.25, 0, 0, 1, 0))),
    'shear_y': (-0.2, lambda p: p.transform(p.size, Image.Transform.AFFINE, (1, 0, 0, -0.2, 1, 0))),
    'translate_x': (3.0, lambda p: p.transform(p.size, Image.Transform.AFFINE, (1, 0, 3, 0, 1, 0))),
    'translate_y': (-5.0, lambda p: p.transform(p.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, -5))),
    'rotate': (21.0, lambda p: p.rotate(21)),
    'brightness': (1.4, lambda p: ImageEnhance.Brightness(p).enhance(1.4)),
    'contrast': (0.4, lambda p: ImageEnhance.Contrast(p).enhance(0.4)),
    'posterize': (3.0, lambda p: ImageOps.posterize(p, 3)),
    'solarize': (120.0, lambda p: ImageOps.solarize(p, 120)),
    'autocontrast': (0.0, ImageOps.autocontrast),
    'equalize': (0.0, ImageOps.equalize),
    'invert': (0.0, ImageOps.invert),
    'color': (1.7, lambda p: ImageEnhance.Color(p).enhance(1.7)),
    'sharpness': (0.2, lambda p: ImageEnhance.Sharpness(p).enhance(0.2)),
}


@pytest.fixture(scope='module')
def image():
    rng = np.random.default_rng(0)
    return (rng.integers(40, 200, (18, 22, 3)) * [1, 0.7, 1.1]).astype(np.uint8)


@pytest.fixture(scope='module')
def jitted():
    return jax.jit(lambda image, operation, magnitude: apply_operations(image, (operation, magnitude)))


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_only_the_drawn_operation_is_applied(name, image, jitted):
    magnitude, pillows = ONE_OF_EACH[name]
    found = jitted(image, jnp.array([OPERATIONS.index(name)]), jnp.array([magnitude], jnp.float32))
    expected = np.asarray(pillows(Image.fromarray(image))).astype(int)
    # Pillow computes this in floating point, where integers may be rounded down to the next lower one.
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= (name == 'autocontrast')


@pytest.mark.parametrize('threshold', [178.5, 255 * (1 - 10 / 30)])
def test_a_threshold_may_lie_between_two_levels(threshold, jitted):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    found = jitted(levels, jnp.array([OPERATIONS.index('solarize')]), jnp.array([threshold], jnp.float32))
    np.testing.assert_array_equal(found, ImageOps.solarize(Image.fromarray(levels), round(threshold, 3)))


def test_color_does_not_change_gray_images(image, jitted):
    gray = image[..., :1]
    np.testing.assert_array_equal(jitted(gray, jnp.array([OPERATIONS.index('color')]), jnp.array([0.3])), gray)


def test_operations_are_applied_in_order(image, jitted):
    pair = jnp.array([OPERATIONS.index('invert'), OPERATIONS.index('translate_x')]), jnp.array([0.0, 2.0])
    expected = ImageOps.invert(Image.fromarray(image)).transform((22, 18), Image.Transform.AFFINE, (1, 0, 2, 0, 1, 0))
    np.testing.assert_array_equal(jitted(image, *pair), expected)


def drawn(name, number=4000, size=32):
    keys = jax.random.split(jax.random.key(0), number)
    operations, magnitudes = jax.jit(jax.vmap(lambda key: POLICIES[name](key, size, size)))(keys)
    return np.asarray(operations), np.asarray(magnitudes)


@pytest.mark.parametrize(('name', 'length'), [(n, 1 if 'trivial' in n else 2) for n in POLICIES])
def test_draws_are_a_function_of_the_key(name, length):
    first, again = drawn(name, 50), drawn(name, 50)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.shape == (50, length)
    assert len({tuple(row) for row in first[0]}) > 5


def magnitudes_of(name, operation, **options):
    operations, magnitudes = drawn(name, **options)
    return magnitudes[operations == OPERATIONS.index(operation)]


def test_rand_augment_has_torchvisions_magnitudes():
    """Magnitude 9 of 31 bins: 0.3 of each operation's range, half of them negative; operations are equally frequent."""
    operations, _ = drawn('rand_augment')
    counts = np.bincount(operations.ravel(), minlength=len(OPERATIONS))
    assert set(np.flatnonzero(counts)) == {
        OPERATIONS.index(n) for n in OPERATIONS if n not in ('invert', 'solarize_add')
    }
    assert counts[counts > 0].min() > 0.8 * 8000 / 14
    for operation, expected in (
        ('shear_x', [-0.09, 0.09]),
        ('rotate', [-9, 9]),
        ('translate_y', [-4, 4]),  # of 4.35 pixels
        ('color', [0.73, 1.27]),
        ('posterize', [7]),
        ('solarize', [178.5]),
    ):
        np.testing.assert_allclose(np.unique(magnitudes_of('rand_augment', operation)), expected, rtol=1e-5)


def test_trivial_augment_is_wide():
    shears, bits = magnitudes_of('trivial_augment_wide', 'shear_x'), magnitudes_of('trivial_augment_wide', 'posterize')
    assert abs(np.abs(shears).max() - 0.99) < 1e-5
    assert len(np.unique(np.abs(shears))) == 31
    assert (bits.min(), bits.max()) == (2, 8)
    assert np.abs(magnitudes_of('trivial_augment_wide', 'rotate')).max() == pytest.approx(135)
    assert np.abs(magnitudes_of('trivial_augment_wide', 'translate_x', size=224)).max() == pytest.approx(32)


def test_auto_augment_draws_each_pair_with_its_probabilities():
    operations, magnitudes = drawn('auto_augment_cifar10', 20_000)
    happened = operations != OPERATIONS.index('identity')
    expected = np.mean([[step[1] for step in pair] for pair in policies.AUTO_AUGMENT['cifar10']], axis=0)
    np.testing.assert_allclose(happened.mean(0), expected, atol=0.02)
    # Only ('translate_x', 0.3, 9) and ('translate_x', 0.5, 8) shift along x.
    shifts = np.unique(np.abs(magnitudes[operations == OPERATIONS.index('translate_x')]))
    np.testing.assert_array_equal(shifts, [12, 14])  # of 12.9 and 14.5 pixels


def test_tables_of_auto_augment_equal_torchvision():
    autoaugment = pytest.importorskip('torchvision.transforms.autoaugment', reason='torchvision is not installed')
    rename = {'autocontrast': 'autocontrast', 'shearx': 'shear_x', 'sheary': 'shear_y'}
    rename |= {'translatex': 'translate_x', 'translatey': 'translate_y'}
    for name, policy in autoaugment.AutoAugmentPolicy.__members__.items():
        if name.lower() in policies.AUTO_AUGMENT:
            theirs = autoaugment.AutoAugment()._get_policies(policy)
            ours = policies.AUTO_AUGMENT[name.lower()]
            for pair, expected in zip(ours, theirs, strict=True):
                for step, (operation, probability, tenths) in zip(pair, expected, strict=True):
                    operation = rename.get(operation.lower(), operation.lower())
                    assert step == (operation, probability, tenths or 0)


def test_increasing_rand_augment_equals_timm():
    """Magnitudes of mean 7 and deviation 0.5, of 10; operations are applied with probability 0.5."""
    operations, _ = drawn('rand-m7-mstd0.5-inc1')
    assert np.mean(operations == OPERATIONS.index('identity')) == pytest.approx(0.5, abs=0.03)
    rotations = np.abs(magnitudes_of('rand-m7-mstd0.5-inc1', 'rotate'))
    assert rotations.mean() == pytest.approx(21, rel=0.02)
    assert rotations.std() == pytest.approx(1.5, rel=0.2)
    assert set(np.unique(magnitudes_of('rand-m7-mstd0.5-inc1', 'posterize'))) <= {1.0, 2.0}
    factors = magnitudes_of('rand-m7-mstd0.5-inc1', 'sharpness')
    assert 0.9 * 0.5 < np.abs(factors - 1).min() < np.abs(factors - 1).max() <= 0.9
    assert np.mean(factors > 1) == pytest.approx(0.5, abs=0.15)
