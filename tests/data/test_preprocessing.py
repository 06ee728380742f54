"""Preprocessing compared with explicit arithmetic, and bit by bit with timm if installed."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    Preprocessing,
    from_timm_config,
    preprocess,
)
from resnet_jax.errors import InputError

# Width and height: landscape, portrait, odd differences, smaller than the crop, one pixel wide.
SIZES = [(500, 375), (375, 500), (257, 301), (301, 256), (100, 64), (33, 97), (224, 224), (8, 8), (1, 40)]
PLAIN = {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0)}


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)


def bytes_of(image, **fields) -> np.ndarray:
    """The pixels before normalization, uint8."""
    return np.rint(preprocess(image, Preprocessing(**PLAIN, **fields)) * 255).astype(np.uint8)


def bilinear(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """A triangle filter as wide as the larger of the two pixels, clipped at the border: Pillow's bilinear."""
    old = pixels.shape[axis]
    scale = old / size
    centers = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.maximum(0, 1 - distance)
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)


@pytest.mark.parametrize('crop_pct', [0.875, 0.95, 1.0])
@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_bilinear_and_center_by_hand(width, height, crop_pct):
    image = noise(width, height)
    short = math.floor(32 / crop_pct)
    rows, columns = (int(short * side / min(width, height)) for side in (height, width))
    resized = bilinear(bilinear(image.astype(float), columns, 1), rows, 0)
    top, left = round((rows - 32) / 2), round((columns - 32) / 2)
    expected = resized[top : top + 32, left : left + 32]
    actual = bytes_of(image, size=32, crop_pct=crop_pct)
    # Pillow rounds to integers after each axis.
    assert np.abs(actual - expected).max() < 1.1


