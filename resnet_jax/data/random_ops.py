"""Image operations with random parameters: pure functions of a random key and an image.

The parameters depend only on the key, the settings and the image size, so that under ``jax.vmap`` over keys and images
the result for an image does not depend on its batch. Integers are computed from uniform numbers instead of by
``jax.random.randint``, which hashes twice; the bias is below 2^-23 times the range. Every draw states its dtype: the
default one, and with it the numbers, depends on ``jax_enable_x64``.
"""

import math

import jax
import jax.numpy as jnp

from resnet_jax.data import decode, image_ops

# Number of boxes that are tried, as in torchvision.
_TRIES = 10
# Principal components of ImageNet's colors, with values in [0, 1], and their standard deviations (Krizhevsky et al.
# 2012, section 4.1; values from fb.resnet.torch). Columns are components; rows are red, green and blue.
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_DEVIATIONS = (0.2175, 0.0188, 0.0045)

# Bounds of random erasing, as in torchvision: fraction of the image's area, and ratio of height to width (Zhong et al.
# 2017, arXiv:1708.04896).
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)

# First row, first column, number of rows, number of columns: int32 scalars.
DrawnBox = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def random_crop(key: jax.Array, image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crops an image at a random position.

    Args:
      key: random key.
      image: ``[H, W, C]``.
      size: ``(H', W')``, at most the image's.

    Returns:
      ``[H', W', C]``.
    """
    room = jnp.array([image.shape[0] - size[0], image.shape[1] - size[1]], jnp.int32)
    corner = _to_integers(jax.random.uniform(key, (2,), jnp.float32), room + 1)
    return jax.lax.dynamic_slice(image, (corner[0], corner[1], jnp.int32(0)), (*size, image.shape[2]))


def crop_box(
    key: jax.Array, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> DrawnBox:
    """Draws the box of a random resized crop, as in torchvision's ``RandomResizedCrop``.

    The fraction of the area and the logarithm of the ratio are uniform. The first of ten boxes that fits is used; if
    none fits, the largest central box with an allowed ratio (Szegedy et al. 2014, arXiv:1409.4842, section 6). Unlike
    ``stream.RandomCrop``, which draws boxes one by one on the host in float64, this draws all ten at once, which suits
    compiled code.

    Args:
      key: random key.
      height: of the image.
      width: of the image.
      area: smallest and largest fraction of the image's area.
      ratio: smallest and largest ratio of width to height.

    Returns:
      The box.
    """
    sides_key, place_key = jax.random.split(key)
    wide, high = _draw_sides(sides_key, height * width, area, ratio)
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    middle = decode.Box.centered(height, width, ratio)
    first = jnp.argmax(fits)
    found = jnp.any(fits)
    rows, columns = jnp.where(found, high[first], middle.height), jnp.where(found, wide[first], middle.width)
    room = jnp.stack([height - rows, width - columns])
    corner = jnp.where(found, _to_integers(jax.random.uniform(place_key, (2,), jnp.float32), room + 1), room // 2)
    return corner[0], corner[1], rows, columns


def random_resized_crop(
    key: jax.Array,
    image: jax.Array,
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float] = decode.CROP_RATIO,
) -> jax.Array:
    """Crops an image to the box of ``crop_box`` and resizes it bilinearly, with antialiasing.

    Args:
      key: random key.
      image: uint8 ``[H, W, C]``.
      size: ``(H', W')`` of the result.
      area: as in ``crop_box``.
      ratio: as in ``crop_box``.

    Returns:
      uint8 ``[H', W', C]``.
    """
    height, width, _ = image.shape
    return image_ops.resized_crop(image, *crop_box(key, height, width, area, ratio), size)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors an image ``[H, W, C]`` left to right with probability 0.5."""
    return jnp.where(jax.random.uniform(key, (), jnp.float32) < 0.5, image[:, ::-1], image)


def jitter(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    """Changes brightness, contrast, saturation and hue in a given order, with Pillow's arithmetic.

    Args:
      image: uint8 ``[H, W, C]``; saturation and hue do not change an image with one channel.
      factors: float ``[3]``, the factors of brightness, contrast and saturation, where 1 has no effect; or ``[4]``,
        followed by the hue shift as a fraction of the color circle, in [-0.5, 0.5].
      order: a permutation of the indices of ``factors``.

    Returns:
      uint8 ``[H, W, C]``.
    """

    def enhanced(image: jax.Array, numbers: jax.Array, factors: jax.Array) -> jax.Array:
        # A loop, since XLA would recompute an unrolled chain for each pixel that uses its result.
        return jax.lax.scan(lambda image, step: (_adjust(image, *step), None), image, (numbers, factors))[0]

    if len(factors) == 3:
        return enhanced(image, order, factors[order])
    # Hue is the most expensive and computed once; the others are computed before and after it, once with factor 1.
    place, turns = jnp.argmax(order == 3), jnp.arange(3, dtype=jnp.int32)
    others = order[turns + (turns >= place)]
    image = enhanced(image, others, jnp.where(turns < place, factors[others], 1.0))
    image = image_ops.shift_hue(image, factors[3])
    return enhanced(image, others, jnp.where(turns >= place, factors[others], 1.0))


def jitter_parameters(key: jax.Array, ranges: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
    """Draws factors and order for ``jitter``, as in torchvision's ``ColorJitter``.

    Args:
      key: random key.
      ranges: one number b each for brightness, contrast and saturation, whose factors are uniform in
        [max(0, 1 - b), 1 + b]; with a fourth number above 0, the hue shift is uniform in [-b, b].
    """
    factors_key, order_key = jax.random.split(key)
    low, high = [max(0.0, 1 - b) for b in ranges[:3]], [1 + b for b in ranges[:3]]
    if any(ranges[3:]):
        low, high = [*low, -ranges[3]], [*high, ranges[3]]
    bounds = jnp.array([low, high], jnp.float32)
    factors = jax.random.uniform(factors_key, (len(low),), jnp.float32, bounds[0], bounds[1])
    return factors, jax.random.permutation(order_key, jnp.arange(len(low), dtype=jnp.int32))


def color_jitter(key: jax.Array, image: jax.Array, ranges: tuple[float, ...]) -> jax.Array:
    """Applies ``jitter`` with parameters from ``jitter_parameters``.

    Args:
      key: random key.
      image: uint8 ``[H, W, C]``.
      ranges: as in ``jitter_parameters``.

    Returns:
      uint8 ``[H, W, C]``.
    """
    return jitter(image, *jitter_parameters(key, ranges))


def lighting_shift(key: jax.Array, deviation: float) -> jax.Array:
    """Draws PCA lighting noise (Krizhevsky et al. 2012, section 4.1, as in fb.resnet.torch).

    Args:
      key: random key.
      deviation: standard deviation of the noise along ImageNet's principal color components, relative to theirs; 0.1
        in both sources.

    Returns:
      The shift of red, green and blue for values in [0, 1], float32 ``[3]``.
    """
    shares = deviation * jax.random.normal(key, (3,), jnp.float32) * jnp.array(_DEVIATIONS, jnp.float32)
    return jnp.sum(jnp.array(_COMPONENTS, jnp.float32) * shares[None], axis=1)


def erasing_box(key: jax.Array, height: int, width: int) -> DrawnBox:
    """Draws the box of random erasing as in torchvision's ``RandomErasing``; empty if none of ten boxes fits."""
    sides_key, place_key = jax.random.split(key)
    high, wide = _draw_sides(sides_key, height * width, ERASED_AREA, ERASED_RATIO)
    fits = (high < height) & (wide < width)
    first = jnp.argmax(fits)
    rows, columns = (jnp.where(jnp.any(fits), sides[first], 0) for sides in (high, wide))
    room = jnp.stack([height - rows, width - columns])
    corner = _to_integers(jax.random.uniform(place_key, (2,), jnp.float32), room + 1)
    return corner[0], corner[1], rows, columns


def random_erasing(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Sets the box of ``erasing_box`` to zero with a given probability, in an image ``[H, W, C]``."""
    happens, box_key = jax.random.split(key)
    top, left, rows, columns = erasing_box(box_key, *image.shape[:2])
    rows = jnp.where(jax.random.uniform(happens, (), jnp.float32) < probability, rows, 0)
    return _erase(image, (top, left, rows, columns))


def cutout(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
    """Sets a square with a random center to zero (DeVries and Taylor 2017, arXiv:1708.04552, section 3.2).

    The square is clipped to the image, so that less is erased at the border. Odd sides are kept; the authors' code
    rounds them down to even.

    Args:
      key: random key.
      image: ``[H, W, C]``.
      side: in pixels.

    Returns:
      ``[H, W, C]``.
    """
    middle = _to_integers(jax.random.uniform(key, (2,), jnp.float32), jnp.array(image.shape[:2], jnp.int32))
    length = jnp.int32(side)
    return _erase(image, (middle[0] - side // 2, middle[1] - side // 2, length, length))


def _erase(image: jax.Array, box: DrawnBox) -> jax.Array:
    top, left, rows, columns = box
    row, column = (jnp.arange(size, dtype=jnp.int32) for size in image.shape[:2])
    inside = ((row >= top) & (row < top + rows))[:, None] & ((column >= left) & (column < left + columns))[None]
    return jnp.where(inside[..., None], 0, image)


def _adjust(image: jax.Array, number: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes brightness, contrast or saturation (0, 1, 2): blends with black, the mean gray or the gray image."""
    light = image_ops.gray(image)
    flat = jnp.where(number == 0, 0, image_ops.mean_gray(light))
    degenerate = jnp.where(number == 2, light, flat)
    return image_ops.blend(degenerate[..., None], image, factor)


def _draw_sides(
    key: jax.Array, pixels: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Draws the sides of boxes, int32 ``[_TRIES]`` each; ``ratio`` is that of the first side to the second."""
    shares, logarithms = jax.random.uniform(key, (2, _TRIES), jnp.float32)
    drawn = pixels * (area[0] + shares * (area[1] - area[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    stretch = jnp.exp(low + logarithms * (high - low))
    return jnp.round(jnp.sqrt(drawn * stretch)).astype(jnp.int32), jnp.round(jnp.sqrt(drawn / stretch)).astype(
        jnp.int32
    )


def _to_integers(uniform: jax.Array, bounds: jax.Array) -> jax.Array:
    """Converts uniform numbers in [0, 1) to integers in [0, bound), of the same shape."""
    return jnp.minimum((uniform * bounds).astype(jnp.int32), bounds - 1)
