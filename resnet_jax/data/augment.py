"""Augmentation and normalization on the device: pure functions of a key and a batch of images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 ``[N, H, W, C]`` to float32 ``(image / 255 - mean) / std``, with one mean and std for each channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale[None, None, None] - offset[None, None, None]


def random_crop(key: jax.Array, images: jax.Array, padding: int, reflect: bool = False) -> jax.Array:
    """Shifts every image by up to ``padding`` pixels along H and W, filling with zeros or with its reflection.

    The same as a crop of the original size at a random place of the padded image (He et al. 2015, section 4.2,
    with 4 pixels on CIFAR).

    Args:
      key: random key.
      images: ``[N, H, W, C]``, any dtype.
      padding: pixels added on each side.
      reflect: fill with the image mirrored at its border pixels; otherwise with zeros, which are black in raw images
        and the mean colour in normalized ones.

    Returns:
      ``[N, H, W, C]``.
    """
    num, height, width, channels = images.shape
    widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, widths, mode='reflect' if reflect else 'constant')
    corners = jax.random.randint(key, (num, 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half: ``[N, H, W, C]`` to the same."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def training_images(
    key: jax.Array,
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_padding: int = 0,
    crop_fill: str = 'black',
    horizontal_flip: bool = False,
) -> jax.Array:
    """The augmentation of the CIFAR papers, normalization included: random crop, then random flip.

    Args:
      key: random key.
      images: uint8 ``[N, H, W, C]``.
      mean: as in ``normalize``.
      std: as in ``normalize``.
      crop_padding: pixels for the random crop; 0 for none.
      crop_fill: what the crop is filled with: ``black``, the ``mean`` colour, or ``reflect``.
      horizontal_flip: mirror half of the images.

    Returns:
      float32 ``[N, H, W, C]``.
    """
    crop_key, flip_key = jax.random.split(key)
    if crop_fill == 'mean':
        images = normalize(images, mean, std)
    if crop_padding:
        images = random_crop(crop_key, images, crop_padding, reflect=crop_fill == 'reflect')
    if horizontal_flip:
        images = random_flip(flip_key, images)
    return images if crop_fill == 'mean' else normalize(images, mean, std)
