"""What happens to an image before a pretrained network sees it: the preprocessing that travels with weights.

Published accuracies hold for one way to resize, crop and normalize, and each checkpoint has its own. ``preprocess`` is
timm's evaluation transform (``timm.data.create_transform(..., is_training=False)``, timm 1.0.31) on Pillow images.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {
    'nearest': Image.Resampling.NEAREST,
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'box': Image.Resampling.BOX,
    'hamming': Image.Resampling.HAMMING,
    'lanczos': Image.Resampling.LANCZOS,
}
CROP_MODES = ('center', 'squash', 'border')

# timm has 1.15 for a few networks; beyond 2 someone means per cent.
_MAX_CROP_PCT = 2.0


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input. Names and meanings are timm's.

    Attributes:
      size: pixels a side of the square that the network sees.
      crop_pct: that side as a fraction of the resized image's; above 1 the rest is padded.
      interpolation: Pillow's filter: nearest, bilinear, bicubic, box, hamming or lanczos.
      mean: of red, green and blue where 1 is white; subtracted.
      std: the same for the standard deviation; divided by.
      crop_mode: what is resized to ``floor(size / crop_pct)`` pixels in front of the central crop: ``center`` the
        shorter side, with the aspect ratio kept; ``squash`` both sides; ``border`` the longer side, with the aspect
        ratio kept and the rest filled with the mean colour.

    Raises:
      InputError: a value outside of these.
    """

    size: int
    crop_pct: float = 0.875
    interpolation: str = 'bilinear'
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_mode: str = 'center'

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise InputError(f'size={self.size!r} must be a positive number of pixels, an int')
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= _MAX_CROP_PCT:
            raise InputError(f'crop_pct={self.crop_pct!r} must be a fraction above 0 and at most {_MAX_CROP_PCT:g}')
        for name, known in (('interpolation', tuple(INTERPOLATIONS)), ('crop_mode', CROP_MODES)):
            if getattr(self, name) not in known:
                raise InputError(f'unknown {name} {getattr(self, name)!r}; known: {", ".join(known)}')
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or len(values) != 3 or not all(map(_is_number, values)):
                raise InputError(f'{name}={values!r} must be three numbers: of red, green and blue')
            if not all(0 <= value <= 1 for value in values):
                raise InputError(f'{name}={values!r} must be between 0 and 1, for pixels between 0 and 1')
            object.__setattr__(self, name, tuple(float(value) for value in values))  # JSON gives lists
        if min(self.std) == 0:
            raise InputError(f'std={self.std!r} must be above 0')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height in front of the crop; which of them round and which cut off is as in timm and torchvision."""
    target = math.floor(preprocessing.size / preprocessing.crop_pct)
    if preprocessing.crop_mode == 'squash' or not target:
        return target, target
    if preprocessing.crop_mode == 'border':
        ratio = max(height / target, width / target)
        return round(width / ratio), round(height / ratio)
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def _center_crop(image: Image.Image, size: int, fill: tuple[int, ...]) -> Image.Image:
    """The central ``size`` x ``size`` pixels; a side too short is padded first, with the odd pixel at its end."""
    width, height = image.size
    if min(width, height) < size:
        canvas = Image.new('RGB', (max(width, size), max(height, size)), fill)
        canvas.paste(image, (max(size - width, 0) // 2, max(size - height, 0) // 2))
        image, (width, height) = canvas, canvas.size
    # Halves go to the even neighbour, here and in torchvision.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert('RGB')
    if not isinstance(image, np.ndarray):
        raise InputError(f'image is a {type(image).__name__}; it must be a Pillow image or a uint8 array [H, W, 3]')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f'image is {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3], without empty axes')
    return Image.fromarray(image)


def preprocess(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """An image as a pretrained network expects it: resized, cropped at the center, normalized.

    Equal to the bit to timm's evaluation transform with the same version of Pillow, which does the resizing. timm's
    prefetching loader normalizes in another order, ``(x - 255 mean) / (255 std)``: the same but for rounding, within
    1e-6. As in timm, an orientation in the image's EXIF data is not followed.

    Args:
      image: a Pillow image of any mode, or uint8 ``[H, W, 3]``, red first.
      preprocessing: sizes, filter and statistics.

    Returns:
      float32 ``[size, size, 3]``.

    Raises:
      InputError: something else than such an image, or one so elongated that nothing of its shorter side is left.
    """
    # Three roundings to float32 in torchvision's order; a product with 1 / std would differ in the last bit.
    pixels = resized_and_cropped(image, preprocessing).astype(np.float32) / np.float32(255)
    return (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)


def resized_and_cropped(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """As ``preprocess``, but for the normalization: uint8 ``[size, size, 3]``."""
    image = _as_rgb(image)
    resized = _resized_size(*image.size, preprocessing)
    if min(resized) < 1:
        raise InputError(f'image of {image.width}x{image.height} pixels would be resized to {resized[0]}x{resized[1]}')
    image = image.resize(resized, INTERPOLATIONS[preprocessing.interpolation])
    padded_with_mean = preprocessing.crop_mode == 'border'
    fill = tuple(round(255 * value) if padded_with_mean else 0 for value in preprocessing.mean)
    return np.asarray(_center_crop(image, preprocessing.size, fill))


def from_timm_config(config: Mapping[str, Any], test_size: bool = False) -> Preprocessing:
    """The preprocessing in a timm ``pretrained_cfg``, as ``timm.data.resolve_data_config`` reads it.

    Args:
      config: with ``input_size`` (channels, height, width), ``crop_pct``, ``interpolation``, ``mean``, ``std`` and
        ``crop_mode``; one that is missing or None has timm's default: 224 pixels, 0.875, bicubic, ImageNet's mean and
        standard deviation, center. Other keys are not looked at.
      test_size: take ``test_input_size`` and ``test_crop_pct`` where the configuration has them: the larger images on
        which many networks do better than on the size they were trained on.

    Raises:
      InputError: no mapping, an ``input_size`` that is not three channels of a square, or what Preprocessing refuses.
    """
    if not isinstance(config, Mapping):
        raise InputError(f'config is a {type(config).__name__}; it must be a pretrained_cfg as a dict')

    def value_of(key: str, default: Any) -> Any:
        value = config.get(f'test_{key}') if test_size and key in ('input_size', 'crop_pct') else None
        value = config.get(key) if value is None else value
        return default if value is None else value

    input_size = value_of('input_size', (3, 224, 224))
    if not isinstance(input_size, tuple | list) or len(input_size) != 3:
        raise InputError(f'input_size={input_size!r} must be (3, size, size)')
    channels, height, width = input_size
    if channels != 3 or height != width:
        raise InputError(f'input_size={input_size!r} must be (3, size, size): three channels of a square')
    return Preprocessing(
        size=height,
        crop_pct=value_of('crop_pct', 0.875),
        interpolation=value_of('interpolation', 'bicubic'),
        mean=value_of('mean', IMAGENET_MEAN),
        std=value_of('std', IMAGENET_STD),
        crop_mode=value_of('crop_mode', 'center'),
    )
