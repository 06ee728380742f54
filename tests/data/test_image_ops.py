"""Image operations compared with Pillow, by the largest difference in gray levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data import image_ops as ops

NEAREST, BILINEAR, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def make_images(height=24, width=20):
    """Noise, smooth gradients, constant colors and few values: uint8 ``[H, W, 3]``."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    slope = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (height + width - 2)], -1)
    return [
        rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        slope.astype(np.uint8),
        np.full((height, width, 3), (200, 30, 90), np.uint8),
        rng.choice([0, 10, 255], (height, width, 3)).astype(np.uint8),
        (rng.integers(100, 130, (height, width, 1)) + np.array([0, 5, 90])).astype(np.uint8),
    ]


def difference(ours, pillows, images=None, channels=(3, 1)):
    """The largest difference in gray levels, over all images in color and in gray."""
    worst, jitted = 0, jax.jit(ours)
    for image in images or make_images():
        for count in channels:
            array = image if count == 3 else image[..., :1]
            picture = Image.fromarray(image if count == 3 else image[..., 0])
            expected = np.asarray(pillows(picture)).reshape(*jitted(jnp.asarray(array)).shape).astype(int)
            worst = max(worst, int(np.abs(np.asarray(jitted(jnp.asarray(array))).astype(int) - expected).max()))
    return worst


@pytest.mark.parametrize('factor', [0.0, 0.37, 1.0, 1.9])
@pytest.mark.parametrize(
    ('ours', 'pillows'),
    [
        (lambda image, f: ops.color(image, f), ImageEnhance.Color),
        (lambda image, f: ops.sharpness(image, f), ImageEnhance.Sharpness),
        (lambda image, f: ops.apply_table(image, ops.brightness_table(f)), ImageEnhance.Brightness),
        (lambda image, f: ops.apply_table(image, ops.contrast_table(image, f)), ImageEnhance.Contrast),
    ],
    ids=['color', 'sharpness', 'brightness', 'contrast'],
)
def test_enhancements(ours, pillows, factor):
    assert difference(lambda image: ours(image, factor), lambda picture: pillows(picture).enhance(factor)) == 0


@pytest.mark.parametrize('bits', [1, 4, 8])
def test_posterize(bits):
    found = difference(lambda i: ops.apply_table(i, ops.posterize_table(bits)), lambda p: ImageOps.posterize(p, bits))
    assert found == 0


def test_posterize_to_no_bits_is_black():
    np.testing.assert_array_equal(ops.posterize_table(0), 0)


@pytest.mark.parametrize('threshold', [0, 77, 256])
def test_solarize(threshold):
    table = ops.solarize_table(threshold)
    assert difference(lambda i: ops.apply_table(i, table), lambda p: ImageOps.solarize(p, threshold)) == 0
    if threshold == 0:
        assert difference(lambda i: ops.apply_table(i, table), ImageOps.invert) == 0


def test_solarize_add_by_hand():
    table = np.asarray(ops.solarize_add_table(jnp.int32(100)))
    assert [table[0], table[27], table[127], table[128], table[255]] == [100, 127, 227, 128, 255]


def test_equalize():
    assert difference(lambda i: ops.apply_table(i, ops.equalize_table(i)), ImageOps.equalize) == 0


def test_autocontrast():
    """Pillow computes in floating point, where integers may be rounded down to the next lower one."""
    assert difference(lambda i: ops.apply_table(i, ops.autocontrast_table(i)), ImageOps.autocontrast) <= 1


MATRICES = {
    'shear_x': (ops.shear_matrix(jnp.float32(0.3), jnp.float32(0)), (1, 0.3, 0, 0, 1, 0)),
    'shear_y': (ops.shear_matrix(jnp.float32(0), jnp.float32(-0.99)), (1, 0, 0, -0.99, 1, 0)),
    'translate': (ops.translation_matrix(jnp.float32(4.6), jnp.float32(-3)), (1, 0, 4.6, 0, 1, -3)),
    'far': (ops.translation_matrix(jnp.float32(32), jnp.float32(0)), (1, 0, 32, 0, 1, 0)),
}


@pytest.mark.parametrize('name', MATRICES)
@pytest.mark.parametrize('bilinear', [False, True])
def test_affine(name, bilinear):
    ours, pillows = MATRICES[name]

    def transform(picture):
        fill = 5 if picture.mode == 'L' else (5, 5, 5)
        method = BILINEAR if bilinear else NEAREST
        return picture.transform(picture.size, Image.Transform.AFFINE, pillows, method, fillcolor=fill)

    assert difference(lambda image: ops.affine(image, ours, 5, bilinear), transform) <= int(bilinear)


@pytest.mark.parametrize('degrees', [-30.0, 7.3, 135.0, 0.0])
@pytest.mark.parametrize('bilinear', [False, True])
def test_rotate(degrees, bilinear):
    def rotate(picture):
        fill = 128 if picture.mode == 'L' else (128, 128, 128)
        return picture.rotate(degrees, BILINEAR if bilinear else NEAREST, fillcolor=fill)

    matrix = ops.rotation_matrix(jnp.float32(degrees), 24, 20)
    assert difference(lambda image: ops.affine(image, matrix, 128, bilinear), rotate) <= int(bilinear)


@pytest.mark.parametrize('box', [(0, 0, 24, 20), (3, 5, 17, 13), (10, 2, 5, 6)])
@pytest.mark.parametrize('size', [(24, 20), (9, 8), (48, 39)])
@pytest.mark.parametrize('cubic', [False, True])
def test_resized_crop(box, size, cubic):
    top, left, height, width = box

    def crop(picture):
        part = picture.crop((left, top, left + width, top + height))
        return part.resize(size[::-1], BICUBIC if cubic else BILINEAR)

    assert difference(lambda image: ops.resized_crop(image, *box, size, cubic), crop) <= (2 if cubic else 1)


@pytest.mark.parametrize('shift', [-0.5, -0.1, 0.05, 0.3])
def test_hue(shift):
    """A difference of one of 256 hues changes a channel by up to six levels."""

    def turn(picture):
        hue, saturation, value = picture.convert('HSV').split()
        turned = (np.asarray(hue).astype(int) + int(shift * 255)) % 256
        return Image.merge('HSV', (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert('RGB')

    images = make_images()
    assert difference(lambda image: ops.shift_hue(image, shift), turn, images, channels=(3,)) <= 6
    found = [np.asarray(ops.shift_hue(jnp.asarray(image), shift)).astype(int) for image in images]
    expected = [np.asarray(turn(Image.fromarray(image))).astype(int) for image in images]
    assert np.mean([np.mean(a != b) for a, b in zip(found, expected, strict=True)]) < 0.01
    gray = np.asarray(images[0][..., :1])
    np.testing.assert_array_equal(ops.shift_hue(jnp.asarray(gray), shift), gray)
