"""What is converted when photographs become the input of a network: colors, transparency, bit depths, sizes.

Decoding converts every image to 8-bit RGB (``decode``), and a network may take one channel. ``Conversions`` counts what
this changed, so that a command can say it in one line.
"""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image

from resnet_jax.data.examples import EncodedImages

# What each conversion does, in the order of the message; ``{}`` is a number and a noun.
_MESSAGES = {
    'color': 'converted {} to grayscale, as the network takes 1 channel',
    'gray': 'repeated the channel of {}, as the network takes 3 channels',
    'palette': 'converted {} to RGB',
    'cmyk': 'converted {} to RGB',
    'alpha': 'dropped the transparency of {}',
    'deep': 'kept the upper 8 bits of {}',
    'animated': 'used the first frame of {}',
    'resized': 'resized {} to ',
}
_NOUNS = {'color': 'color image', 'gray': 'grayscale image', 'palette': 'palette image', 'cmyk': 'CMYK image'}
_NOUNS |= {'deep': '16-bit image', 'animated': 'animation'}
_GRAY = ('1', 'L', 'LA', 'La')
_PNG_DEPTH = 24  # position of the bit depth in a PNG
_LEAST_COLOR = 8  # difference of two channels, of 255; the compression of JPEG colors gray images by less


class Conversions:
    """Counts the conversions of photographs.

    Args:
      channels: number of channels of the network's input.
      resized_to: height and width of its input if resizing is worth a message: if the network was not trained on
        photographs; else None.
    """

    def __init__(self, channels: int, resized_to: tuple[int, int] | None = None):
        self._channels, self._resized_to = channels, resized_to
        self._found: dict[str, set[str]] = {kind: set() for kind in _MESSAGES}

    def add(self, name: str, data: bytes) -> None:
        """Counts what is converted of a photograph with this name and these encoded bytes; once for each name."""
        with contextlib.suppress(Exception), warnings.catch_warnings():  # a damaged image is reported by its reader
            warnings.simplefilter('ignore')
            for kind in self._kinds(data):
                self._found[kind].add(name)

    def _kinds(self, data: bytes) -> list[str]:
        with Image.open(io.BytesIO(data)) as picture:
            mode = picture.mode
            deep = mode.startswith('I') or (picture.format == 'PNG' and data[_PNG_DEPTH] == 16)
            gray = mode in _GRAY or mode.startswith('I')
            found = {
                'color': self._channels == 1 and not gray and _has_color(picture),
                'gray': self._channels == 3 and gray,
                'palette': self._channels == 3 and mode == 'P',
                'cmyk': self._channels == 3 and mode == 'CMYK',
                'alpha': 'A' in mode or 'a' in mode or 'transparency' in picture.info,
                'deep': deep,
                'animated': picture.format != 'MPO' and getattr(picture, 'is_animated', False),
                'resized': self._resized_to is not None and picture.size[::-1] != self._resized_to,
            }
        return [kind for kind, applies in found.items() if applies]

    def __str__(self) -> str:
        """All conversions in one line; empty if there are none."""
        parts = []
        for kind, names in self._found.items():
            noun = _NOUNS.get(kind, 'image') + ('' if len(names) == 1 else 's')
            if names:
                parts.append(_MESSAGES[kind].format(f'{len(names):,} {noun}'))
        if self._found['resized'] and self._resized_to is not None:
            parts[-1] += f'{self._resized_to[0]}x{self._resized_to[1]}'
        return '; '.join(parts)


def _has_color(picture: Image.Image) -> bool:
    """Whether a picture has colors, judged by a small version; a gray picture may be stored as RGB."""
    picture.draft('RGB', (64, 64))
    pixels = np.asarray(picture.convert('RGB').resize((32, 32)), np.int16)
    return bool((pixels.max(2) - pixels.min(2)).max() >= _LEAST_COLOR)


class Counted:
    """A source of photographs that counts what is converted of those that are read.

    Args:
      images: the source.
      conversions: the counts.
    """

    def __init__(self, images: EncodedImages, conversions: Conversions):
        self._images, self._conversions = images, conversions

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """As in ``EncodedImages``."""
        return self._images.name(index)

    def read(self, index: int) -> tuple[bytes, object]:
        """As in ``EncodedImages``."""
        data, target = self._images.read(index)
        self._conversions.add(self.name(index), data)
        return data, target
