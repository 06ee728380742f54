"""What the 1,000 classes of ImageNet-1k are called."""

import csv
import functools
import importlib.resources


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in their order, as torchvision names them."""
    return tuple(row['name'] for row in _imagenet_classes())


@functools.cache
def imagenet_wordnet_ids() -> tuple[str, ...]:
    """The same as ``n01440764``, which TFDS and ImageNet's folders call them by."""
    return tuple(row['wordnet'] for row in _imagenet_classes())


def _imagenet_classes() -> csv.DictReader:
    file = importlib.resources.files('resnet_jax.data') / 'imagenet_classes.csv'
    return csv.DictReader(file.read_text(encoding='utf-8').splitlines())
