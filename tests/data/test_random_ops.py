"""Random operations: parameters compared with torchvision, results with Pillow."""

import io
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from resnet_jax.data import image_ops, random_ops
from resnet_jax.data.random_ops import ERASED_AREA, ERASED_RATIO, crop_box, erasing_box

KEYS = jax.random.split(jax.random.key(0), 4000)
RATIO = (3 / 4, 4 / 3)


def photograph(height, width):
    """Gradients, edges and noise after JPEG, as in photographs: uint8 ``[H, W, 3]``."""
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    disc = ((y - 0.4 * height) ** 2 + (x - 0.6 * width) ** 2 < (0.25 * height) ** 2)[..., None]
    base = np.stack([200 * x / width, 220 * y / height, 128 + 100 * np.sin(x / 7)], -1)
    picture = np.where(disc, (220, 60, 40), base) + grain
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
    return np.asarray(Image.open(file))


def gray_levels(ours, pillows):
    """Largest and mean difference."""
    difference = np.abs(np.asarray(ours).astype(int) - np.asarray(pillows).astype(int))
    return difference.max(), difference.mean()


def many(function):
    """Results for each of KEYS."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(KEYS))


class TestCrop:
    def test_positions_are_uniform(self):
        image = jnp.arange(5 * 6, dtype=jnp.uint8).reshape(5, 6, 1)
        parts = many(lambda key: random_ops.random_crop(key, image, (3, 4)))
        corners, counts = np.unique(parts[:, 0, 0, 0], return_counts=True)
        np.testing.assert_array_equal(corners, [6 * y + x for y in range(3) for x in range(3)])
        assert counts.min() > 0.8 * len(KEYS) / 9
        inside = np.arange(3)[:, None] * 6 + np.arange(4)
        np.testing.assert_array_equal(parts[..., 0], parts[:, 0, 0, 0][:, None, None] + inside[None])

    def test_resizing_equals_pillow(self):
        """The largest difference is 1 gray level, over boxes as they are drawn.

        It is there where a sum lies just between two levels, as with scales that are simple fractions.
        """
        image = photograph(41, 52)
        crop = jax.jit(lambda key: random_ops.random_resized_crop(key, image, (24, 24), (0.08, 1.0)))
        box = jax.jit(lambda key: crop_box(key, 41, 52, (0.08, 1.0), RATIO))
        found = []
        for key in KEYS[:40]:
            top, left, height, width = map(int, box(key))
            part = Image.fromarray(image).crop((left, top, left + width, top + height))
            found.append(gray_levels(crop(key), part.resize((24, 24), Image.Resampling.BILINEAR)))
        assert max(worst for worst, _ in found) == 1
        assert np.mean([mean for _, mean in found]) < 0.1

    @pytest.mark.parametrize(('height', 'width'), [(32, 32), (37, 50), (224, 170)])
    def test_boxes_are_inside_with_allowed_ratios(self, height, width):
        top, left, rows, columns = many(lambda key: crop_box(key, height, width, (0.08, 1.0), RATIO))
        assert min(top.min(), left.min()) == 0
        assert (top + rows).max() == height
        assert (left + columns).max() == width
        assert min(rows.min(), columns.min()) >= 1
        # Sides are rounded to pixels, by at most half a pixel.
        assert ((rows + 0.5) * (columns + 0.5) >= 0.08 * height * width).all()
        ratios = (columns - 0.5) / (rows + 0.5), (columns + 0.5) / (rows - 0.5)
        assert (ratios[0] <= RATIO[1]).all()
        assert (ratios[1] >= RATIO[0]).all()

    @pytest.mark.parametrize(
        ('height', 'width', 'expected'), [(60, 6, (26, 0, 8, 6)), (6, 60, (0, 26, 6, 8)), (6, 7, (0, 0, 6, 7))]
    )
    def test_central_box_if_none_fits(self, height, width, expected):
        """A ninth of a 60 x 6 strip is still wider than 6; of a 6 x 7 image, boxes are larger than the image."""
        area = (0.9, 0.9) if max(height, width) == 60 else (4.0, 4.0)
        found = crop_box(KEYS[0], height, width, area, RATIO)
        assert tuple(map(int, found)) == expected

    @pytest.mark.parametrize(('height', 'width', 'area'), [(32, 32, (0.08, 1.0)), (40, 90, (0.25, 1.0))])
    def test_boxes_are_distributed_as_in_torchvision(self, height, width, area):
        """Means and quantiles of all four numbers, of 4,000 boxes each."""
        transforms = pytest.importorskip('torchvision.transforms', reason='torchvision is not installed')
        torch = pytest.importorskip('torch')
        torch.manual_seed(0)
        shape = torch.empty(1, height, width)
        theirs = np.array([transforms.RandomResizedCrop.get_params(shape, area, RATIO) for _ in KEYS]).T
        ours = many(lambda key: crop_box(key, height, width, area, RATIO))
        for name, one, other, size in zip('tlhw', ours, theirs, (height, width) * 2, strict=True):
            assert abs(one.mean() - other.mean()) < 0.02 * size, name
            levels = np.linspace(0.05, 0.95, 19)
            assert np.abs(np.quantile(one, levels) - np.quantile(other, levels)).max() <= 1 + 0.03 * size, name
        areas = ours[2] * ours[3], theirs[2] * theirs[3]
        assert areas[0].mean() == pytest.approx(areas[1].mean(), rel=0.03)
        ratios = [np.log(boxes[3] / boxes[2]) for boxes in (ours, theirs)]
        assert ratios[0].std() == pytest.approx(ratios[1].std(), rel=0.05)


def test_half_are_flipped():
    image = jnp.arange(6, dtype=jnp.uint8).reshape(2, 3, 1)
    flipped = many(lambda key: random_ops.random_flip(key, image))
    mirrored = (flipped == np.asarray(image)[None, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == np.asarray(image)[None]).all((1, 2, 3))).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.03)


def turn_hue(picture, shift):
    hue, saturation, value = picture.convert('HSV').split()
    turned = Image.fromarray(((np.asarray(hue).astype(int) + int(shift * 255)) % 256).astype(np.uint8))
    return Image.merge('HSV', (turned, saturation, value)).convert('RGB')


PILLOWS = (
    lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    turn_hue,
)


class TestJitter:
    @pytest.mark.parametrize('factors', [(1.37, 0.66, 1.21), (0.62, 1.4, 0.0), (1.37, 0.66, 1.21, -0.08)])
    def test_every_order_equals_pillow(self, factors):
        """The largest difference is 0 without hue; a difference of one of 256 hues is up to 6 gray levels."""
        image = photograph(20, 24)
        ours = jax.jit(random_ops.jitter)
        for order in itertools.permutations(range(len(factors))):
            picture = Image.fromarray(image)
            for number in order:
                picture = PILLOWS[number](picture, factors[number])
            worst, mean = gray_levels(ours(image, jnp.array(factors), jnp.array(order)), picture)
            assert worst <= (0 if len(factors) == 3 else 6), (order, worst)
            assert mean < 0.02, order

    def test_orders_differ(self):
        """Otherwise, the test above would prove nothing."""
        image = photograph(20, 24)
        factors = jnp.array([1.37, 0.66, 1.21])
        results = {
            np.asarray(random_ops.jitter(image, factors, jnp.array(order))).tobytes()
            for order in itertools.permutations(range(3))
        }
        assert len(results) == 6

    def test_gray_images_keep_one_channel(self):
        image = photograph(12, 10)[..., :1]
        found = random_ops.jitter(image, jnp.array([1.3, 0.7, 0.2, 0.3]), jnp.array([3, 1, 2, 0]))
        picture = PILLOWS[0](PILLOWS[1](Image.fromarray(image[..., 0]), 0.7), 1.3)
        assert gray_levels(found[..., 0], picture)[0] <= 1

    def test_drawn_parameters(self):
        ranges = (0.4, 1.5, 0.2, 0.1)
        factors, order = many(lambda key: random_ops.jitter_parameters(key, ranges))
        for column, low, high in zip(factors.T, (0.6, 0.0, 0.8, -0.1), (1.4, 2.5, 1.2, 0.1), strict=True):
            width = high - low
            np.testing.assert_allclose([column.min(), column.max()], [low, high], atol=0.005 * width)
            assert column.mean() == pytest.approx((low + high) / 2, abs=0.02 * width)
        assert len({tuple(row) for row in order}) == 24
        np.testing.assert_allclose(order.mean(0), 1.5, atol=0.1)
        np.testing.assert_array_equal(np.sort(order, 1), np.arange(4)[None].repeat(len(order), 0))

    @pytest.mark.parametrize('ranges', [(0.4, 0.4, 0.4), (0.4, 0.4, 0.4, 0.0)])
    def test_without_a_hue(self, ranges):
        factors, order = random_ops.jitter_parameters(KEYS[0], ranges)
        assert factors.shape == order.shape == (3,)


def test_lighting_follows_the_principal_components():
    """The covariance has the components as axes, with 0.1 of their deviations."""
    shifts = many(lambda key: random_ops.lighting_shift(key, 0.1))
    vectors, deviations = np.array(random_ops._COMPONENTS), np.array(random_ops._DEVIATIONS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-3)
    along = shifts @ vectors
    np.testing.assert_allclose(along.std(0), 0.1 * deviations, rtol=0.05)
    np.testing.assert_allclose(along.mean(0) / along.std(0), 0, atol=0.06)
    np.testing.assert_allclose(np.corrcoef(along.T), np.eye(3), atol=0.06)


class TestErasing:
    @pytest.mark.parametrize(('height', 'width'), [(32, 32), (24, 40)])
    def test_boxes_have_the_published_bounds(self, height, width):
        top, left, rows, columns = many(lambda key: erasing_box(key, height, width))
        assert min(top.min(), left.min(), rows.min(), columns.min()) >= 0
        assert (top + rows).max() == height
        assert (left + columns).max() == width
        areas, ratios = rows * columns / (height * width), np.log((rows + 0.0) / np.maximum(columns, 1))
        assert 0.01 < areas.min() < ERASED_AREA[0] * 1.3
        assert ERASED_AREA[1] * 0.95 < areas.max() < ERASED_AREA[1] * 1.05
        assert areas.mean() == pytest.approx(0.17, abs=0.01)
        assert (ratios.min(), ratios.max()) == pytest.approx(tuple(map(math.log, ERASED_RATIO)), abs=0.25)

    def test_boxes_are_distributed_as_in_torchvision(self):
        transforms = pytest.importorskip('torchvision.transforms', reason='torchvision is not installed')
        torch = pytest.importorskip('torch')
        torch.manual_seed(0)
        erasing, image = transforms.RandomErasing(), torch.zeros(3, 28, 36)
        assert (erasing.scale, erasing.ratio, erasing.value) == (ERASED_AREA, ERASED_RATIO, 0)
        theirs = np.array([erasing.get_params(image, erasing.scale, erasing.ratio, [0.0])[:4] for _ in KEYS]).T
        ours = many(lambda key: erasing_box(key, 28, 36))
        for name, one, other, size in zip('tlhw', ours, theirs, (28, 36) * 2, strict=True):
            assert abs(one.mean() - other.mean()) < 0.02 * size, name
            levels = np.linspace(0.05, 0.95, 19)
            assert np.abs(np.quantile(one, levels) - np.quantile(other, levels)).max() <= 1 + 0.03 * size, name

    def test_fraction_of_erased_images(self):
        erased = many(lambda key: random_ops.random_erasing(key, jnp.ones((32, 32, 1)), 0.25))[..., 0] == 0
        assert erased.any((1, 2)).mean() == pytest.approx(0.25, abs=0.03)
        assert erased.mean() == pytest.approx(0.25 * 0.17, rel=0.1)
        for mask in erased[:100]:  # a box: the product of its rows and its columns
            np.testing.assert_array_equal(mask, mask.any(1)[:, None] & mask.any(0)[None])


class TestCutout:
    @pytest.mark.parametrize('side', [5, 8])
    def test_a_square_around_any_pixel(self, side):
        image = jnp.ones((20, 12, 1))
        erased = many(lambda key: random_ops.cutout(key, image, side))[..., 0] == 0
        rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
        assert (rows.max(), columns.max()) == (side, side)
        assert (rows.min(), columns.min()) == ((side + 1) // 2,) * 2  # the center is a pixel of the image
        whole = (rows == side) & (columns == side)
        assert whole.mean() == pytest.approx((20 - side + 1) / 20 * (12 - side + 1) / 12, abs=0.04)
        np.testing.assert_array_equal(erased.sum((1, 2)), rows * columns)

    def test_mean_erased_fraction(self):
        """Along each side, with the center at any of 32 pixels, 16 minus what is clipped: 14 on average."""
        erased = many(lambda key: random_ops.cutout(key, jnp.ones((32, 32, 3)), 16)) == 0
        assert erased.mean() == pytest.approx((14 / 32) ** 2, rel=0.03)


def test_sums_of_a_resize_are_exact():
    """Exact sums do not depend on the order of summation."""
    weights = image_ops._resize_weights(300, 10.0, 211.0, 64, False)
    scaled = np.asarray(weights, np.float64) * image_ops._WEIGHT_LEVELS
    np.testing.assert_array_equal(scaled, np.round(scaled))
    np.testing.assert_allclose(scaled.sum(1), image_ops._WEIGHT_LEVELS, atol=8)
