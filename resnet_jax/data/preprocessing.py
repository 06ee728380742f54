"""The preprocessing of images for pretrained networks: resizing, cropping and normalization.

Published accuracies hold for one preprocessing, which differs between checkpoints. ``preprocess`` equals timm's
evaluation transform (``timm.data.create_transform(..., is_training=False)``, timm 1.0.31) on Pillow images.
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

# timm has 1.15 for a few networks; values above 2 are probably percentages.
_MAX_CROP_PCT = 2.0


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images are converted to a network's input. Names and meanings are timm's.

    Attributes:
      size: height and width of the network's input in pixels.
      crop_pct: ``size`` as a fraction of the resized image; above 1, the image is padded.
      interpolation: Pillow's filter: nearest, bilinear, bicubic, box, hamming or lanczos.
      mean: mean of red, green and blue, from 0 (black) to 1 (white).
      std: standard deviation of red, green and blue, on the same scale.
      crop_mode: what is resized to ``floor(size / crop_pct)`` pixels before the central crop: ``center`` resizes the
        shorter side and keeps the aspect ratio; ``squash`` resizes both sides; ``border`` resizes the longer side,
        keeps the aspect ratio and pads with the mean color.

    Raises:
      InputError: a value that is not allowed.
    """

    size: int
    crop_pct: float = 0.875
    interpolation: str = 'bilinear'
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_mode: str = 'center'

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise InputError(f'size={self.size!r} must be a positive integer, in pixels')
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= _MAX_CROP_PCT:
            raise InputError(f'crop_pct={self.crop_pct!r} must be above 0 and at most {_MAX_CROP_PCT:g}')
        for name, known in (('interpolation', tuple(INTERPOLATIONS)), ('crop_mode', CROP_MODES)):
            if getattr(self, name) not in known:
                raise InputError(f'unknown {name} {getattr(self, name)!r}; known: {", ".join(known)}')
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or len(values) != 3 or not all(map(_is_number, values)):
                raise InputError(f'{name}={values!r} must be three numbers, for red, green and blue')
            if not all(0 <= value <= 1 for value in values):
                raise InputError(f'{name}={values!r} must be between 0 and 1, like pixels divided by 255')
            object.__setattr__(self, name, tuple(float(value) for value in values))  # JSON gives lists
        if min(self.std) == 0:
            raise InputError(f'std={self.std!r} must be above 0')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height before the crop; rounded or truncated as in timm and torchvision."""
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
    """Crops the central ``size`` x ``size`` pixels; shorter sides are padded first, an odd pixel goes to the end."""
    width, height = image.size
    if min(width, height) < size:
        canvas = Image.new('RGB', (max(width, size), max(height, size)), fill)
        canvas.paste(image, (max(size - width, 0) // 2, max(size - height, 0) // 2))
        image, (width, height) = canvas, canvas.size
    # round() rounds halves to even, as in torchvision.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert('RGB')
    if not isinstance(image, np.ndarray):
        raise InputError(f'image must be a Pillow image or a uint8 array [H, W, 3], got {type(image).__name__}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f'image must be non-empty uint8 [H, W, 3], got {image.dtype} {list(image.shape)}')
    return Image.fromarray(image)


def preprocess(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Preprocesses an image for a pretrained network: resizes, crops and normalizes it.

    With the same version of Pillow, the result is bit-identical to timm's evaluation transform. timm's prefetching
    loader computes ``(x - 255 mean) / (255 std)`` instead, which differs by rounding, by at most 1e-6. As in timm, the
    image's EXIF orientation is ignored.

    Args:
      image: a Pillow image of any mode, or RGB uint8 ``[H, W, 3]``.
      preprocessing: sizes, filter and statistics.

    Returns:
      float32 ``[size, size, 3]``.

    Raises:
      InputError: not such an image, or one that would be resized to zero width or height.
    """
    # Rounds three times to float32, as torchvision does; multiplying by 1 / std would change the last bit.
    pixels = resized_and_cropped(image, preprocessing).astype(np.float32) / np.float32(255)
    return (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)


def resized_and_cropped(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """As ``preprocess``, without the normalization.

    Args:
      image: as in ``preprocess``.
      preprocessing: sizes and filter.

    Returns:
      uint8 ``[size, size, 3]``.

    Raises:
      InputError: as in ``preprocess``.
    """
    image = _as_rgb(image)
    resized = _resized_size(*image.size, preprocessing)
    if min(resized) < 1:
        raise InputError(f'image of {image.width}x{image.height} pixels would be resized to {resized[0]}x{resized[1]}')
    image = image.resize(resized, INTERPOLATIONS[preprocessing.interpolation])
    padded_with_mean = preprocessing.crop_mode == 'border'
    fill = tuple(round(255 * value) if padded_with_mean else 0 for value in preprocessing.mean)
    return np.asarray(_center_crop(image, preprocessing.size, fill))


def from_timm_config(config: Mapping[str, Any], test_size: bool = False) -> Preprocessing:
    """Reads the preprocessing from a timm ``pretrained_cfg``, like ``timm.data.resolve_data_config``.

    Args:
      config: dict with ``input_size`` (channels, height, width), ``crop_pct``, ``interpolation``, ``mean``, ``std`` and
        ``crop_mode``. Keys that are missing or None have timm's defaults: 224 pixels, 0.875, bicubic, ImageNet's mean
        and standard deviation, center. Other keys are ignored.
      test_size: whether to use ``test_input_size`` and ``test_crop_pct`` if present: larger images, on which many
        networks are more accurate than on their training size.

    Raises:
      InputError: not a mapping, an ``input_size`` other than a square with three channels, or a value that
        ``Preprocessing`` does not allow.
    """
    if not isinstance(config, Mapping):
        raise InputError(f'config must be a pretrained_cfg dict, got {type(config).__name__}')

    def value_of(key: str, default: Any) -> Any:
        value = config.get(f'test_{key}') if test_size and key in ('input_size', 'crop_pct') else None
        value = config.get(key) if value is None else value
        return default if value is None else value

    input_size = value_of('input_size', (3, 224, 224))
    if not isinstance(input_size, tuple | list) or len(input_size) != 3:
        raise InputError(f'input_size={input_size!r} must be (3, size, size)')
    channels, height, width = input_size
    if channels != 3 or height != width:
        raise InputError(f'input_size={input_size!r} must be (3, size, size)')
    return Preprocessing(
        size=height,
        crop_pct=value_of('crop_pct', 0.875),
        interpolation=value_of('interpolation', 'bicubic'),
        mean=value_of('mean', IMAGENET_MEAN),
        std=value_of('std', IMAGENET_STD),
        crop_mode=value_of('crop_mode', 'center'),
    )
