"""Published augmentation policies, which draw the operations for an image at random.

A policy draws operation numbers and magnitudes, which ``apply_operations`` applies. The magnitudes are those of
torchvision's classes of the same name, and of timm's ``rand-m7-mstd0.5-inc1`` and similar.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from resnet_jax.data import image_ops

# Affine operations first: their numbers are their rows in the table of matrices.
OPERATIONS = (
    *('identity', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate'),
    *('brightness', 'contrast', 'posterize', 'solarize', 'solarize_add', 'autocontrast', 'equalize', 'invert'),
    *('color', 'sharpness'),
)
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_FIRST_TABLE, _FIRST_BLEND = _NUMBER['brightness'], _NUMBER['color']

# Tolerance for magnitudes that are integers up to float32 rounding.
_TOLERANCE = 1e-3

# Operation numbers and magnitudes drawn for one image, both [L], applied in order.
Drawn = tuple[jax.Array, jax.Array]
# Maps a random key, height and width to the operations for an image.
PolicyFunction = Callable[[jax.Array, int, int], Drawn]


def apply_operations(image: jax.Array, drawn: Drawn, fill: jax.Array | int = 0, bilinear: bool = False) -> jax.Array:
    """Applies the operations that a policy drew.

    Args:
      image: uint8 ``[H, W, C]``.
      drawn: positions in ``OPERATIONS`` and magnitudes. The unit of a magnitude depends on the operation: the slope of
        a shear, the pixels of a translation, the degrees of a rotation, the factor of brightness, contrast, color and
        sharpness, the bits of posterize, the threshold of solarize, or the addend of solarize_add.
      fill: value of pixels outside of the image, a scalar or ``[C]``.
      bilinear: whether affine maps interpolate bilinearly.

    Returns:
      uint8 ``[H, W, C]``.
    """

    def step(image: jax.Array, drawn: Drawn) -> tuple[jax.Array, None]:
        return _apply(image, *drawn, fill, bilinear), None

    return jax.lax.scan(step, image, drawn)[0]  # compiled once, without fusion across operations


def _apply(
    image: jax.Array, operation: jax.Array, magnitude: jax.Array, fill: jax.Array | int, bilinear: bool
) -> jax.Array:
    """Applies one operation. All kinds are computed; those that were not drawn have no effect."""
    height, width, channels = image.shape
    zero = jnp.zeros((), jnp.float32)
    matrices = jnp.stack(
        [
            image_ops.shear_matrix(zero, zero),
            image_ops.shear_matrix(magnitude, zero),
            image_ops.shear_matrix(zero, magnitude),
            image_ops.translation_matrix(magnitude, zero),
            image_ops.translation_matrix(zero, magnitude),
            image_ops.rotation_matrix(magnitude, height, width),
        ]
    )
    whole = magnitude.astype(jnp.int32)
    single = [
        image_ops.brightness_table(magnitude),
        image_ops.contrast_table(image, magnitude),
        image_ops.posterize_table(jnp.clip(whole, 0, 8)),
        image_ops.solarize_table(jnp.ceil(magnitude - _TOLERANCE)),
        image_ops.solarize_add_table(whole),
    ]
    tables = [jnp.broadcast_to(table, (channels, 256)) for table in single]
    tables += [image_ops.autocontrast_table(image), image_ops.equalize_table(image)]
    tables += [jnp.broadcast_to(image_ops.solarize_table(jnp.int32(0)), (channels, 256))]
    same = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8), (channels, 256))
    is_table = (operation >= _FIRST_TABLE) & (operation < _FIRST_BLEND)
    table = jnp.stack([*tables, same])[jnp.where(is_table, operation - _FIRST_TABLE, len(tables))]
    matrix = matrices[jnp.where(operation < _FIRST_TABLE, operation, 0)]

    image = image_ops.affine(image, matrix, fill, bilinear)
    image = image_ops.apply_table(image, table)
    if channels == 3:
        image = image_ops.color(image, jnp.where(operation == _NUMBER['color'], magnitude, 1.0))
    return image_ops.sharpness(image, jnp.where(operation == _NUMBER['sharpness'], magnitude, 1.0))


def _random_signs(key: jax.Array, magnitudes: jax.Array, signed: jax.Array) -> jax.Array:
    """Negates each signed magnitude with probability 0.5."""
    return jnp.where(signed & jax.random.bernoulli(key, jnp.float32(0.5), magnitudes.shape), -magnitudes, magnitudes)


def _choose(key: jax.Array, numbers: Sequence[int], count: int) -> jax.Array:
    """Draws ``count`` of the numbers with replacement, int32; ``jax.random.choice`` draws in the default dtype."""
    return jnp.array(numbers, jnp.int32)[jax.random.randint(key, (count,), 0, len(numbers), jnp.int32)]


_SIGNED = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'contrast', 'color', 'sharpness')
_FACTORS = ('brightness', 'contrast', 'color', 'sharpness')


def _draw_magnitudes(
    key: jax.Array,
    operations: jax.Array,
    strengths: Sequence[float | jax.Array],
    positions: jax.Array,
    whole_pixels: bool = True,
) -> Drawn:
    """Computes magnitudes as torchvision does: a position from 0 to 1 in each operation's range, with a random sign.

    Args:
      key: random key of the signs.
      operations: operation numbers ``[L]``.
      strengths: the magnitude at position 1 for each of ``OPERATIONS``.
      positions: ``[L]``.
      whole_pixels: whether translations are rounded down to whole pixels.
    """
    ranges = jnp.stack([jnp.asarray(strength, jnp.float32) for strength in strengths])[operations]
    signed = jnp.array([name in _SIGNED for name in OPERATIONS])[operations]
    factors = jnp.array([name in _FACTORS for name in OPERATIONS])[operations]
    translated = (operations == _NUMBER['translate_x']) | (operations == _NUMBER['translate_y'])
    sizes = positions * ranges
    sizes = jnp.where(translated & whole_pixels, jnp.floor(sizes + _TOLERANCE), sizes)
    magnitudes = _random_signs(key, sizes, signed) + factors
    bits = 8 - jnp.round(positions * ranges)
    magnitudes = jnp.where(operations == _NUMBER['posterize'], bits, magnitudes)
    return operations, jnp.where(operations == _NUMBER['solarize'], 255 * (1 - positions), magnitudes)


def _strengths(
    shear: float, translate: tuple[float, float], rotate: float, factor: float, bits: float
) -> list[float | jax.Array]:
    known = {
        **{'shear_x': shear, 'shear_y': shear, 'rotate': rotate},
        **{'translate_x': translate[1], 'translate_y': translate[0]},
        **dict.fromkeys(_FACTORS, factor),
        'posterize': bits,
    }
    return [known.get(name, 0.0) for name in OPERATIONS]


_TORCHVISION = tuple(
    _NUMBER[name]
    for name in (
        *('identity', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'color', 'contrast'),
        *('sharpness', 'posterize', 'solarize', 'autocontrast', 'equalize'),
    )
)


def rand_augment(num_operations: int = 2, magnitude: int = 9, bins: int = 31) -> PolicyFunction:
    """RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as in torchvision: random operations of one magnitude.

    Args:
      num_operations: operations per image.
      magnitude: from 0 to ``bins - 1``.
      bins: number of magnitudes.
    """

    def draw(key: jax.Array, height: int, width: int) -> Drawn:
        chosen, signs = jax.random.split(key)
        operations = _choose(chosen, _TORCHVISION, num_operations)
        strengths = _strengths(0.3, (150 / 331 * height, 150 / 331 * width), 30.0, 0.9, 4.0)
        return _draw_magnitudes(
            signs, operations, strengths, jnp.full(num_operations, magnitude / (bins - 1), jnp.float32)
        )

    return draw


def trivial_augment_wide(bins: int = 31) -> PolicyFunction:
    """TrivialAugment Wide (Müller and Hutter 2021, arXiv:2103.10158): one operation of a random magnitude.

    Args:
      bins: number of magnitudes.
    """

    def draw(key: jax.Array, height: int, width: int) -> Drawn:
        del height, width  # it translates by up to 32 pixels for any image size
        chosen, signs, positions = jax.random.split(key, 3)
        operations = _choose(chosen, _TORCHVISION, 1)
        position = jax.random.randint(positions, (1,), 0, bins, jnp.int32).astype(jnp.float32) / (bins - 1)
        return _draw_magnitudes(signs, operations, _strengths(0.99, (32.0, 32.0), 135.0, 0.99, 6.0), position)

    return draw


# Operation, probability and magnitude from 0 to 9 of both steps of each sub-policy (Cubuk et al. 2018,
# arXiv:1805.09501, Tables 7 and 9).
_Step = tuple[str, float, int]
AUTO_AUGMENT: dict[str, tuple[tuple[_Step, _Step], ...]] = {
    'cifar10': (
        (('invert', 0.1, 0), ('contrast', 0.2, 6)),
        (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
        (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
        (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
        (('autocontrast', 0.5, 0), ('equalize', 0.9, 0)),
        (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
        (('color', 0.4, 3), ('brightness', 0.6, 7)),
        (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
        (('equalize', 0.6, 0), ('equalize', 0.5, 0)),
        (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
        (('color', 0.7, 7), ('translate_x', 0.5, 8)),
        (('equalize', 0.3, 0), ('autocontrast', 0.4, 0)),
        (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
        (('brightness', 0.9, 6), ('color', 0.2, 8)),
        (('solarize', 0.5, 2), ('invert', 0.0, 0)),
        (('equalize', 0.2, 0), ('autocontrast', 0.6, 0)),
        (('equalize', 0.2, 0), ('equalize', 0.6, 0)),
        (('color', 0.9, 9), ('equalize', 0.6, 0)),
        (('autocontrast', 0.8, 0), ('solarize', 0.2, 8)),
        (('brightness', 0.1, 3), ('color', 0.7, 0)),
        (('solarize', 0.4, 5), ('autocontrast', 0.9, 0)),
        (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
        (('autocontrast', 0.9, 0), ('solarize', 0.8, 3)),
        (('equalize', 0.8, 0), ('invert', 0.1, 0)),
        (('translate_y', 0.7, 9), ('autocontrast', 0.9, 0)),
    ),
    'imagenet': (
        (('posterize', 0.4, 8), ('rotate', 0.6, 9)),
        (('solarize', 0.6, 5), ('autocontrast', 0.6, 0)),
        (('equalize', 0.8, 0), ('equalize', 0.6, 0)),
        (('posterize', 0.6, 7), ('posterize', 0.6, 6)),
        (('equalize', 0.4, 0), ('solarize', 0.2, 4)),
        (('equalize', 0.4, 0), ('rotate', 0.8, 8)),
        (('solarize', 0.6, 3), ('equalize', 0.6, 0)),
        (('posterize', 0.8, 5), ('equalize', 1.0, 0)),
        (('rotate', 0.2, 3), ('solarize', 0.6, 8)),
        (('equalize', 0.6, 0), ('posterize', 0.4, 6)),
        (('rotate', 0.8, 8), ('color', 0.4, 0)),
        (('rotate', 0.4, 9), ('equalize', 0.6, 0)),
        (('equalize', 0.0, 0), ('equalize', 0.8, 0)),
        (('invert', 0.6, 0), ('equalize', 1.0, 0)),
        (('color', 0.6, 4), ('contrast', 1.0, 8)),
        (('rotate', 0.8, 8), ('color', 1.0, 2)),
        (('color', 0.8, 8), ('solarize', 0.8, 7)),
        (('sharpness', 0.4, 7), ('invert', 0.6, 0)),
        (('shear_x', 0.6, 5), ('equalize', 1.0, 0)),
        (('color', 0.4, 0), ('equalize', 0.6, 0)),
        (('equalize', 0.4, 0), ('solarize', 0.2, 4)),
        (('solarize', 0.6, 5), ('autocontrast', 0.6, 0)),
        (('invert', 0.6, 0), ('equalize', 1.0, 0)),
        (('color', 0.6, 4), ('contrast', 1.0, 8)),
        (('equalize', 0.8, 0), ('equalize', 0.6, 0)),
    ),
}


def auto_augment(name: str) -> PolicyFunction:
    """AutoAugment (Cubuk et al. 2018, arXiv:1805.09501): one of 25 pairs of operations with given probabilities.

    Args:
      name: the dataset of the policy, ``cifar10`` or ``imagenet``.
    """
    steps = AUTO_AUGMENT[name]

    def draw(key: jax.Array, height: int, width: int) -> Drawn:
        numbers = jnp.array([[_NUMBER[step[0]] for step in pair] for pair in steps], jnp.int32)
        shares, tenths = (
            jnp.array([[step[place] for step in pair] for pair in steps], jnp.float32) for place in (1, 2)
        )
        chosen, signs, happens = jax.random.split(key, 3)
        pair = jax.random.randint(chosen, (), 0, len(steps), jnp.int32)
        operations = jnp.where(
            jax.random.uniform(happens, (2,), jnp.float32) < shares[pair], numbers[pair], _NUMBER['identity']
        )
        strengths = _strengths(0.3, (150 / 331 * height, 150 / 331 * width), 30.0, 0.9, 4.0)
        return _draw_magnitudes(signs, operations, strengths, tenths[pair] / 9)

    return draw


# timm's operations whose strength grows with the magnitude.
_INCREASING = tuple(
    _NUMBER[name]
    for name in (
        *('autocontrast', 'equalize', 'invert', 'rotate', 'posterize', 'solarize', 'solarize_add', 'color', 'contrast'),
        *('brightness', 'sharpness', 'shear_x', 'shear_y', 'translate_x', 'translate_y'),
    )
)


def rand_augment_increasing(
    magnitude: float = 7.0, deviation: float = 0.5, num_operations: int = 2, probability: float = 0.5
) -> PolicyFunction:
    """timm's ``rand-m7-mstd0.5-inc1`` (Wightman et al. 2021, arXiv:2110.00476): strength increases with magnitude.

    Args:
      magnitude: mean of the magnitudes, from 0 to 10.
      deviation: standard deviation of the magnitudes.
      num_operations: operations per image, drawn with replacement.
      probability: probability of applying each drawn operation.
    """

    def draw(key: jax.Array, height: int, width: int) -> Drawn:
        chosen, signs, happens, noise = jax.random.split(key, 4)
        operations = _choose(chosen, _INCREASING, num_operations)
        happening = jax.random.uniform(happens, (num_operations,), jnp.float32) < probability
        operations = jnp.where(happening, operations, _NUMBER['identity'])
        drawn = magnitude + deviation * jax.random.normal(noise, (num_operations,), jnp.float32)
        positions = jnp.clip(drawn, 0, 10) / 10
        strengths = _strengths(0.3, (0.45 * height, 0.45 * width), 30.0, 0.9, 4.0)
        _, magnitudes = _draw_magnitudes(signs, operations, strengths, positions, whole_pixels=False)
        for name, value in (
            ('posterize', 4 - jnp.floor(positions * 4)),
            ('solarize', 256 - jnp.minimum(256, jnp.floor(positions * 256))),
            ('solarize_add', jnp.minimum(128, jnp.floor(positions * 110))),
        ):
            magnitudes = jnp.where(operations == _NUMBER[name], value, magnitudes)
        return operations, magnitudes

    return draw


# Policies by name.
POLICIES: dict[str, PolicyFunction] = {
    'rand_augment': rand_augment(),
    'trivial_augment_wide': trivial_augment_wide(),
    'auto_augment_cifar10': auto_augment('cifar10'),
    'auto_augment_imagenet': auto_augment('imagenet'),
    'rand-m7-mstd0.5-inc1': rand_augment_increasing(7.0),
    'rand-m6-mstd0.5-inc1': rand_augment_increasing(6.0),
}
