"""Augmentation and normalization on the device: pure functions of a key and a batch of images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 ``[N, H, W, C]`` to float32 ``(image / 255 - mean) / std``, with one mean and std for each channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale[None, None, None] - offset[None, None, None]


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Shifts every image by up to ``padding`` pixels along H and W, filling with zeros.

    The same as a crop of the original size at a random place of the padded image (He et al. 2015, section 4.2,
    with 4 pixels on CIFAR).

    Args:
      key: random key.
      images: ``[N, H, W, C]``, any dtype.
      padding: pixels added on each side.

    Returns:
      ``[N, H, W, C]``.
    """
    num, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (num, 2), 0, 2 * padding + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(crop)(padded, corners)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half: ``[N, H, W, C]`` to the same."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def augment(key: jax.Array, images: jax.Array, *, crop_padding: int, horizontal_flip: bool) -> jax.Array:
    """The augmentation of the CIFAR papers: random crop, then random flip; each can be off (0, False)."""
    crop_key, flip_key = jax.random.split(key)
    if crop_padding:
        images = random_crop(crop_key, images, crop_padding)
    if horizontal_flip:
        images = random_flip(flip_key, images)
    return images
