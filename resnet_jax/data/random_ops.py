"""Operations whose parameters are drawn: pure functions of one image's key and of the image.

What is drawn depends on the key, on the settings and on the image's size alone, so that ``jax.vmap`` over keys and
images gives each image the same in any batch. Integers are drawn as parts of a uniform number instead of by
``jax.random.randint``, which hashes twice for them; the bias is below 2^-23 times their number.
"""

import math

import jax
import jax.numpy as jnp

from resnet_jax.data import decode, image_ops

# Boxes that are tried before one gives up, as in torchvision.
_TRIES = 10
# Principal components of ImageNet's colours, values in [0, 1], and their standard deviations (Krizhevsky et al. 2012,
# section 4.1; numbers of fb.resnet.torch). A column is a component, a row is red, green, or blue.
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_DEVIATIONS = (0.2175, 0.0188, 0.0045)

# Of random erasing: shares of the image's area, and ratios of height to width (Zhong et al. 2017, arXiv:1708.04896;
# the bounds are torchvision's).
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)

# First row, first column, rows, columns: int32, each of shape [].
DrawnBox = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def random_crop(key: jax.Array, image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A part of the image ``[H, W, C]`` at a random place: ``[H', W', C]`` of ``size``, at most that of the image."""
    room = jnp.array([image.shape[0] - size[0], image.shape[1] - size[1]])
    corner = _integers(jax.random.uniform(key, (2,)), room + 1)
    return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (*size, image.shape[2]))


def crop_box(
    key: jax.Array, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> DrawnBox:
    """The part of an image that a random-resized crop takes, drawn as by torchvision's ``RandomResizedCrop``.

    The share of the area is uniform, the logarithm of the ratio too; the first of ten boxes that fit is taken, and the
    largest box in the middle with an allowed ratio if none does (Szegedy et al. 2014, arXiv:1409.4842, section 6).
    ``stream.RandomCrop`` draws one box after the other on the host, in float64; here all are drawn at once, as compiled
    code wants it, so that only the box in the middle is the same function.

    Args:
      key: random key.
      height: of the image.
      width: of the image.
      area: smallest and largest share of the image's area.
      ratio: smallest and largest ratio of width to height.
    """
    sides_key, place_key = jax.random.split(key)
    wide, high = _sides(sides_key, height * width, area, ratio)
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    middle = decode.Box.centered(height, width, ratio)
    first = jnp.argmax(fits)
    found = jnp.any(fits)
    rows, columns = jnp.where(found, high[first], middle.height), jnp.where(found, wide[first], middle.width)
    room = jnp.stack([height - rows, width - columns])
    corner = jnp.where(found, _integers(jax.random.uniform(place_key, (2,)), room + 1), room // 2)
    return corner[0], corner[1], rows, columns


def random_resized_crop(
    key: jax.Array,
    image: jax.Array,
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float] = decode.CROP_RATIO,
) -> jax.Array:
    """``crop_box`` of a uint8 ``[H, W, C]`` image, resized bilinearly with antialiasing: uint8 ``[H', W', C]``."""
    height, width, _ = image.shape
    return image_ops.resized_crop(image, *crop_box(key, height, width, area, ratio), size)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """The image ``[H, W, C]`` mirrored left to right with probability one half."""
    return jnp.where(jax.random.uniform(key) < 0.5, image[:, ::-1], image)


def jitter(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    """Brightness, contrast, saturation and hue changed one after the other, with Pillow's arithmetic.

    Args:
      image: uint8 ``[H, W, C]``; saturation and hue leave an image of one channel as it is.
      factors: float ``[3]`` of brightness, contrast and saturation, 1 changing nothing; or ``[4]``, with the share of
        the circle by which the hue is turned, in [-0.5, 0.5].
      order: a permutation of the numbers of the factors, as many.
    """

    def enhanced(image: jax.Array, numbers: jax.Array, factors: jax.Array) -> jax.Array:
        # A loop: XLA would compute an unrolled chain again and again, once for each pixel that it is used in.
        return jax.lax.scan(lambda image, step: (_enhanced(image, *step), None), image, (numbers, factors))[0]

    if len(factors) == 3:
        return enhanced(image, order, factors[order])
    # The hue costs most and happens once; the others are computed before and after it, in one of both with factor 1.
    place, turns = jnp.argmax(order == 3), jnp.arange(3)
    others = order[turns + (turns >= place)]
    image = enhanced(image, others, jnp.where(turns < place, factors[others], 1.0))
    image = image_ops.shift_hue(image, factors[3])
    return enhanced(image, others, jnp.where(turns >= place, factors[others], 1.0))


def jitter_parameters(key: jax.Array, ranges: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
    """Factors and order for ``jitter``, drawn as by torchvision's ``ColorJitter``.

    Args:
      key: random key.
      ranges: b for brightness, contrast and saturation, whose factors are uniform in [max(0, 1 - b), 1 + b]; where
        there is a fourth above 0, the hue is uniform in [-b, b].
    """
    factors_key, order_key = jax.random.split(key)
    low, high = [max(0.0, 1 - b) for b in ranges[:3]], [1 + b for b in ranges[:3]]
    if any(ranges[3:]):
        low, high = [*low, -ranges[3]], [*high, ranges[3]]
    bounds = jnp.array([low, high], jnp.float32)
    factors = jax.random.uniform(factors_key, (len(low),), minval=bounds[0], maxval=bounds[1])
    return factors, jax.random.permutation(order_key, len(low))


def color_jitter(key: jax.Array, image: jax.Array, ranges: tuple[float, ...]) -> jax.Array:
    """``jitter`` of a uint8 ``[H, W, C]`` image by what ``jitter_parameters`` draws."""
    return jitter(image, *jitter_parameters(key, ranges))


def lighting_shift(key: jax.Array, deviation: float) -> jax.Array:
    """What is added to red, green and blue, values in [0, 1]: float32 ``[3]``.

    Noise along the principal components of ImageNet's colours, in shares of their standard deviations: Krizhevsky et
    al. 2012, section 4.1, as in fb.resnet.torch; both have ``deviation`` 0.1.
    """
    shares = deviation * jax.random.normal(key, (3,)) * jnp.array(_DEVIATIONS)
    return jnp.sum(jnp.array(_COMPONENTS) * shares[None], axis=1)


def erasing_box(key: jax.Array, height: int, width: int) -> DrawnBox:
    """The box of random erasing, drawn as by torchvision's ``RandomErasing``; an empty one if none of ten fits."""
    sides_key, place_key = jax.random.split(key)
    high, wide = _sides(sides_key, height * width, ERASED_AREA, ERASED_RATIO)
    fits = (high < height) & (wide < width)
    first = jnp.argmax(fits)
    rows, columns = (jnp.where(jnp.any(fits), sides[first], 0) for sides in (high, wide))
    room = jnp.stack([height - rows, width - columns])
    corner = _integers(jax.random.uniform(place_key, (2,)), room + 1)
    return corner[0], corner[1], rows, columns


def random_erasing(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Zero in the box of ``erasing_box``, with this probability: ``[H, W, C]`` to the same."""
    happens, box_key = jax.random.split(key)
    top, left, rows, columns = erasing_box(box_key, *image.shape[:2])
    rows = jnp.where(jax.random.uniform(happens) < probability, rows, 0)
    return _erased(image, (top, left, rows, columns))


def cutout(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
    """Zero in a square whose middle is anywhere in the image: ``[H, W, C]`` to the same.

    What lies outside of the image is cut off, so that less is erased at the border (DeVries and Taylor 2017,
    arXiv:1708.04552, section 3.2). A square with an odd side has its middle pixel in the middle; the authors' program
    takes the next smaller even side.
    """
    middle = _integers(jax.random.uniform(key, (2,)), jnp.array(image.shape[:2], jnp.int32))
    length = jnp.int32(side)
    return _erased(image, (middle[0] - side // 2, middle[1] - side // 2, length, length))


def _erased(image: jax.Array, box: DrawnBox) -> jax.Array:
    top, left, rows, columns = box
    row, column = (jnp.arange(size) for size in image.shape[:2])
    inside = ((row >= top) & (row < top + rows))[:, None] & ((column >= left) & (column < left + columns))[None]
    return jnp.where(inside[..., None], 0, image)


def _enhanced(image: jax.Array, number: jax.Array, factor: jax.Array) -> jax.Array:
    """Brightness, contrast or saturation, by number: a blend with black, with the mean gray, or with the gray image."""
    light = image_ops.gray(image)
    flat = jnp.where(number == 0, 0, image_ops.mean_gray(light))
    degenerate = jnp.where(number == 2, light, flat)
    return image_ops.blend(degenerate[..., None], image, factor)


def _sides(
    key: jax.Array, pixels: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Sides of boxes, int32 ``[_TRIES]`` each; the ratio is that of the first to the second."""
    shares, logarithms = jax.random.uniform(key, (2, _TRIES))
    drawn = pixels * (area[0] + shares * (area[1] - area[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    stretch = jnp.exp(low + logarithms * (high - low))
    return jnp.round(jnp.sqrt(drawn * stretch)).astype(jnp.int32), jnp.round(jnp.sqrt(drawn / stretch)).astype(
        jnp.int32
    )


def _integers(uniform: jax.Array, bounds: jax.Array) -> jax.Array:
    """Integers in [0, bound) from uniform numbers in [0, 1), of the same shape."""
    return jnp.minimum((uniform * bounds).astype(jnp.int32), bounds - 1)
