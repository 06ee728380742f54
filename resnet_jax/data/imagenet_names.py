"""Names of the 1,000 classes of ImageNet-1k."""

import csv
import functools
import importlib.resources


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """Torchvision's names of the 1,000 classes of ImageNet-1k, in order."""
    return tuple(row['name'] for row in _imagenet_classes())


@functools.cache
def imagenet_wordnet_ids() -> tuple[str, ...]:
    """WordNet ids of the classes in the same order, such as ``n01440764``: the names of TFDS and ImageNet's folders."""
    return tuple(row['wordnet'] for row in _imagenet_classes())


def _imagenet_classes() -> csv.DictReader:
    file = importlib.resources.files('resnet_jax.data') / 'imagenet_classes.csv'
    return csv.DictReader(file.read_text(encoding='utf-8').splitlines())
