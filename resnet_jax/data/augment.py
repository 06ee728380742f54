"""Augmentation and normalization on the device: pure functions of keys and a batch of images."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.data import random_ops
from resnet_jax.data.policies import POLICIES, apply_operations
from resnet_jax.errors import InputError

# Purposes of random numbers: each operation draws from a key of its own, folded from the image's, so that switching one
# on does not change what the others draw.
_CROP, _FLIP, _POLICY, _JITTER, _LIGHTING, _ERASING, _CUTOUT = range(7)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in this order; by default nothing.

    ``training.config.TrainConfig`` has the same fields and checks their values.

    Attributes:
      crop_area: smallest and largest share of the image's area in a random crop, which is then resized to
        ``crop_size``; None for none.
      crop_ratio: smallest and largest ratio of width to height in such a crop.
      crop_size: pixels of both sides of the result; None is the size of the images. Without ``crop_area`` the crop is
        not resized.
      crop_padding: pixels of padding for the random crop; 0 for none.
      crop_fill: what the crop is filled with: ``black``, the ``mean`` colour in 256 levels, or ``reflect``. A policy
        fills with the mean colour, too, where this does, else with black.
      horizontal_flip: mirror half of the images.
      policy: one of ``policies.POLICIES``, or None.
      policy_interpolation: ``nearest`` or ``bilinear``: how its shears, translations and rotations read pixels.
      color_jitter: ranges of brightness, contrast, saturation and, where there is a fourth, hue; () for none. Images of
        one channel have the first two.
      lighting: standard deviation of noise along the principal colours of ImageNet; 0 for none.
      random_erasing: probability with which a box of an image is erased: set to zero, the mean, after normalization.
      cutout: pixels of the side of a square that is erased, likewise, from each image; 0 for none.
    """

    crop_area: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_size: int | None = None
    crop_padding: int = 0
    crop_fill: str = 'black'
    horizontal_flip: bool = False
    policy: str | None = None
    policy_interpolation: str = 'nearest'
    color_jitter: tuple[float, ...] = ()
    lighting: float = 0.0
    random_erasing: float = 0.0
    cutout: int = 0

    @classmethod
    def of(cls, settings: Any) -> 'Augmentation':
        """From an object that has attributes of these names, such as a ``TrainConfig``."""
        return cls(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)})

    def result_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of images ``(H, W, C)`` after augmentation.

        Raises:
          InputError: images for which this cannot be done.
        """
        height, width, channels = image_shape
        if self.lighting and channels != 3:
            raise InputError(f'lighting={self.lighting} is for images of 3 channels, not {channels}: 0 leaves it out')
        if self.crop_size is None:
            return height, width, channels
        room = min(height, width) + 2 * self.crop_padding
        if self.crop_area is None and self.crop_size > room:
            raise InputError(
                f'crop_size={self.crop_size} must be at most {room}, the smaller side of the images with its padding;'
                ' with crop_area, which resizes, it may be any'
            )
        return self.crop_size, self.crop_size, channels


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 ``[N, H, W, C]`` to float32 ``(image / 255 - mean) / std``, with one mean and std for each channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale[None, None, None] - offset[None, None, None]


def pad(images: jax.Array, padding: int, fill: jax.Array | int = 0, reflect: bool = False) -> jax.Array:
    """Images with a border, from which a crop of the original size is a shift (He et al. 2015, section 4.2).

    Args:
      images: ``[N, H, W, C]``, any dtype.
      padding: pixels added on each side.
      fill: value of the border, one or ``[C]``.
      reflect: fill with the image mirrored at its border pixels instead.

    Returns:
      ``[N, H + 2 padding, W + 2 padding, C]``.
    """
    num, height, width, channels = images.shape
    if reflect:
        return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode='reflect')
    color = jnp.broadcast_to(jnp.asarray(fill, images.dtype), (channels,))
    outside = jnp.broadcast_to(color, (num, height + 2 * padding, width + 2 * padding, channels))
    return jax.lax.dynamic_update_slice(outside, images, (0, padding, padding, 0))


def example_keys(key: jax.Array, epoch: jax.Array | int, indices: jax.Array, copies: jax.Array) -> jax.Array:
    """Keys that belong to an epoch, an example and its copy, wherever in which batch they are: ``[N]``.

    Args:
      key: of the run and the purpose.
      epoch: number of the pass over the examples.
      indices: int ``[N]``, numbers of the examples.
      copies: int ``[N]``, which of the copies of ``batches.train_indices`` each is.
    """
    epoch_key = jax.random.fold_in(key, epoch)
    return jax.vmap(lambda index, copy: jax.random.fold_in(jax.random.fold_in(epoch_key, index), copy))(indices, copies)


def augment(
    keys: jax.Array,
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augmentation = Augmentation(),
) -> jax.Array:
    """Crop, flip, policy, colour jitter, normalization, lighting, random erasing, cutout: those that are on.

    Args:
      keys: random keys ``[N]``, one for each image: what is drawn for it depends on nothing else.
      images: uint8 ``[N, H, W, C]``.
      mean: as in ``normalize``.
      std: as in ``normalize``.
      augmentation: what is done.

    Returns:
      float32 ``[N, H', W', C]``.

    Raises:
      InputError: as ``Augmentation.result_shape``.
    """
    size = augmentation.result_shape(images.shape[1:])[:2]
    fill: jax.Array | int = 0
    if augmentation.crop_fill == 'mean':
        fill = jnp.round(255 * jnp.asarray(mean)).astype(jnp.uint8)
    if augmentation.crop_padding and augmentation.crop_area is None:
        images = pad(images, augmentation.crop_padding, fill, augmentation.crop_fill == 'reflect')
    images = jax.vmap(lambda key, image: _before_normalization(key, image, size, fill, augmentation))(keys, images)
    normalized = normalize(images, mean, std)
    deviations = jnp.asarray(std, jnp.float32)
    return jax.vmap(lambda key, image: _after_normalization(key, image, deviations, augmentation))(keys, normalized)


def _before_normalization(
    key: jax.Array, image: jax.Array, size: tuple[int, int], fill: jax.Array | int, augmentation: Augmentation
) -> jax.Array:
    """What is done to uint8 ``[H, W, C]``."""

    def key_of(purpose: int) -> jax.Array:
        return jax.random.fold_in(key, purpose)

    if augmentation.crop_area is not None:
        area, ratio = augmentation.crop_area, augmentation.crop_ratio
        image = random_ops.random_resized_crop(key_of(_CROP), image, size, area, ratio)
    elif size != image.shape[:2]:
        image = random_ops.random_crop(key_of(_CROP), image, size)
    if augmentation.horizontal_flip:
        image = random_ops.random_flip(key_of(_FLIP), image)
    if augmentation.policy is not None:
        drawn = POLICIES[augmentation.policy](key_of(_POLICY), *size)
        image = apply_operations(image, drawn, fill, augmentation.policy_interpolation == 'bilinear')
    if any(augmentation.color_jitter):
        image = random_ops.color_jitter(key_of(_JITTER), image, augmentation.color_jitter)
    return image


def _after_normalization(key: jax.Array, image: jax.Array, std: jax.Array, augmentation: Augmentation) -> jax.Array:
    """What is done to normalized float32 ``[H, W, C]``, where zero is the mean colour."""
    if augmentation.lighting:  # Added to values in [0, 1], which are divided by the deviation in between.
        shift = random_ops.lighting_shift(jax.random.fold_in(key, _LIGHTING), augmentation.lighting)
        image += (shift / std)[None, None]
    if augmentation.random_erasing:
        image = random_ops.random_erasing(jax.random.fold_in(key, _ERASING), image, augmentation.random_erasing)
    if augmentation.cutout:
        image = random_ops.cutout(jax.random.fold_in(key, _CUTOUT), image, augmentation.cutout)
    return image
