"""Augmentation and normalization on the device: pure functions of a key and a batch of images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from resnet_jax.data.policies import POLICIES, apply_operations


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 ``[N, H, W, C]`` to float32 ``(image / 255 - mean) / std``, with one mean and std for each channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale[None, None, None] - offset[None, None, None]


def random_crop(
    key: jax.Array, images: jax.Array, padding: int, fill: jax.Array | float = 0, reflect: bool = False
) -> jax.Array:
    """Shifts every image by up to ``padding`` pixels along H and W, filling with a colour or with its reflection.

    The same as a crop of the original size at a random place of the padded image (He et al. 2015, section 4.2,
    with 4 pixels on CIFAR).

    Args:
      key: random key.
      images: ``[N, H, W, C]``, any dtype.
      padding: pixels added on each side.
      fill: value of what comes from outside, one or ``[C]``.
      reflect: fill with the image mirrored at its border pixels instead.

    Returns:
      ``[N, H, W, C]``.
    """
    num, height, width, channels = images.shape
    if reflect:
        padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode='reflect')
    else:
        color = jnp.broadcast_to(jnp.asarray(fill, images.dtype), (channels,))
        outside = jnp.broadcast_to(color, (num, height + 2 * padding, width + 2 * padding, channels))
        padded = jax.lax.dynamic_update_slice(outside, images, (0, padding, padding, 0))
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
    policy: str | None = None,
    example_keys: jax.Array | None = None,
) -> jax.Array:
    """Random crop, random flip, the operations of a policy, normalization.

    Args:
      key: random key.
      images: uint8 ``[N, H, W, C]``.
      mean: as in ``normalize``.
      std: as in ``normalize``.
      crop_padding: pixels for the random crop; 0 for none.
      crop_fill: what the crop is filled with: ``black``, the ``mean`` colour in 256 levels, or ``reflect``. A policy
        fills with the mean colour, too, where this does, else with black.
      horizontal_flip: mirror half of the images.
      policy: one of ``policies.POLICIES``, or None.
      example_keys: keys ``[N]`` of what the policy draws for each image.

    Returns:
      float32 ``[N, H, W, C]``.
    """
    crop_key, flip_key = jax.random.split(key)
    fill = jnp.round(255 * jnp.asarray(mean)).astype(jnp.uint8) if crop_fill == 'mean' else jnp.uint8(0)
    if crop_padding:
        images = random_crop(crop_key, images, crop_padding, fill, reflect=crop_fill == 'reflect')
    if horizontal_flip:
        images = random_flip(flip_key, images)
    if policy is not None:
        if example_keys is None:
            raise ValueError(f'the policy {policy} needs example_keys')
        draw = POLICIES[policy]

        def augmented(key: jax.Array, image: jax.Array) -> jax.Array:
            return apply_operations(image, draw(key, *image.shape[:2]), fill)

        images = jax.vmap(augmented)(example_keys, images)
    return normalize(images, mean, std)
