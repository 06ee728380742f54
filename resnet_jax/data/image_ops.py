"""Pillow's image operations as pure JAX functions, which can be jitted and vmapped and run on the device.

Images are uint8 ``[H, W, C]`` with 1 or 3 channels; magnitudes may be traced. Most operations are one of three kinds:
an affine map of the coordinates, a lookup table of 256 values per channel, or a blend with a degenerate image. A policy
that draws operations at random thus computes each kind once instead of every operation (``data/policies.py``).
"""

import jax
import jax.numpy as jnp

# ITU-R 601-2 luma weights of red, green and blue, times 2^16, as in Pillow's conversion to L.
_LUMA = (19595, 38470, 7471)
_FIXED = 1 << 16
# Resize weights are multiples of 2^-15 (2^-22 in Pillow), so that sums of their products with pixels are exact in
# float32 and do not depend on the order of summation, which varies with platform and batch size.
_WEIGHT_LEVELS = 1 << 15


def gray(image: jax.Array) -> jax.Array:
    """Computes the brightness, int32 ``[H, W]``, as Pillow's ``convert('L')``."""
    wide = image.astype(jnp.int32)
    if image.shape[-1] == 1:
        return wide[..., 0]
    # A matrix product: XLA would recompute a sum of three terms for every channel that uses it.
    return (wide @ jnp.array(_LUMA, jnp.int32) + (1 << 15)) >> 16


def mean_gray(light: jax.Array) -> jax.Array:
    """Computes the mean of ``gray``'s result, rounded half up: int32 ``[]``."""
    return (2 * jnp.sum(light, dtype=jnp.int32) + light.size) // (2 * light.size)


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's ``Image.blend``: ``degenerate + factor (image - degenerate)``, clipped to 0 .. 255 and rounded down.

    Args:
      degenerate: values from 0 to 255, of a shape that broadcasts with ``image``.
      image: values from 0 to 255.
      factor: scalar; 0 gives ``degenerate``, 1 ``image``.

    Returns:
      uint8.
    """
    low, high = degenerate.astype(jnp.float32), image.astype(jnp.float32)
    # The maximum never changes a value; it prevents a fused multiply-add, which rounds only once (Pillow: twice).
    change = jnp.maximum(factor * (high - low), -_FIXED)
    return jnp.clip(low + change, 0, 255).astype(jnp.uint8)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the saturation: factor 0 gives gray, 1 the image, above 1 more saturation."""
    return blend(gray(image)[..., None], image, factor)


def smooth(image: jax.Array) -> jax.Array:
    """Pillow's ``ImageFilter.SMOOTH``: a 3 x 3 mean with weight 5 at the center; border pixels are unchanged."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Changes the sharpness: factor 0 gives the smoothed image, 1 the image, above 1 more sharpness."""
    return blend(smooth(image), image, factor)


def apply_table(image: jax.Array, table: jax.Array) -> jax.Array:
    """Looks up every pixel value in a uint8 table ``[256]`` or ``[C, 256]``."""
    if table.ndim == 1:
        return table[image]
    return jnp.stack([table[channel][image[..., channel]] for channel in range(image.shape[-1])], axis=-1)


def brightness_table(factor: jax.Array) -> jax.Array:
    """Table ``[256]`` of brightness: factor 0 gives black, 1 the image, above 1 more brightness."""
    values = jnp.arange(256, dtype=jnp.int32)
    return blend(jnp.zeros_like(values), values, factor)


