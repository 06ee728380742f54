"""Prints checksums of the examples in batches FIRST to 99, one line per batch.

Arguments: FOLDER FIRST ROWS_FROM ROWS_TO WORKERS.
"""

import hashlib
import json
import sys

from resnet_jax.data.folder import list_folder
from resnet_jax.data.stream import RandomCrop, TrainingImages, batches

BATCH_SIZE = 16


def main(folder: str, first: int, start: int, end: int, workers: int) -> None:
    images = list_folder(f'folder:{folder}')[0]['train'].photographs
    crop = RandomCrop(64, (0.08, 1.0))
    function = TrainingImages(images, 5, BATCH_SIZE, 1, crop, range(start, end))
    for batch in batches(function, first, 100, end - start, workers):
        parts = zip(batch['image'], batch['label'], batch['source'], strict=True)
        print(json.dumps([hashlib.sha256(b''.join(part.tobytes() for part in one)).hexdigest() for one in parts]))


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
