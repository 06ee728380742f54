"""Decoding: upright pixels equal to Pillow's, for all kinds of files."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnet_jax.data.decode import Box, DamagedImageError, decode, decode_part

BILINEAR = Image.Resampling.BILINEAR


def encoded(picture, kind='PNG', **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def smooth(height, width):
    """An image without noise, which survives JPEG compression."""
    down, across = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(down / 17 + phase) * np.cos(across / 23 + phase) for phase in (0, 1, 2)]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA'])
def test_png_of_every_mode_equals_pillow(mode):
    picture = Image.fromarray(smooth(19, 31)).convert(mode)
    np.testing.assert_array_equal(decode(encoded(picture)), np.asarray(picture.convert('RGB')))


def test_a_palette_with_transparency():
    picture = Image.fromarray(smooth(19, 31)).convert('P')
    data = encoded(picture, transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode(data), np.asarray(picture.convert('RGB')))


def test_sixteen_bits_become_eight():
    levels = np.arange(0, 65536, 37, dtype=np.uint16)[:1750].reshape(35, 50)
    found = decode(encoded(Image.fromarray(levels)))
    np.testing.assert_array_equal(found, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2))
    for level in (200, 300):  # dark, as it is among others
        assert (decode(encoded(Image.fromarray(np.full((4, 5), level, np.uint16)))) == level >> 8).all()


@pytest.mark.parametrize(
    'options', [{}, {'progressive': True}, {'subsampling': 0}, {'subsampling': 1}, {'quality': 20}]
)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_equals_pillow(mode, options):
    data = encoded(Image.fromarray(smooth(75, 101)).convert(mode), 'JPEG', **options)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))


@pytest.mark.parametrize('kind', ['WEBP', 'GIF', 'BMP', 'TIFF', 'PPM'])
def test_other_formats(kind):
    data = encoded(Image.fromarray(smooth(20, 33)), kind)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_exif_orientation_is_applied(orientation, kind):
    picture = Image.fromarray(smooth(24, 40))
    exif = picture.getexif()
    exif[0x0112] = orientation
    data = encoded(picture, kind, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data), upright)
    seen = []
    part = decode_part(data, lambda *size: seen.append(size) or Box(2, 3, 12, 14), (12, 14), BILINEAR)
    assert seen == [upright.shape[:2]]
    np.testing.assert_array_equal(part, upright[2:14, 3:17])


def test_a_part_is_cropped_and_resized():
    data = encoded(Image.fromarray(smooth(60, 90)), 'JPEG')
    """Crop and then resize, as torchvision does."""
    part = Image.open(io.BytesIO(data)).crop((11, 7, 51, 39))
    expected = np.asarray(part.resize((30, 20), BILINEAR))
    np.testing.assert_array_equal(decode_part(data, lambda *_: Box(7, 11, 32, 40), (20, 30), BILINEAR), expected)


@pytest.mark.parametrize('factor', [2, 4, 8])
def test_a_large_jpeg_is_decoded_at_reduced_size(factor, monkeypatch):
    """The result is within a few levels of a full decode, and fewer pixels are decoded."""
    height, width, box = 801, 1203, Box(31, 57, 64 * factor + 5, 64 * factor + 9)
    data = encoded(Image.fromarray(smooth(height, width)), 'JPEG', quality=95)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = Image.open(io.BytesIO(data)).resize((64, 64), BILINEAR, box=edges)
    decoded = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, 'resize', lambda self, *a, **k: decoded.append(self.size) or resize(self, *a, **k))
    found = decode_part(data, lambda *_: box, (64, 64), BILINEAR)
    assert decoded == [(-(-width // factor), -(-height // factor))]
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 4


def test_one_pixel():
    for kind in ('PNG', 'JPEG', 'WEBP'):
        data = encoded(Image.new('RGB', (1, 1), (200, 200, 200)), kind)
        assert decode(data).shape == (1, 1, 3)
        part = decode_part(data, lambda height, width: Box(0, 0, height, width), (8, 8), BILINEAR)
        np.testing.assert_allclose(part, 200, atol=2)


WHOLE = encoded(Image.fromarray(smooth(75, 101)), 'JPEG')
PNG = encoded(Image.fromarray(smooth(75, 101)))


@pytest.mark.parametrize(
    'data',
    [b'', b'not an image', WHOLE[:-200], WHOLE[:50], PNG[:-2000], PNG[:60] + bytes(30) + PNG[90:]],
    ids=['empty', 'text', 'cut off', 'header alone', 'png cut off', 'png with zeros'],
)
def test_damaged_images_are_refused(data):
    with pytest.raises(DamagedImageError):
        decode(data)
    with pytest.raises(DamagedImageError):
        decode_part(data, lambda height, width: Box(0, 0, 8, 8), (8, 8), BILINEAR)


@pytest.mark.parametrize('kind', [np.float32, np.int32])
def test_32_bit_gray_levels_are_refused(kind):
    """Pillow's ``convert`` would clip them, and values from 0 to 1 would become black."""
    picture = Image.fromarray(np.linspace(0, 1, 1200).reshape(30, 40).astype(kind))
    with pytest.raises(DamagedImageError, match='32-bit gray levels, whose range is unknown'):
        decode(encoded(picture, 'TIFF'))


def test_extraneous_bytes_before_a_marker_are_ignored():
    """As in some files of ImageNet; libjpeg only warns."""
    end = WHOLE.rindex(b'\xff\xd9')
    data = WHOLE[:end] + b'\x00\x11\x22' + WHOLE[end:]
    np.testing.assert_array_equal(decode(data), decode(WHOLE))