def test_the_crop_is_the_middle():
    """Sizes without resizing, so that rows and columns can be counted."""
    image = np.zeros((8, 13, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(8)[:, None], np.arange(13)
    cropped = bytes_of(image, size=6, crop_pct=0.75, interpolation='bicubic')
    assert cropped.shape == (6, 6, 3)
    assert cropped[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert cropped[0, :, 1].tolist() == [4, 5, 6, 7, 8, 9]  # from 3.5, rounded to even


def test_halves_are_rounded_to_even():
    image = np.zeros((4, 9, 3), np.uint8)
    image[..., 0] = np.arange(9)
    assert bytes_of(image, size=4, crop_pct=1.0)[0, :, 0].tolist() == [2, 3, 4, 5]  # from 2.5


def test_a_crop_larger_than_the_image_is_padded_with_black():
    image = np.full((4, 4, 3), 200, np.uint8)
    padded = bytes_of(image, size=7, crop_pct=1.75)[..., 0]
    assert padded[1:5, 1:5].tolist() == [[200] * 4] * 4
    assert padded.sum() == 16 * 200


def test_squash_keeps_the_whole_image():
    image = noise(40, 20)
    squashed = bytes_of(image, size=20, crop_pct=1.0, crop_mode='squash', interpolation='nearest')
    np.testing.assert_array_equal(squashed, image[:, 1::2])


def test_border_keeps_the_whole_image_and_pads_with_the_mean_color():
    image = noise(40, 21)
    bordered = preprocess(image, Preprocessing(40, 1.0, 'bicubic', (0.5, 0.2, 0.4), (1.0, 1.0, 1.0), 'border'))
    bordered = np.rint((bordered + np.array([0.5, 0.2, 0.4])) * 255)
    np.testing.assert_array_equal(bordered[9:30], image)  # 19 rows are missing: 9 above, 10 below
    for rows in (bordered[:9], bordered[30:]):
        np.testing.assert_array_equal(rows, np.broadcast_to([128, 51, 102], rows.shape))


def test_all_values_normalized_by_hand():
    image = np.arange(768, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    actual = preprocess(image, Preprocessing(16, 1.0))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, (image / 255 - IMAGENET_MEAN) / IMAGENET_STD, rtol=1e-6, atol=1e-7)
    half = preprocess(image, Preprocessing(16, 1.0, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert half.min() == -1.0
    assert half.max() == 1.0


def test_goldens():
    """Computed once, when they equaled timm's; they detect changes without timm."""
    image = noise(53, 41)
    bicubic = preprocess(image, Preprocessing(24, 0.95, 'bicubic'))
    bilinear_ = preprocess(image, Preprocessing(24, 0.875, 'bilinear', (0.5,) * 3, (0.5,) * 3))
    assert [float(value) for value in bicubic[3, 5]] == [0.7933042645454407, 0.0476190522313118, -1.089847445487976]
    assert [float(value) for value in bilinear_[20, 11]] == [
        -0.11372548341751099,
        0.32549023628234863,
        -0.1450980305671692,
    ]


@pytest.mark.parametrize('crop_mode', ['center', 'squash', 'border'])
@pytest.mark.parametrize('crop_pct', [0.5, 0.875, 0.965, 1.0, 1.15])
def test_values_stay_between_the_extremes(crop_mode, crop_pct, rng):
    for size in (1, 2, 7, 32):
        width, height = (int(side) for side in rng.integers(5, 90, 2))
        config = Preprocessing(size, crop_pct, 'bilinear', **PLAIN, crop_mode=crop_mode)
        if math.floor(size / crop_pct) * min(width, height) / max(width, height) < 1:
            continue  # the shorter side would have no pixels
        out = preprocess(noise(width, height), config)
        assert out.shape == (size, size, 3)
        assert out.min() >= 0
        assert out.max() <= 1
        flat = preprocess(np.full((height, width, 3), 51, np.uint8), config)
        assert set(np.unique(np.rint(flat * 255))) <= {0, 51}
        if crop_pct <= 1 and crop_mode != 'border':
            assert (flat == np.float32(51) / np.float32(255)).all()


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_squash_commutes_with_transposition(width, height):
    """Not bit by bit, since Pillow resizes and rounds columns first."""
    image = noise(width, height)
    one = bytes_of(image, size=32, crop_mode='squash').astype(int)
    other = bytes_of(np.ascontiguousarray(image.swapaxes(0, 1)), size=32, crop_mode='squash').astype(int)
    assert np.abs(one - other.swapaxes(0, 1)).max() <= 1


def test_pillow_images_of_any_mode():
    image = Image.fromarray(noise(40, 30))
    config = Preprocessing(16)
    np.testing.assert_array_equal(preprocess(image, config), preprocess(np.asarray(image), config))
    for mode in ('L', '1', 'P', 'RGBA', 'CMYK'):
        other = image.convert(mode)
        np.testing.assert_array_equal(preprocess(other, config), preprocess(other.convert('RGB'), config))


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        ('photo.jpg', r'image must be a Pillow image or .*, got str'),
        (np.zeros((4, 4, 3), np.float32), r'must be non-empty uint8 \[H, W, 3\], got float32 \[4, 4, 3\]'),
        (np.zeros((4, 4), np.uint8), r'uint8 \[4, 4\]'),
        (np.zeros((4, 4, 4), np.uint8), r'uint8 \[4, 4, 4\]'),
        (np.zeros((0, 4, 3), np.uint8), r'must be non-empty .* got uint8 \[0, 4, 3\]'),
        (np.zeros((1, 900, 3), np.uint8), '900x1 pixels would be resized to 36x0'),
    ],
)
def test_other_inputs_are_refused(image, message):
    with pytest.raises(InputError, match=message):
        preprocess(image, Preprocessing(32, crop_mode='border'))


def test_resizing_to_zero_pixels_is_refused():
    with pytest.raises(InputError, match='resized to 0x0'):
        preprocess(noise(4, 4), Preprocessing(1, 1.5))
    with pytest.raises(InputError, match='resized to 0x0'):
        preprocess(noise(4, 4), Preprocessing(1, 1.5, crop_mode='border'))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'size': 0}, 'size=0 must be'),
        ({'size': 224.0}, 'size=224.0 must be'),
        ({'size': True}, 'size=True'),
        ({'size': (224, 224)}, r'size=\(224, 224\)'),
        ({'crop_pct': 0}, 'crop_pct=0 must be above 0 and at most 2'),
        ({'crop_pct': 87.5}, 'crop_pct=87.5'),
        ({'crop_pct': math.nan}, 'crop_pct=nan'),
        ({'crop_pct': '0.9'}, "crop_pct='0.9'"),
        ({'interpolation': 'area'}, "unknown interpolation 'area'; known: nearest, bilinear"),
        ({'crop_mode': 'random'}, "unknown crop_mode 'random'; known: center, squash, border"),
        ({'mean': (0.5, 0.5)}, 'three numbers'),
        ({'mean': 0.5}, 'three numbers'),
        ({'mean': (123.7, 116.3, 103.5)}, 'between 0 and 1, like pixels divided by 255'),
        ({'std': (0.2, 0.2, math.nan)}, 'between 0 and 1, like pixels divided by 255'),
        ({'std': (0.2, 0.0, 0.2)}, 'above 0'),
        ({'std': ('0.2', '0.2', '0.2')}, 'three numbers'),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**({'size': 224} | fields))


