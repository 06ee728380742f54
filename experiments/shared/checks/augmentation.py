"""Check of the augmentation on a device: every operation against the CPU's, with the same keys and images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.checks.networks import wrong_ones
from experiments.shared.checks.outcomes import Outcome, Places
from resnet_jax.data import image_ops, random_ops
from resnet_jax.data.augment import Augmentation, Policy, ResizedCrop, augment, augment_views, normalize, pad
from resnet_jax.data.mixing import mix
from resnet_jax.data.policies import OPERATIONS, POLICIES, apply_operations

Function = Callable[[jax.Array, jax.Array], jax.Array]  # of keys [N] and uint8 images [N, H, W, C]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Largest magnitude of each operation that has one, for images of 32 pixels.
_STRONGEST = {
    **{'shear_x': 0.3, 'shear_y': 0.3, 'translate_x': 10.0, 'translate_y': 10.0, 'rotate': 30.0},
    **{'brightness': 1.9, 'contrast': 1.9, 'color': 1.9, 'sharpness': 1.9, 'posterize': 7.0},
    **{'solarize': 255.0, 'solarize_add': 110.0},
}
# Largest difference of a value, in levels of 255: operations that interpolate may round differently, and a difference
# of one of 256 hues is one of 6 levels, which brightness, contrast and saturation can double.
_LEVELS = {'resized_crop': 1, 'resized_crop cubic': 1, 'random_resized_crop': 1, 'shift_hue': 6, 'color_jitter': 12}
_BILINEAR = ' bilinear'
# Largest difference of normalized values, relative to the largest of them.
_RELATIVE = 1e-5
_AFFINE = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')
# Share of the values that may differ more, where rounding decides between two pixels or two boxes.
_SHARE = 1e-3


def check_augmentation(places: Places, count: int) -> Outcome:
    """Compares the result of every operation for ``count`` images with the CPU's."""
    key = jax.random.key(0, impl='threefry2x32')
    given = jax.random.split(key, count), natural_images(np.random.default_rng(0), count, 32)
    found: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        program = jax.jit(group)
        here, there = (
            jax.device_get(program(*jax.device_put(given, device))) for device in (places.device, places.cpu)
        )
        found |= {name: compare(name, here[name], there[name]) for name in there}
    wrong = [name for name, values in found.items() if not values['share'] <= _SHARE]
    exact = sum(values['difference'] == 0 for values in found.values())
    summary = f'{exact} of {len(found)} operations are identical'
    if exact < len(found):
        name = max(found, key=lambda name: found[name]['share'])
        summary += f', in {name} {found[name]["share"]:.1e} of the values differ by more than rounding'
    return Outcome.of(not wrong, f'{summary}{wrong_ones(wrong)}', found)


