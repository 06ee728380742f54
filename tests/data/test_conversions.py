"""What is converted of photographs, counted and said in one line."""

import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.conversions import Conversions, Counted

COLOR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
GRAY = COLOR.convert('L')
DEEP = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)


def encoded(image, kind='PNG', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


TO_GRAY = 'converted 1 color image to grayscale, as the network takes 1 channel'
TO_COLOR = 'repeated the channel of 1 grayscale image, as the network takes 3 channels'
ALPHA = 'dropped the transparency of 1 image'
# The image, and what is said for a network of one and of three channels.
IMAGES = {
    'color': (encoded(COLOR), TO_GRAY, ''),
    'color JPEG': (encoded(COLOR, 'JPEG'), TO_GRAY, ''),
    'gray': (encoded(GRAY), '', TO_COLOR),
    'gray JPEG': (encoded(GRAY, 'JPEG'), '', TO_COLOR),
    'gray as color': (encoded(GRAY.convert('RGB'), 'JPEG', quality=40), '', ''),
    'transparent': (encoded(COLOR.convert('RGBA')), f'{TO_GRAY}; {ALPHA}', ALPHA),
    'transparent gray': (encoded(GRAY.convert('LA')), ALPHA, f'{TO_COLOR}; {ALPHA}'),
    'transparent palette': (
        encoded(COLOR.convert('P'), transparency=0),
        f'{TO_GRAY}; {ALPHA}',
        f'converted 1 palette image to RGB; {ALPHA}',
    ),
    'CMYK': (encoded(COLOR.convert('CMYK'), 'JPEG'), TO_GRAY, 'converted 1 CMYK image to RGB'),
    '16 bits': (
        encoded(DEEP),
        'kept the upper 8 bits of 1 16-bit image',
        f'{TO_COLOR}; kept the upper 8 bits of 1 16-bit image',
    ),
    'black and white': (encoded(GRAY.convert('1')), '', TO_COLOR),
    'animation': (
        encoded(COLOR.convert('P'), 'GIF', save_all=True, append_images=[GRAY]),
        f'{TO_GRAY}; used the first frame of 1 animation',
        'converted 1 palette image to RGB; used the first frame of 1 animation',
    ),
    'damaged': (b'x', '', ''),
}


@pytest.mark.parametrize('kind', IMAGES)
@pytest.mark.parametrize('channels', [1, 3])
def test_conversions_of_an_image(kind, channels):
    data, *expected = IMAGES[kind]
    conversions = Conversions(channels)
    conversions.add(kind, data)
    assert str(conversions) == expected[channels // 2]


def test_many_images_give_one_line():
    conversions = Conversions(1, (8, 8))
    for number in range(12):
        conversions.add(f'{number}', encoded(COLOR))
        conversions.add(f'{number}', encoded(COLOR))  # once for each name
    conversions.add('small', encoded(GRAY.resize((8, 8))))
    expected = 'converted 12 color images to grayscale, as the network takes 1 channel; resized 12 images to 8x8'
    assert str(conversions) == expected
    assert str(Conversions(1, (8, 8))) == ''


class Source:
    def __len__(self):
        return 2

    def name(self, index):
        return f'image {index}'

    def read(self, index):
        return encoded((COLOR, GRAY)[index]), index


def test_a_source_counts_what_is_read():
    conversions = Conversions(3)
    source = Counted(Source(), conversions)
    assert (len(source), source.name(1)) == (2, 'image 1')
    assert [source.read(index) for index in (0, 1, 1)] == [Source().read(index) for index in (0, 1, 1)]
    assert str(conversions) == TO_COLOR
