"""Pillow's operations on images as pure JAX functions: they jit, vmap and run where the images are.

Every function takes one image, uint8 ``[H, W, C]`` with 1 or 3 channels, and gives one of the same kind; magnitudes may
be traced. Most are one of three things, so that a policy that draws operations at random computes each of the three
once instead of every operation (``data/policies.py``): an affine map of the coordinates, a table of 256 values for
each channel, or a blend with a degenerate image.
"""

import jax
import jax.numpy as jnp

# Luma of ITU-R 601-2 of red, green and blue in parts of 2^16, as in Pillow's conversion to L.
_LUMA = (19595, 38470, 7471)
_FIXED = 1 << 16
# Weights of a resize are multiples of 2^-15 (Pillow's: 2^-22): sums of their products with pixels are exact in float32,
# and so the same in whichever order a platform, or a batch of another size, adds them up.
_WEIGHT_LEVELS = 1 << 15


def gray(image: jax.Array) -> jax.Array:
    """Brightness, int32 ``[H, W]``: Pillow's ``convert('L')``."""
    wide = image.astype(jnp.int32)
    if image.shape[-1] == 1:
        return wide[..., 0]
    # A product, not a sum of three: XLA would compute the sum again for every channel that it is used in.
    return (wide @ jnp.array(_LUMA, jnp.int32) + (1 << 15)) >> 16


def mean_gray(light: jax.Array) -> jax.Array:
    """The mean of ``gray``, rounded half up: int32 ``[]``."""
    return (2 * jnp.sum(light) + light.size) // (2 * light.size)


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """``degenerate + factor (image - degenerate)``, cut to 0 .. 255 and rounded down: Pillow's ``Image.blend``."""
    low, high = degenerate.astype(jnp.float32), image.astype(jnp.float32)
    # The maximum changes nothing; without it a compiler may multiply and add with one rounding instead of Pillow's two.
    change = jnp.maximum(factor * (high - low), -_FIXED)
    return jnp.clip(low + change, 0, 255).astype(jnp.uint8)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Saturation: 0 gray, 1 the image, above 1 more."""
    return blend(gray(image)[..., None], image, factor)


def smooth(image: jax.Array) -> jax.Array:
    """Pillow's ``ImageFilter.SMOOTH``: the mean over 3 x 3 pixels, the middle one five times; a border of one stays."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """0 smooth, 1 the image, above 1 sharper."""
    return blend(smooth(image), image, factor)


def apply_table(image: jax.Array, table: jax.Array) -> jax.Array:
    """Every value replaced by its entry: uint8 table ``[256]`` or ``[C, 256]``."""
    if table.ndim == 1:
        return table[image]
    return jnp.stack([table[channel][image[..., channel]] for channel in range(image.shape[-1])], axis=-1)


def brightness_table(factor: jax.Array) -> jax.Array:
    """0 black, 1 the image, above 1 brighter: ``[256]``."""
    values = jnp.arange(256)
    return blend(jnp.zeros_like(values), values, factor)


def contrast_table(image: jax.Array, factor: jax.Array) -> jax.Array:
    """0 the mean gray, 1 the image, above 1 more contrast: ``[256]``."""
    values = jnp.arange(256)
    return blend(jnp.full_like(values, mean_gray(gray(image))), values, factor)


def posterize_table(bits: jax.Array) -> jax.Array:
    """Only the highest so many bits, 0 to 8: ``[256]``."""
    return (jnp.arange(256) & ~((1 << (8 - bits)) - 1)).astype(jnp.uint8)


def solarize_table(threshold: jax.Array) -> jax.Array:
    """Values from the threshold on are inverted: ``[256]``; 256 changes nothing, 0 inverts all."""
    values = jnp.arange(256)
    return jnp.where(values < threshold, values, 255 - values).astype(jnp.uint8)


def solarize_add_table(addition: jax.Array, threshold: int = 128) -> jax.Array:
    """Values below the threshold become larger: ``[256]``."""
    values = jnp.arange(256)
    return jnp.where(values < threshold, jnp.minimum(values + addition, 255), values).astype(jnp.uint8)