def test_fields_survive_json():
    config = Preprocessing(288, 1.0, 'bicubic', (0.5, 0.5, 0.5), (1, 1, 1), 'squash')
    again = Preprocessing(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


def test_a_timm_configuration():
    config = {
        'input_size': (3, 224, 224),
        'test_input_size': [3, 288, 288],
        'crop_pct': 0.95,
        'test_crop_pct': 1.0,
        'interpolation': 'bicubic',
        'mean': [0.5, 0.5, 0.5],
        'std': (0.5, 0.5, 0.5),
        'crop_mode': 'squash',
        'num_classes': 1000,
    }
    half = (0.5, 0.5, 0.5)
    assert from_timm_config(config) == Preprocessing(224, 0.95, 'bicubic', half, half, 'squash')
    assert from_timm_config(config, test_size=True) == Preprocessing(288, 1.0, 'bicubic', half, half, 'squash')
    del config['test_crop_pct']
    assert from_timm_config(config, test_size=True).crop_pct == 0.95
    config['test_input_size'] = None
    assert from_timm_config(config, test_size=True) == from_timm_config(config)


def test_missing_fields_have_timms_defaults():
    defaults = Preprocessing(224, 0.875, 'bicubic', IMAGENET_MEAN, IMAGENET_STD, 'center')
    assert from_timm_config({}) == defaults
    assert from_timm_config(dict.fromkeys(('input_size', 'crop_pct', 'interpolation', 'mean', 'std'))) == defaults


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('resnet50', 'config must be a pretrained_cfg dict, got str'),
        ({'input_size': 224}, 'input_size=224 must be'),
        ({'input_size': (224, 224)}, r'input_size=\(224, 224\) must be'),
        ({'input_size': (1, 28, 28)}, r'input_size=\(1, 28, 28\) must be'),
        ({'input_size': (3, 1024, 768)}, r'must be \(3, size, size\)'),
        ({'input_size': (3, '224', '224')}, "size='224'"),
        ({'crop_pct': 0}, 'crop_pct=0'),
        ({'interpolation': 'random'}, "unknown interpolation 'random'"),
        ({'mean': (0.5,)}, 'three numbers'),
    ],
)
def test_an_invalid_timm_configuration_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        from_timm_config(config)


def timm_preprocess(image: Image.Image, config: Preprocessing) -> np.ndarray:
    """timm's evaluation transform, channels last."""
    data = pytest.importorskip('timm.data')
    transform = data.create_transform(
        (3, config.size, config.size),
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    return transform(image.convert('RGB')).permute(1, 2, 0).numpy()


@pytest.mark.parametrize('crop_pct', [0.875, 0.9, 0.95, 0.965, 1.0, 1.15])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_equals_timm_to_the_bit(interpolation, crop_pct):
    pytest.importorskip('timm')
    for size in (32, 63, 224):
        for width, height in SIZES:
            config = Preprocessing(size, crop_pct, interpolation)
            image = Image.fromarray(noise(width, height))
            np.testing.assert_array_equal(preprocess(image, config), timm_preprocess(image, config))


@pytest.mark.parametrize('crop_mode', ['center', 'squash', 'border'])
@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_every_filter_and_crop_mode_equals_timm_to_the_bit(interpolation, crop_mode, rng):
    pytest.importorskip('timm')
    for crop_pct in (0.875, 1.0, 1.15):
        for mean, std in ((IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3)):
            config = Preprocessing(75, crop_pct, interpolation, mean, std, crop_mode)
            for width, height in rng.integers(20, 200, (4, 2)).tolist():
                image = Image.fromarray(noise(width, height))
                np.testing.assert_array_equal(preprocess(image, config), timm_preprocess(image, config))


def test_photographs_equal_timm_to_the_bit(reference_data):
    pytest.importorskip('timm')
    photographs = sorted((reference_data / 'clothing_341').glob('*/*.jpg'))[::20]
    assert len(photographs) > 10
    configs = [Preprocessing(224, 0.95, 'bicubic'), Preprocessing(176), Preprocessing(288, 1.0, 'bicubic')]
    for path, config in itertools.product(photographs, configs):
        with Image.open(path) as image:
            np.testing.assert_array_equal(preprocess(image, config), timm_preprocess(image, config))


def test_configurations_are_read_as_in_timm():
    timm = pytest.importorskip('timm')
    seen = 0
    for name in timm.list_pretrained():
        config = timm.models.get_pretrained_cfg(name).to_dict()
        for test_size in (False, True):
            resolved = timm.data.resolve_data_config({}, pretrained_cfg=config, use_test_size=test_size)
            channels, height, width = resolved.pop('input_size')
            if channels == 3 and height == width:
                assert from_timm_config(config, test_size) == Preprocessing(size=height, **resolved)
                seen += 1
    assert seen > 1000