def _apply_all(functions: dict[str, Function], keys: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
    return {name: function(keys, images) for name, function in functions.items()}


def compare(name: str, found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest difference, and the share of the values that differ more than the operation allows.

    Differences of integers are absolute, those of floats relative to the largest value.
    """
    is_whole = np.issubdtype(expected.dtype, np.integer)
    apart = np.abs(np.float64(found) - np.float64(expected))
    allowed: float = _LEVELS.get(name, int(name.endswith(_BILINEAR)))
    if not is_whole:
        apart, allowed = apart / np.abs(expected).max(), _RELATIVE
    return {'difference': float(apart.max()), 'share': float(1 - np.mean(apart <= allowed)), 'allowed': allowed}


def natural_images(rng: np.random.Generator, count: int, height: int, width: int | None = None) -> np.ndarray:
    """Random images whose spectrum falls with the frequency as in photographs, uint8 ``[count, height, width, 3]``."""
    shape = height, width or height
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    frequency[0, 0] = 1 / max(shape)
    noise = np.fft.rfft2(rng.normal(size=(count, 3, *shape)).astype(np.float32)) / frequency
    waves = np.fft.irfft2(noise, shape)
    waves = waves + 2 * waves.mean(1, keepdims=True)  # channels of photographs are similar
    scaled = 128 + 64 * waves / waves.std((1, 2, 3), keepdims=True)
    return np.clip(scaled, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def operations(keys: jax.Array, images: jax.Array, bilinear: bool) -> dict[str, jax.Array]:
    """Each operation of the policies at magnitudes up to its largest, of both signs where it is signed.

    Operation and magnitude are data, so that the program is compiled once for all of them, as in training.
    """
    del keys
    names, end = (_AFFINE, _BILINEAR) if bilinear else (OPERATIONS, '')
    count, places = len(images), jnp.linspace(0.05, 1, len(images), dtype=jnp.float32)
    signs = jnp.where(jnp.arange(count) % 2 == 0, 1.0, -1.0)

    def run(number: jax.Array, strongest: jax.Array, is_signed: jax.Array) -> jax.Array:
        magnitudes = places * strongest * jnp.where(is_signed, signs, 1.0)

        def one(image: jax.Array, magnitude: jax.Array) -> jax.Array:
            return apply_operations(image, (number[None], magnitude[None]), 0, bilinear)

        return jax.vmap(one)(images, magnitudes)

    numbers = jnp.array([OPERATIONS.index(name) for name in names], jnp.int32)
    strongest = jnp.array([_STRONGEST.get(name, 0.0) for name in names], jnp.float32)
    results = jax.vmap(run)(numbers, strongest, jnp.array([name in _AFFINE for name in names]))
    return {f'{name}{end}': result for name, result in zip(names, results, strict=True)}


def image_functions() -> dict[str, Function]:
    """Operations on single images that are not among those of the policies."""
    each: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        'gray': lambda key, image: image_ops.gray(image),
        'mean_gray': lambda key, image: image_ops.mean_gray(image_ops.gray(image)),
        'resized_crop': lambda key, image: _crop_of_middle(image, False),
        'resized_crop cubic': lambda key, image: _crop_of_middle(image, True),
        'shift_hue': lambda key, image: image_ops.shift_hue(
            image, jax.random.uniform(key, (), minval=-0.5, maxval=0.5)
        ),
        'random_crop': lambda key, image: random_ops.random_crop(key, image, (24, 20)),
        'random_resized_crop': lambda key, image: random_ops.random_resized_crop(key, image, (24, 20), (0.08, 1.0)),
        'random_flip': random_ops.random_flip,
        'color_jitter': lambda key, image: random_ops.color_jitter(key, image, (0.4, 0.4, 0.4, 0.1)),
        'lighting_shift': lambda key, image: random_ops.lighting_shift(key, 0.1),
        'random_erasing': lambda key, image: random_ops.random_erasing(key, image, 0.5),
        'cutout': lambda key, image: random_ops.cutout(key, image, 8),
    }
    return {name: jax.vmap(function) for name, function in each.items()}


def _crop_of_middle(image: jax.Array, cubic: bool) -> jax.Array:
    height, width, _ = image.shape
    top, left, rows, columns = map(jnp.int32, (height // 8, width // 4, height // 2 + 3, width // 2 - 1))
    return image_ops.resized_crop(image, top, left, rows, columns, (20, 24), cubic)


def policies() -> dict[str, Function]:
    """The named policies, with operations and magnitudes that they draw."""

    def function(policy: Policy) -> Function:
        def one(key: jax.Array, image: jax.Array) -> jax.Array:
            return apply_operations(image, policy.draw(key, *image.shape[:2]))

        return jax.vmap(one)

    return {name: function(Policy(name)) for name in POLICIES}


def batch_functions() -> dict[str, Function]:
    """Operations on batches: normalization, padding, whole augmentations, mixup and CutMix."""
    crop = Augmentation(
        crop_padding=4, crop_fill='mean', horizontal_flip=True, lighting=0.1, random_erasing=0.25, cutout=8
    )
    resized = Augmentation(resized_crop=ResizedCrop((0.08, 1.0)), horizontal_flip=True, color_jitter=(0.4, 0.4, 0.4))

    def augmented(augmentation: Augmentation) -> Function:
        return lambda keys, images: augment(keys, images, _MEAN, _STD, augmentation)

    def mixed(augmentation: Augmentation) -> Function:
        def run(keys: jax.Array, images: jax.Array) -> jax.Array:
            targets = jax.nn.one_hot(jnp.arange(len(images)) % 10, 10)
            result: Any = mix(keys[0], normalize(images, _MEAN, _STD), targets, augmentation)
            return jnp.concatenate([part.reshape(len(images), -1) for part in result], axis=1)

        return run

    return {
        'normalize': lambda keys, images: normalize(images, _MEAN, _STD),
        'pad': lambda keys, images: pad(images, 4, 127),
        'pad by reflection': lambda keys, images: pad(images, 4, reflect=True),
        'augment with a crop': augmented(crop),
        'augment with a resized crop': augmented(resized),
        'augment_views': lambda keys, images: jnp.stack(
            augment_views(keys, images, _MEAN, _STD, Augmentation(crop_padding=4, views=2))
        ),
        'mixup': mixed(Augmentation(mixup=0.2)),
        'cutmix': mixed(Augmentation(cutmix=1.0)),
        'mixup or cutmix': mixed(Augmentation(mixup=0.2, cutmix=1.0)),
    }


# Groups of operations, each a program: functions of keys and images that return results by name.
GROUPS: tuple[Callable[[jax.Array, jax.Array], dict[str, jax.Array]], ...] = (
    functools.partial(operations, bilinear=False),
    functools.partial(operations, bilinear=True),
    *(functools.partial(_apply_all, functions) for functions in (image_functions(), policies(), batch_functions())),
)
