"""Decoding of photographs to upright RGB arrays, at reduced size where possible.

JPEG is decoded by libjpeg-turbo through ``simplejpeg``, other formats and unusual JPEGs by Pillow. If both can decode a
file, they return the same pixels.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from resnet_jax.data.containers import without_metadata

_JPEG = ('JPEG', 'MPO')
# Formats whose 16-bit gray levels Pillow may return as 32-bit integers.
_OF_16_BITS = ('PNG', 'PPM')
_ORIENTATION = 0x0112  # EXIF tag
# Values of that tag that exchange height and width.
_SIDEWAYS = (5, 6, 7, 8)
# Smallest and largest ratio of width to height of random resized crops (Szegedy et al. 2014, arXiv:1409.4842,
# section 6).
CROP_RATIO = (3 / 4, 4 / 3)


class DamagedImageError(ValueError):
    """Bytes that cannot be decoded to an image."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangular region of an upright image, in pixels.

    Attributes:
      top: first row.
      left: first column.
      height: number of rows.
      width: number of columns.
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def centered(cls, height: int, width: int, ratio: tuple[float, float] = (1.0, 1.0)) -> 'Box':
        """Returns the largest central box with an allowed ratio of width to height.

        Args:
          height: of the image.
          width: of the image.
          ratio: smallest and largest ratio of width to height.
        """
        across, down = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        return cls((height - down) // 2, (width - across) // 2, max(down, 1), max(across, 1))


def decode(data: bytes) -> np.ndarray:
    """Decodes all pixels of an image.

    Palettes, CMYK and gray are converted like Pillow's ``convert('RGB')``, which ignores transparency; 16-bit gray
    levels are reduced to their upper 8 bits. The first frame of an animation is decoded, and the EXIF orientation is
    applied.

    Args:
      data: JPEG, PNG, WebP, or another format that Pillow reads.

    Returns:
      uint8 ``[H, W, 3]``.

    Raises:
      DamagedImageError: not an image, an incomplete image, or 32-bit gray levels, whose range is unknown.
    """
    picture, data = open_image(data)
    with picture:
        return _pixels(picture, data, 1)


def decode_part(
    data: bytes, choose: Callable[[int, int], Box], size: tuple[int, int], resample: Image.Resampling
) -> np.ndarray:
    """Decodes a region of an image and resizes it.

    A JPEG at least twice as large as needed is decoded at a half, a quarter or an eighth of its size, which takes a
    fraction of the time.

    Args:
      data: as in ``decode``.
      choose: maps height and width of the upright image to the region.
      size: height and width of the result.
      resample: Pillow's filter.

    Returns:
      uint8 ``[*size, 3]``.

    Raises:
      DamagedImageError: as in ``decode``.
    """
    picture, data = open_image(data)
    with picture:
        height, width = _upright_size(picture)
        box = choose(height, width)
        factor = 1
        while factor < 8 and min(box.height / size[0], box.width / size[1]) >= 2 * factor:
            factor *= 2
        pixels = _pixels(picture, data, factor)
    if pixels.shape[:2] == (height, width):
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        return np.asarray(Image.fromarray(part).resize(size[::-1], resample))
    left, top = box.left / factor, box.top / factor
    edges = left, top, left + box.width / factor, top + box.height / factor
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], resample, box=edges))


def open_image(data: bytes) -> tuple[Image.Image, bytes]:
    """Opens an image; decodes it unless it is a JPEG. Metadata that Pillow cannot read is ignored.

    Args:
      data: as in ``decode``.

    Returns:
      The image, and the bytes that it was opened from: ``data``, or these without unreadable metadata.

    Raises:
      DamagedImageError: not an image, damaged pixels, or more pixels than Pillow allows.
    """
    fault = Exception()
    # First with all metadata, then only with EXIF and XMP, then with none.
    for orientation in (None, True, False):
        if (attempt := data if orientation is None else without_metadata(data, orientation)) is None:
            continue
        try:
            return _open(attempt), attempt
        except Exception as error:  # Pillow's readers raise exceptions of any type
            fault = error  # the last one is about the pixels
    if isinstance(fault, UnidentifiedImageError):
        raise DamagedImageError('unknown image format') from None
    raise DamagedImageError(str(fault) or type(fault).__name__) from fault


def _open(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    if picture.format not in _JPEG:
        picture.load()  # here, since reading a PNG's EXIF would decode it elsewhere
    return picture


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # unreadable EXIF is ignored
        return 1


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width of the upright image."""
    width, height = picture.size
    return (width, height) if _orientation(picture) in _SIDEWAYS else (height, width)


def _pixels(picture: Image.Image, data: bytes, factor: int) -> np.ndarray:
    """Upright pixels, uint8 ``[H, W, 3]``; those of a JPEG at ``1 / factor`` of its size."""
    pixels = None
    if picture.format in _JPEG and picture.mode in ('RGB', 'L'):
        least = {'min_height': -(-picture.height // factor), 'min_width': -(-picture.width // factor)}
        with contextlib.suppress(ValueError):  # then Pillow decides whether it is damaged
            pixels = simplejpeg.decode_jpeg(data, 'RGB', min_factor=1, **least)
    if pixels is None:
        try:
            pixels = _decode_with_pillow(picture)
        except Exception as error:
            raise DamagedImageError(str(error) or type(error).__name__) from error
    return _upright(pixels, _orientation(picture))


def _decode_with_pillow(picture: Image.Image) -> np.ndarray:
    """RGB pixels by Pillow."""
    if picture.mode.startswith('I;16') or (picture.mode == 'I' and picture.format in _OF_16_BITS):
        gray = (np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)  # convert('RGB') would clip
        return np.repeat(gray[..., None], 3, axis=2)
    if picture.mode in ('I', 'F'):
        raise DamagedImageError('32-bit gray levels, whose range is unknown')
    if picture.mode == 'P' and 'transparency' in picture.info:
        picture = picture.convert('RGBA')
    return np.asarray(picture.convert('RGB'))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies the EXIF orientation."""
    if orientation in _SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