def contrast_table(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Table ``[256]`` of contrast: factor 0 gives the mean gray, 1 the image, above 1 more contrast."""
    values = jnp.arange(256, dtype=jnp.int32)
    return blend(jnp.full_like(values, mean_gray(gray(image))), values, factor)


def posterize_table(bits: jax.Array) -> jax.Array:
    """Table ``[256]`` that keeps only the highest ``bits`` bits, 0 to 8."""
    return (jnp.arange(256, dtype=jnp.int32) & ~((1 << (8 - bits)) - 1)).astype(jnp.uint8)


def solarize_table(threshold: jax.Array) -> jax.Array:
    """Table ``[256]`` that inverts values of at least the threshold; 256 inverts none, 0 inverts all."""
    values = jnp.arange(256, dtype=jnp.int32)
    return jnp.where(values < threshold, values, 255 - values).astype(jnp.uint8)


def solarize_add_table(addition: jax.Array, threshold: int = 128) -> jax.Array:
    """Table ``[256]`` that adds to values below the threshold, clipped to 255."""
    values = jnp.arange(256, dtype=jnp.int32)
    return jnp.where(values < threshold, jnp.minimum(values + addition, 255), values).astype(jnp.uint8)


def autocontrast_table(image: jax.Array) -> jax.Array:
    """Table ``[C, 256]`` that stretches each channel so that its smallest value is 0 and its largest 255."""
    low, high = (reduce(image, axis=(0, 1)).astype(jnp.int32)[:, None] for reduce in (jnp.min, jnp.max))
    values = jnp.arange(256, dtype=jnp.int32)[None]
    stretched = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, values).astype(jnp.uint8)


def equalize_table(image: jax.Array) -> jax.Array:
    """Table ``[C, 256]`` that equalizes the histogram of each channel."""

    def table(channel: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[channel.ravel()].add(1)
        last = counts[jnp.max(channel)]
        step = (channel.size - last) // 255
        before = jnp.cumsum(counts, dtype=jnp.int32) - counts
        equalized = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, equalized, jnp.arange(256, dtype=jnp.int32)).astype(jnp.uint8)

    return jnp.stack([table(image[..., channel]) for channel in range(image.shape[-1])])


def affine(image: jax.Array, matrix: jax.Array, fill: jax.Array | int = 0, bilinear: bool = False) -> jax.Array:
    """Pillow's ``transform(size, AFFINE, matrix)``.

    Args:
      image: uint8 ``[H, W, C]``.
      matrix: float ``[6]``, a to f: the pixel at column x and row y is read from column ``a x + b y + c`` and row
        ``d x + e y + f``, in coordinates of pixel centers.
      fill: value of pixels outside of the image, a scalar or ``[C]``.
      bilinear: whether to interpolate bilinearly instead of reading the nearest pixel.

    Returns:
      uint8 ``[H, W, C]``. Nearest pixels are bit-identical to Pillow's, which computes with 16 fractional bits;
      bilinear values differ by rounding, by at most 1.
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width, dtype=jnp.int32)[None, :], jnp.arange(height, dtype=jnp.int32)[:, None]
    a, b, c, d, e, f = matrix
    fill = jnp.broadcast_to(jnp.asarray(fill, jnp.uint8), image.shape[-1:])
    if not bilinear:
        fixed = [jnp.floor(value * _FIXED + 0.5).astype(jnp.int32) for value in (a, b, d, e)]
        starts = [c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5]
        first = [jnp.floor(start * _FIXED + 0.5).astype(jnp.int32) for start in starts]
        column = (first[0] + x * fixed[0] + y * fixed[1]) >> 16
        row = (first[1] + x * fixed[2] + y * fixed[3]) >> 16
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        found = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
        return jnp.where(inside[..., None], found, fill)
    across, down = x.astype(jnp.float32) + 0.5, y.astype(jnp.float32) + 0.5
    columns, rows = a * across + b * down + c, d * across + e * down + f
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    left, top = jnp.floor(columns - 0.5), jnp.floor(rows - 0.5)
    right_share, low_share = (columns - 0.5 - left)[..., None], (rows - 0.5 - top)[..., None]

    def pixel(row: jax.Array, column: jax.Array) -> jax.Array:
        place = jnp.clip(row, 0, height - 1).astype(jnp.int32), jnp.clip(column, 0, width - 1).astype(jnp.int32)
        return image[place].astype(jnp.float32)

    upper = pixel(top, left) * (1 - right_share) + pixel(top, left + 1) * right_share
    lower = pixel(top + 1, left) * (1 - right_share) + pixel(top + 1, left + 1) * right_share
    mixed = upper * (1 - low_share) + lower * low_share
    return jnp.where(inside[..., None], mixed.astype(jnp.uint8), fill)


def shear_matrix(along_x: jax.Array, along_y: jax.Array) -> jax.Array:
    """Matrix ``[6]`` for ``affine`` of a shear around the upper left corner, as in AutoAugment."""
    one, zero = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    return jnp.stack([one, along_x, zero, along_y, one, zero])


def translation_matrix(along_x: jax.Array, along_y: jax.Array) -> jax.Array:
    """Matrix ``[6]`` for ``affine`` of a shift in pixels; positive shifts move the content left or up."""
    one, zero = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    return jnp.stack([one, zero, along_x, zero, one, along_y])


