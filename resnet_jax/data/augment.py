"""Augmentation and normalization on the device: pure functions of random keys and a batch of images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.data import random_ops
from resnet_jax.data.decode import CROP_RATIO
from resnet_jax.data.policies import POLICIES, Drawn, PolicyFunction, apply_operations
from resnet_jax.errors import InputError
from resnet_jax.settings import Settings, group, setting

# Purposes of random numbers: each operation has its own key, folded from the image's key, so that switching one on does
# not change the random numbers of the others.
_CROP, _FLIP, _POLICY, _JITTER, _LIGHTING, _ERASING, _CUTOUT, _FUNCTION, _VIEW = range(9)

CROP_FILLS = ('black', 'mean', 'reflect')
POLICY_INTERPOLATIONS = ('nearest', 'bilinear')

# ``(key, image) -> image`` of a typed random key and float32 ``[H, W, C]`` from 0 to 255, with as many channels.
ImageFunction = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ResizedCrop(Settings):
    """A random crop that is resized, as in torchvision's ``RandomResizedCrop``.

    Attributes:
      crop_area: smallest and largest fraction of the image's area.
      crop_ratio: smallest and largest ratio of width to height.
    """

    crop_area: tuple[float, float] = setting(
        help='Smallest and largest area of a random resized crop, as fractions of the image: 0.08,1.'
    )
    crop_ratio: tuple[float, float] = setting(
        CROP_RATIO, 'Smallest and largest ratio of width to height of a random resized crop.'
    )

    def check_together(self) -> None:
        """As in Settings."""
        area, ratio = self.crop_area, self.crop_ratio
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise InputError(f'crop_area={area} must be two fractions, 0 < smallest <= largest <= 1')
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise InputError(f'crop_ratio={ratio} must be two numbers, 0 < smallest <= largest')


@dataclasses.dataclass(frozen=True)
class Policy(Settings):
    """A policy: operations that are drawn at random for each image.

    Attributes:
      policy: a key of ``POLICIES``; or a function of a random key, height and width that returns operations and
        magnitudes, as those of ``POLICIES`` do.
      policy_interpolation: interpolation of the policy's shears, translations and rotations.
    """

    policy: str | PolicyFunction = setting(
        help='Policy: operations drawn at random for each image.', choices=tuple(POLICIES), by_value=True, off='none'
    )
    policy_interpolation: str = setting(
        'nearest',
        "Interpolation of the policy's shears, translations and rotations.",
        choices=POLICY_INTERPOLATIONS,
    )

    def draw(self, key: jax.Array, height: int, width: int) -> Drawn:
        """Draws the operations and magnitudes for an image.

        Args:
          key: random key of the image.
          height: of the image, in pixels.
          width: of the image, in pixels.
        """
        function = POLICIES[self.policy] if isinstance(self.policy, str) else self.policy
        return function(key, height, width)


@dataclasses.dataclass(frozen=True)
class Augmentation(Settings):
    """The augmentation of training images, applied in the order of the fields; by default none.

    ``function`` is a user-supplied pure function ``(key, image) -> image``, applied to each image: it takes a typed
    random key and float32 ``[H, W, C]`` from 0 to 255, and returns floats in the same range with as many channels.
    """

    augmentation_repeats: int = setting(1, 'Independently augmented copies of each image in a batch.', at_least=1)
    views: int = setting(1, 'Independently augmented views of each image, for losses that compare them.', at_least=1)
    resized_crop: ResizedCrop | None = group(ResizedCrop, None)
    crop_size: int | None = setting(
        None,
        'Side of the random square crop of training images; with crop_area, the crop is resized to this side.',
        none='the image size',
        unit='pixels',
        at_least=1,
        off='0',
    )
    crop_padding: int = setting(
        0, 'Padding on each side before a random crop without resizing.', unit='pixels', at_least=0
    )
    crop_fill: str = setting(
        'black',
        'Padding: black, the mean color, or a reflection. A policy fills with the mean color if this does, otherwise'
        ' with black.',
        choices=CROP_FILLS,
    )
    horizontal_flip: bool = setting(False, 'Mirror each image with probability 0.5.')
    policy: Policy | None = group(Policy, None)
    color_jitter: tuple[float, ...] = setting(
        (),
        'Ranges of brightness, contrast, saturation and optionally hue: 0.4,0.4,0.4,0.1; the first two also apply to'
        ' images with one channel.',
    )
    function: ImageFunction | None = setting(None, 'User-supplied function of random key and image.', by_value=True)
    lighting: float = setting(
        0.0, "Standard deviation of PCA lighting noise along ImageNet's principal color components: 0.1.", at_least=0
    )
    random_erasing: float = setting(
        0.0, 'Probability of erasing a random box of an image, filled with the mean color.', at_least=0, at_most=1
    )
    cutout: int = setting(
        0, 'Side of a random square of each image that is filled with the mean color.', unit='pixels', at_least=0
    )
    mixup: float = setting(0.0, 'Alpha of mixup, with one mixing coefficient per batch; 0 switches it off.', at_least=0)
    cutmix: float = setting(
        0.0,
        'Alpha of CutMix; 0 switches it off. If mixup is on, too, each batch gets one of the two at random. Training'
        ' metrics use the targets of the first image.',
        at_least=0,
    )

    def check_together(self) -> None:
        """As in Settings."""
        if self.resized_crop is not None and self.crop_padding:
            area = self.resized_crop.crop_area
            raise InputError(f'crop_padding={self.crop_padding} cannot be combined with crop_area={area}')
        if self.crop_fill != 'black' and not self.crop_padding and self.policy is None:
            raise InputError(f'crop_fill={self.crop_fill!r} has no effect without crop_padding or policy')
        if len(self.color_jitter) not in (0, 3, 4) or not all(range_ >= 0 for range_ in self.color_jitter):
            raise InputError(f'color_jitter={self.color_jitter} must be three or four numbers of at least 0, or empty')
        if len(self.color_jitter) == 4 and self.color_jitter[3] > 0.5:
            raise InputError(f'color_jitter={self.color_jitter}: the hue range must be at most 0.5')
        if self.views > 1 and (self.mixup or self.cutmix):
            raise InputError(f'views={self.views} cannot be combined with mixup or cutmix')

    def result_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Computes the shape ``(H, W, C)`` of images after augmentation.

        Args:
          image_shape: ``(H, W, C)`` before augmentation.

        Raises:
          InputError: the augmentation does not support such images.
        """
        height, width, channels = image_shape
        if self.lighting and channels != 3:
            raise InputError(f'lighting={self.lighting} needs images with 3 channels, got {channels}')
        height, width = self._cropped_size(height, width)
        if self.crop_padding >= min(height, width):  # a crop could consist of padding
            raise InputError(
                f'crop_padding={self.crop_padding} must be below {min(height, width)}, the smaller side of the crop'
            )
        if self.cutout >= max(height, width):  # it could erase the whole image
            raise InputError(f'cutout={self.cutout} must be below {max(height, width)}, the larger side of the images')
        if self.random_erasing and min(height, width) == 1:
            raise InputError(
                f'random_erasing={self.random_erasing} has no effect on images of {height} x {width} pixels'
            )
        return (height, width, channels) if self.function is None else self._function_shape(height, width, channels)

    def _cropped_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the crop."""
        if self.crop_size is None:
            return height, width
        room = min(height, width) + 2 * self.crop_padding
        if self.resized_crop is None and self.crop_size > room:
            raise InputError(
                f'crop_size={self.crop_size} must be at most {room}, the smaller side of the padded images; only with'
                ' crop_area can it be larger'
            )
        return self.crop_size, self.crop_size

    def _function_shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Shape of the result of the user-supplied function."""
        assert self.function is not None
        key = jax.eval_shape(jax.random.key, 0)
        found = jax.eval_shape(self.function, key, jax.ShapeDtypeStruct((height, width, channels), jnp.float32))
        shape: Any = getattr(found, 'shape', ())
        dtype = getattr(found, 'dtype', type(found).__name__)
        if shape[2:] != (channels,) or not jnp.issubdtype(dtype, jnp.floating):
            name = getattr(self.function, '__qualname__', self.function)
            raise InputError(f'function={name} must return floats [H, W, {channels}], got {dtype} {list(shape)}')
        return shape


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Normalizes images: ``(image / 255 - mean) / std``.

    Args:
      images: uint8 ``[N, H, W, C]``.
      mean: one value per channel.
      std: one value per channel.

    Returns:
      float32 ``[N, H, W, C]``.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale[None, None, None] - offset[None, None, None]


