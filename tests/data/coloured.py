"""Photographs that are learned quickly."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

COLOURS = ('red', 'green', 'blue')


def write(root: pathlib.Path, train: int, test: int, kinds: Sequence[str] = ('png', 'jpg')) -> pathlib.Path:
    """Writes noisy images of increasing size in folders by color; returns the root folder."""
    random = np.random.default_rng(0)
    for split, size in (('train', train), ('test', test)):
        for index in range(size):
            colour = index % len(COLOURS)
            path = root / split / COLOURS[colour] / f'{index:02}.{kinds[index % len(kinds)]}'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 60, (20 + index, 25 + index // 2, 3), np.uint8)
            pixels[..., colour] += 120
            Image.fromarray(pixels).save(path, quality=95)
    return root
