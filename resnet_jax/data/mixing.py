"""Mixup and CutMix of a batch: images and targets mixed in the same proportion."""

import jax
import jax.numpy as jnp

from resnet_jax.data.augment import Augmentation


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixup: ``share x + (1 - share) x'``, where x' is the batch in reverse (Zhang et al. 2017, arXiv:1710.09412).

    Args:
      key: random key.
      images: float ``[N, H, W, C]``.
      targets: float ``[N, K]``.
      alpha: above 0; one share for the batch is drawn from Beta(alpha, alpha).

    Returns:
      Mixed images and targets, of the same shapes.
    """
    share = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    return _mix_with_reverse(images, share), _mix_with_reverse(targets, share)


def cutmix(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """CutMix: replaces a box of each image by that of another one, from the batch in reverse.

    The box covers ``1 - share`` of the area. Its center is uniform over the image, and it is clipped to the image;
    targets are mixed by the area that remains (Yun et al. 2019, arXiv:1905.04899).

    Args:
      key: random key.
      images: float ``[N, H, W, C]``.
      targets: float ``[N, K]``.
      alpha: as in ``mixup``.

    Returns:
      Mixed images and targets, of the same shapes.
    """
    share_key, row_key, column_key = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))
    inside = jnp.ones((height, width), bool)
    for axis, (size, middle_key) in enumerate(((height, row_key), (width, column_key))):
        half = jnp.floor(size * side).astype(jnp.int32) // 2
        middle = jax.random.randint(middle_key, (), 0, size, jnp.int32)
        places = jnp.arange(size, dtype=jnp.int32)
        covered = (places >= middle - half) & (places < middle + half)
        inside &= jnp.expand_dims(covered, 1 - axis)
    kept = 1 - jnp.mean(inside, dtype=jnp.float32)
    return jnp.where(inside[None, :, :, None], images[::-1], images), _mix_with_reverse(targets, kept)


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
    """Applies mixup or CutMix; if both are on, one of them with equal probability.

    Args:
      key: random key.
      images: float ``[N, H, W, C]``.
      targets: float ``[N, K]``.
      augmentation: settings with ``mixup`` or ``cutmix`` above 0.

    Returns:
      Mixed images and targets, of the same shapes.
    """
    choice, mixing = jax.random.split(key)
    if not augmentation.cutmix:
        return mixup(mixing, images, targets, augmentation.mixup)
    cut = cutmix(mixing, images, targets, augmentation.cutmix)
    if not augmentation.mixup:
        return cut
    mixed = mixup(mixing, images, targets, augmentation.mixup)
    is_cut = jax.random.bernoulli(choice, jnp.float32(0.5))
    return jnp.where(is_cut, cut[0], mixed[0]), jnp.where(is_cut, cut[1], mixed[1])


def _mix_with_reverse(values: jax.Array, share: jax.Array) -> jax.Array:
    return share * values + (1 - share) * values[::-1]