def pad(images: jax.Array, padding: int, fill: jax.Array | int = 0, reflect: bool = False) -> jax.Array:
    """Pads images, so that a crop of the original size is a translation (He et al. 2015, section 4.2).

    Args:
      images: ``[N, H, W, C]``, any dtype.
      padding: pixels added on each side.
      fill: value of the padding, a scalar or ``[C]``.
      reflect: pad by reflection instead.

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
    """Derives a random key for each example, which depends on epoch, example and copy but not on the batch.

    Args:
      key: key of the run and the purpose.
      epoch: number of the epoch.
      indices: int ``[N]``, indices of the examples.
      copies: int ``[N]``, copy numbers as in ``batches.copy_numbers``.

    Returns:
      Typed random keys ``[N]``.
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
    """Augments and normalizes images.

    The order is: crop, flip, policy, color jitter, the user-supplied function, normalization, lighting, random erasing,
    cutout.

    Args:
      keys: random keys ``[N]``; the random numbers of an image depend on its key only.
      images: uint8 ``[N, H, W, C]``.
      mean: as in ``normalize``.
      std: as in ``normalize``.
      augmentation: the operations; repeats, views, mixup and CutMix are ignored.

    Returns:
      float32 ``[N, H', W', C]``.

    Raises:
      InputError: as ``Augmentation.result_shape``.
    """
    augmentation.result_shape(images.shape[1:])  # raises InputError
    fill: jax.Array | int = 0
    if augmentation.crop_fill == 'mean':
        fill = jnp.round(255 * jnp.asarray(mean, jnp.float32)).astype(jnp.uint8)
    size = augmentation._cropped_size(*images.shape[1:3])
    if augmentation.crop_padding:
        images = pad(images, augmentation.crop_padding, fill, augmentation.crop_fill == 'reflect')
    images = jax.vmap(lambda key, image: _before_normalization(key, image, size, fill, augmentation))(keys, images)
    normalized = normalize(images, mean, std)
    deviations = jnp.asarray(std, jnp.float32)
    return jax.vmap(lambda key, image: _after_normalization(key, image, deviations, augmentation))(keys, normalized)


