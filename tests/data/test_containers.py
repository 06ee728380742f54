"""Pixels are decoded whatever the metadata beside them: values equal those of the same image without metadata."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.containers import without_metadata
from resnet_jax.data.decode import DamagedImageError, decode
from tests.data.test_decode import encoded, smooth

PICTURE = Image.fromarray(smooth(24, 40))
PNG, JPEG, WEBP = encoded(PICTURE), encoded(PICTURE, 'JPEG'), encoded(PICTURE, 'WEBP', lossless=True)
END = len(PNG) - 12  # of the pixels; IHDR ends at 33
LARGE = zlib.compress(bytes(2**21))


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


EXIF = orientation(6).tobytes().removeprefix(b'Exif\0\0')
SIDEWAYS = np.rot90(smooth(24, 40), -1)


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', right)


def with_chunks(*chunks: bytes, at: int = 33) -> bytes:
    return PNG[:at] + b''.join(chunks) + PNG[at:]


def with_segment(marker: int, content: bytes) -> bytes:
    return JPEG[:20] + bytes([0xFF, marker]) + struct.pack('>H', len(content) + 2) + content + JPEG[20:]


@pytest.mark.parametrize(
    'data',
    [
        with_chunks(chunk(b'iCCP', b'profile\0\0' + LARGE)),
        with_chunks(chunk(b'iCCP', b'')),
        with_chunks(chunk(b'iCCP', b'profile\0\7' + LARGE)),
        with_chunks(chunk(b'zTXt', b'text\0\0' + LARGE)),
        with_chunks(chunk(b'iTXt', b'text\0\1\0\0\0\0' + LARGE)),
        with_chunks(*[chunk(b'zTXt', b'%d\0\0' % part + zlib.compress(bytes(10**6))) for part in range(66)]),
        with_chunks(chunk(b'tEXt', b'text\0a', checksum=5)),
        with_chunks(chunk(b'gAMA', b'\0')),
        with_chunks(chunk(b'tRNS', b'\0')),
        with_chunks(chunk(b'acTL', b'\0')),
        with_chunks(chunk(b'eXIf', b'nothing', checksum=5)),
        with_chunks(chunk(b'a\xe9\0d', b'nothing')),
        with_chunks(chunk(b'zTXt', b'text\0\0' + LARGE), at=END),
        PNG[:END] + chunk(b'tEXt', b'text\0' + bytes(100))[:-50],
        PNG[:END],
        WEBP[:4] + struct.pack('<I', len(WEBP) + 100) + WEBP[8:],
        encoded(PICTURE, 'WEBP', lossless=True, exif=orientation(6))[:-5],
        encoded(PICTURE, 'WEBP', lossless=True, icc_profile=b'nothing'),
    ],
    ids=lambda data: f'{data[:4]!r} {zlib.crc32(data)}',
)
def test_png_and_webp_with_unreadable_metadata(data):
    np.testing.assert_array_equal(decode(data), smooth(24, 40))


@pytest.mark.parametrize(
    'data',
    [
        with_segment(0xE1, b'Exif\0\0nothing'),
        with_segment(0xE2, b'ICC_PROFILE\0'),
        with_segment(0xE2, b'ICC_PROFILE\0\1\1nothing'),
        with_segment(0xED, b'Photoshop 3.0\x008BIM\x04\x04\0'),
        with_segment(0xEE, b'Adobe'),
        JPEG[:2] + b'\xff\xe0\0\6JFIF' + JPEG[20:],
        JPEG[:2] + b'\xff\xe0\0\x09JFIF\0\1\1' + JPEG[20:],
    ],
    ids=lambda data: f'{data[20:30]!r}',
)
def test_jpeg_with_unreadable_segments(data):
    np.testing.assert_array_equal(decode(data), decode(JPEG))


def test_colors_of_a_cmyk_jpeg_are_kept():
    """They are inverted, as its Adobe segment says."""
    data = encoded(PICTURE.convert('CMYK'), 'JPEG')
    start = data.index(b'\xff\xdb')
    damaged = data[:start] + b'\xff\xe2\0\x0eICC_PROFILE\0' + data[start:]
    np.testing.assert_array_equal(decode(damaged), decode(data))


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_the_orientation_beside_unreadable_metadata_is_applied(kind):
    damaged = {
        'PNG': with_chunks(chunk(b'eXIf', EXIF), chunk(b'iCCP', b'profile\0\0' + LARGE)),
        'JPEG': with_segment(0xE1, b'Exif\0\0' + EXIF)[:20] + b'\xff\xee\0\7Adobe',
        'WEBP': encoded(PICTURE, 'WEBP', lossless=True, exif=orientation(6)) + bytes(3),
    }[kind]
    if kind == 'JPEG':
        damaged += with_segment(0xE1, b'Exif\0\0' + EXIF)[20:]
    if kind == 'WEBP':
        damaged = damaged[:4] + struct.pack('<I', len(damaged) + 100) + damaged[8:]
    np.testing.assert_allclose(decode(damaged), SIDEWAYS, atol=12 if kind == 'JPEG' else 0)


def test_an_old_png_orientation_is_applied():
    """ImageMagick used to write EXIF as hexadecimal text."""
    content = b'Raw profile type exif\0\nexif\n%8d\n' % (len(EXIF) + 6) + (b'Exif\0\0' + EXIF).hex().encode() + b'\n'
    data = with_chunks(chunk(b'tEXt', content), chunk(b'iCCP', b'profile\0\0' + LARGE))
    np.testing.assert_array_equal(decode(data), SIDEWAYS)


PIXELS = PNG[41 : END - 4]
HALF = chunk(b'IDAT', PIXELS[: len(PIXELS) // 2])
HUGE = b'IHDR' + struct.pack('>II', 60_000, 60_000) + PNG[24:29]


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (PNG[:33] + PNG[END:], 'cannot load this image'),
        (PNG[:33] + HALF, 'truncated'),
        (PNG[:33] + chunk(b'iCCP', b'profile\0\0' + LARGE) + HALF + PNG[END:], 'truncated'),
        (PNG[:33] + chunk(b'tEXt', b'', checksum=5) + chunk(b'IDAT', bytes(9)) + PNG[END:], 'broken data stream'),
        (with_segment(0xEE, b'Adobe')[:-50], 'truncated'),
        (encoded(PICTURE, 'WEBP', exif=orientation(6))[:100], 'could not create decoder|unknown image format'),
        (
            PNG[:8] + chunk(b'IHDR', HUGE[4:]) + chunk(b'iCCP', b'profile\0\0' + LARGE) + PNG[33:],
            'exceeds limit of',
        ),
    ],
    ids=['no pixels', 'half', 'half and a large profile', 'zeros', 'half a JPEG', 'half a WebP', 'too many pixels'],
)
def test_damaged_pixels_remain_damaged(data, reason):
    with pytest.raises(DamagedImageError, match=reason):
        decode(data)


def test_only_pixels_are_left():
    data = with_chunks(chunk(b'eXIf', EXIF), chunk(b'tEXt', b'text\0a'))
    assert without_metadata(data, orientation=False) == PNG
    assert without_metadata(data, orientation=True) == with_chunks(chunk(b'eXIf', EXIF))
    assert without_metadata(encoded(PICTURE, 'GIF'), orientation=True) is None
    jpeg = without_metadata(with_segment(0xFE, b'a comment'), orientation=True)
    assert jpeg == JPEG
    assert Image.open(io.BytesIO(without_metadata(WEBP, orientation=True))).size == (40, 24)