def rotation_matrix(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Matrix ``[6]`` for ``affine`` of a counterclockwise rotation around the center."""
    angle = -jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    center_x, center_y = width / 2, height / 2
    across = center_x - cos * center_x - sin * center_y
    down = center_y + sin * center_x - cos * center_y
    return jnp.stack([cos, sin, across, -sin, cos, down])


def resized_crop(
    image: jax.Array,
    top: jax.Array,
    left: jax.Array,
    height: jax.Array,
    width: jax.Array,
    size: tuple[int, int],
    cubic: bool = False,
) -> jax.Array:
    """Crops an image and resizes the crop: Pillow's ``crop`` and ``resize``, with antialiasing.

    Args:
      image: uint8 ``[H, W, C]``.
      top: first row of the crop, an integer.
      left: first column.
      height: number of rows, at least 1.
      width: number of columns, at least 1.
      size: ``(H', W')`` of the result.
      cubic: whether to use bicubic (a = -0.5) instead of bilinear interpolation.

    Returns:
      uint8 ``[H', W', C]``, which differs from Pillow's by at most 1, or 2 if cubic, by rounding after each axis.
    """
    across = _resize_weights(image.shape[1], left, width, size[1], cubic)
    down = _resize_weights(image.shape[0], top, height, size[0], cubic)
    # Columns first, with rounding in between, as in Pillow.
    narrow = _rounded(jnp.einsum('ow,hwc->hoc', across, image.astype(jnp.float32), precision='highest'))
    return _rounded(jnp.einsum('oh,hwc->owc', down, narrow, precision='highest')).astype(jnp.uint8)


def _rounded(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)


def _resize_weights(size: int, start: jax.Array, length: jax.Array, result: int, cubic: bool) -> jax.Array:
    """Weights of ``size`` input pixels in each of ``result`` output pixels, float32 ``[result, size]``."""
    scale = jnp.asarray(length, jnp.float32) / result
    stretch = jnp.maximum(scale, 1.0)
    centers = (jnp.arange(result, dtype=jnp.float32) + 0.5) * scale
    pixels = jnp.arange(size, dtype=jnp.int32)
    distance = jnp.abs((pixels[None] - start).astype(jnp.float32) + 0.5 - centers[:, None]) / stretch
    if cubic:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))
    else:
        weights = jnp.maximum(1 - distance, 0.0)
    weights = jnp.where((pixels >= start) & (pixels < start + length), weights, 0.0)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return jnp.round(weights * _WEIGHT_LEVELS) / _WEIGHT_LEVELS


def shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Shifts the hue, in Pillow's HSV with 256 hues; gray pixels are unchanged.

    Args:
      image: uint8 ``[H, W, C]``; an image with one channel is returned unchanged.
      shift: fraction of the color circle, in [-0.5, 0.5].
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., channel].astype(jnp.float32) for channel in range(3))
    high, low = jnp.max(image, -1).astype(jnp.float32), jnp.min(image, -1).astype(jnp.float32)
    span = jnp.maximum(high - low, 1)
    parts = [(high - channel) / span for channel in (red, green, blue)]
    hue = jnp.where(
        red == high,
        parts[2] - parts[1],
        jnp.where(green == high, 2 + parts[0] - parts[2], 4 + parts[1] - parts[0]),
    )
    hue = jnp.floor(jnp.mod(hue / 6 + 1, 1.0) * 255)
    saturation = jnp.floor((high - low) / jnp.maximum(high, 1) * 255)
    hue = jnp.mod(hue + jnp.trunc(shift * 255), 256)
    colored = _from_hsv(hue, saturation, high)
    return jnp.where((high > low)[..., None], colored, image)


def _from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    sixth = hue * 6 / 255
    sector = jnp.floor(sixth)
    rest, share = sixth - sector, saturation / 255
    fallen, falling, rising = (
        jnp.clip(jnp.floor(value * (1 - share * part) + 0.5), 0, 255) for part in (1.0, rest, 1 - rest)
    )
    sectors = [
        (value, rising, fallen),
        (falling, value, fallen),
        (fallen, value, rising),
        (fallen, falling, value),
        (rising, fallen, value),
        (value, fallen, falling),
    ]
    sector = jnp.mod(sector, 6)[..., None]
    result = jnp.stack(sectors[0], -1)
    for number, channels in enumerate(sectors[1:], 1):
        result = jnp.where(sector == number, jnp.stack(channels, -1), result)
    return result.astype(jnp.uint8)