def augment_views(
    keys: jax.Array, images: jax.Array, mean: Sequence[float], std: Sequence[float], augmentation: Augmentation
) -> list[jax.Array]:
    """Augments each image ``augmentation.views`` times independently; the first view is the result of ``augment``.

    Args:
      keys: as in ``augment``.
      images: likewise.
      mean: likewise.
      std: likewise.
      augmentation: likewise.

    Returns:
      float32 ``[N, H', W', C]`` for each view.

    Raises:
      InputError: as ``Augmentation.result_shape``.
    """

    def keys_of(view: int) -> jax.Array:
        if not view:
            return keys
        return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, _VIEW), view))(keys)

    return [augment(keys_of(view), images, mean, std, augmentation) for view in range(augmentation.views)]


def _before_normalization(
    key: jax.Array, image: jax.Array, size: tuple[int, int], fill: jax.Array | int, augmentation: Augmentation
) -> jax.Array:
    """The operations on uint8 ``[H, W, C]``."""

    def key_of(purpose: int) -> jax.Array:
        return jax.random.fold_in(key, purpose)

    if (crop := augmentation.resized_crop) is not None:
        image = random_ops.random_resized_crop(key_of(_CROP), image, size, crop.crop_area, crop.crop_ratio)
    elif size != image.shape[:2]:
        image = random_ops.random_crop(key_of(_CROP), image, size)
    if augmentation.horizontal_flip:
        image = random_ops.random_flip(key_of(_FLIP), image)
    if (policy := augmentation.policy) is not None:
        drawn = policy.draw(key_of(_POLICY), *size)
        image = apply_operations(image, drawn, fill, policy.policy_interpolation == 'bilinear')
    if any(augmentation.color_jitter):
        image = random_ops.color_jitter(key_of(_JITTER), image, augmentation.color_jitter)
    if augmentation.function is not None:
        image = augmentation.function(key_of(_FUNCTION), image.astype(jnp.float32))
    return image


def _after_normalization(key: jax.Array, image: jax.Array, std: jax.Array, augmentation: Augmentation) -> jax.Array:
    """The operations on normalized float32 ``[H, W, C]``, where zero is the mean color."""
    if augmentation.lighting:  # The shift applies to values in [0, 1], before the division by std.
        shift = random_ops.lighting_shift(jax.random.fold_in(key, _LIGHTING), augmentation.lighting)
        image += (shift / std)[None, None]
    if augmentation.random_erasing:
        image = random_ops.random_erasing(jax.random.fold_in(key, _ERASING), image, augmentation.random_erasing)
    if augmentation.cutout:
        image = random_ops.cutout(jax.random.fold_in(key, _CUTOUT), image, augmentation.cutout)
    return image