def autocontrast_table(image: jax.Array) -> jax.Array:
    """The darkest value of each channel becomes 0, the brightest 255: ``[C, 256]``."""
    low, high = (reduce(image, axis=(0, 1)).astype(jnp.int32)[:, None] for reduce in (jnp.min, jnp.max))
    values = jnp.arange(256)[None]
    stretched = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, values).astype(jnp.uint8)


def equalize_table(image: jax.Array) -> jax.Array:
    """Makes the histogram of each channel flat: ``[C, 256]``."""

    def table(channel: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[channel.ravel()].add(1)
        last = counts[jnp.max(channel)]
        step = (channel.size - last) // 255
        before = jnp.cumsum(counts) - counts
        equalized = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, equalized, jnp.arange(256)).astype(jnp.uint8)

    return jnp.stack([table(image[..., channel]) for channel in range(image.shape[-1])])


def affine(image: jax.Array, matrix: jax.Array, fill: jax.Array | int = 0, bilinear: bool = False) -> jax.Array:
    """Pillow's ``transform(size, AFFINE, matrix)``.

    Args:
      image: uint8 ``[H, W, C]``.
      matrix: float ``[6]``: the pixel at column x and row y comes from column ``a x + b y + c``, row ``d x + e y + f``,
        all at the middle of pixels.
      fill: value of what comes from outside, one or ``[C]``.
      bilinear: mix the four nearest pixels instead of taking the nearest.

    Returns:
      uint8 ``[H, W, C]``. Nearest pixels are Pillow's to the bit (it computes in 16 fractional bits), bilinear ones but
      for rounding, by one at most.
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
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
    columns = a * (x + 0.5) + b * (y + 0.5) + c
    rows = d * (x + 0.5) + e * (y + 0.5) + f
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
    """Shear: ``[6]`` for ``affine``, around the upper left corner, as in AutoAugment."""
    one, zero = jnp.ones(()), jnp.zeros(())
    return jnp.stack([one, along_x, zero, along_y, one, zero])


def translation_matrix(along_x: jax.Array, along_y: jax.Array) -> jax.Array:
    """Shift by pixels: ``[6]`` for ``affine``; a positive one shows what lies to the right of, or below, the image."""
    one, zero = jnp.ones(()), jnp.zeros(())
    return jnp.stack([one, zero, along_x, zero, one, along_y])


def rotation_matrix(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Rotation around the middle, against the clock: ``[6]`` for ``affine``."""
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
    """A part of the image, resized: Pillow's ``crop`` and then ``resize`` with antialiasing.

    Args:
      image: uint8 ``[H, W, C]``.
      top: first row of the part, an integer.
      left: first column.
      height: rows of the part, at least 1.
      width: columns.
      size: ``(H', W')`` of the result.
      cubic: bicubic (a = -0.5) instead of bilinear.

    Returns:
      uint8 ``[H', W', C]``, Pillow's but for rounding by one.
    """
    across = _resize_weights(image.shape[1], left, width, size[1], cubic)
    down = _resize_weights(image.shape[0], top, height, size[0], cubic)
    # Columns first, and rounded in between, as Pillow does it.
    narrow = _rounded(jnp.einsum('ow,hwc->hoc', across, image.astype(jnp.float32), precision='highest'))
    return _rounded(jnp.einsum('oh,hwc->owc', down, narrow, precision='highest')).astype(jnp.uint8)


def _rounded(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)


def _resize_weights(size: int, start: jax.Array, length: jax.Array, result: int, cubic: bool) -> jax.Array:
    """Share of each of ``size`` pixels in each of the ``result`` ones, float32 ``[result, size]``."""
    scale = length / result
    stretch = jnp.maximum(scale, 1.0)
    centers = (jnp.arange(result) + 0.5) * scale
    pixels = jnp.arange(size)
    distance = jnp.abs(pixels[None] - start + 0.5 - centers[:, None]) / stretch
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
    """The hue turned by a share of the circle, in [-0.5, 0.5], in Pillow's HSV with 256 hues; gray stays as it is."""
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
