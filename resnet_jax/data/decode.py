"""Encoded photographs into arrays of red, green and blue, upright, as few pixels decoded as are needed.

JPEG goes through libjpeg-turbo by ``simplejpeg``, everything else, and what is unusual in a JPEG, through Pillow; where
both can decode a file, they give the same pixels.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

_JPEG = ('JPEG', 'MPO')
# Whose grey levels of more than 8 bits Pillow may give as integers of 32.
_OF_16_BITS = ('PNG', 'PPM')
_ORIENTATION = 0x0112  # EXIF's tag
# Of that tag: 5 to 8 exchange height and width.
_SIDEWAYS = (5, 6, 7, 8)
# Of random-resized crops, smallest and largest ratio of width to height (Szegedy et al. 2014, arXiv:1409.4842,
# section 6).
CROP_RATIO = (3 / 4, 4 / 3)


class DamagedImageError(ValueError):
    """Bytes that are no complete image."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A part of an upright image, in pixels.

    Attributes:
      top: rows above it.
      left: columns on its left.
      height: its rows.
      width: its columns.
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def centered(cls, height: int, width: int, ratio: tuple[float, float] = (1.0, 1.0)) -> 'Box':
        """The largest box in the middle of an image of this size whose ratio of width to height is allowed."""
        across, down = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        return cls((height - down) // 2, (width - across) // 2, max(down, 1), max(across, 1))


def decode(data: bytes) -> np.ndarray:
    """All pixels of an image: uint8 ``[H, W, 3]``.

    Palettes, CMYK and grey are converted as by Pillow's ``convert('RGB')``, transparency is left out like there, and of
    16 bits the upper 8 are taken. An animation gives its first picture; an orientation in EXIF is followed.

    Args:
      data: JPEG, PNG, WebP, or another format that Pillow reads.

    Raises:
      DamagedImageError: it is none, or not whole, or its grey levels are numbers of 32 bits, whose range is not known.
    """
    with _opened(data) as picture:
        return _pixels(picture, data, 1)


def decode_part(
    data: bytes, choose: Callable[[int, int], Box], size: tuple[int, int], resample: Image.Resampling
) -> np.ndarray:
    """A part of an image, resized: uint8 ``[*size, 3]``.

    A JPEG that is at least twice as large as is needed is decoded at a half, a quarter or an eighth of its size, which
    costs a fraction of the time.

    Args:
      data: as in ``decode``.
      choose: from height and width of the upright image to the part.
      size: height and width of the result.
      resample: Pillow's filter.

    Raises:
      DamagedImageError: as in ``decode``.
    """
    with _opened(data) as picture:
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


def _opened(data: bytes) -> Image.Image:
    """The picture, decoded unless it is a JPEG."""
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.format not in _JPEG:
            # Now: reading a PNG's EXIF decodes it, and what goes wrong there does so once.
            picture.load()
        return picture
    except UnidentifiedImageError:
        raise DamagedImageError('no image in a format that is known') from None
    except Exception as error:  # Pillow's readers raise of every kind
        raise DamagedImageError(str(error) or type(error).__name__) from error


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read says nothing
        return 1


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width."""
    width, height = picture.size
    return (width, height) if _orientation(picture) in _SIDEWAYS else (height, width)


def _pixels(picture: Image.Image, data: bytes, factor: int) -> np.ndarray:
    """uint8 ``[H, W, 3]``, upright, at one part in ``factor`` of its size if it is a JPEG."""
    pixels = None
    if picture.format in _JPEG and picture.mode in ('RGB', 'L'):
        least = {'min_height': -(-picture.height // factor), 'min_width': -(-picture.width // factor)}
        with contextlib.suppress(ValueError):  # Pillow has the last word on what is damaged
            pixels = simplejpeg.decode_jpeg(data, 'RGB', min_factor=1, **least)
    if pixels is None:
        try:
            pixels = _converted(picture)
        except Exception as error:
            raise DamagedImageError(str(error) or type(error).__name__) from error
    return _turned(pixels, _orientation(picture))


def _converted(picture: Image.Image) -> np.ndarray:
    """What Pillow decodes."""
    if picture.mode.startswith('I;16') or (picture.mode == 'I' and picture.format in _OF_16_BITS):
        grey = (np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)  # convert('RGB') would clip
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ('I', 'F'):
        raise DamagedImageError('grey levels of 32 bits, whose range is not known')
    if picture.mode == 'P' and 'transparency' in picture.info:
        picture = picture.convert('RGBA')
    return np.asarray(picture.convert('RGB'))


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, by the orientation of EXIF."""
    if orientation in _SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
