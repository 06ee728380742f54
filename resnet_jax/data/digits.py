"""Scikit-learn's handwritten digits as a TFDS dataset, without a download and without TensorFlow.

Importing this module registers the builder for ``tfds.builder('digits')``.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

NUM_CLASSES = 10
# Attributes, each with the digits that have it.
ATTRIBUTES = {
    'even': (0, 2, 4, 6, 8),
    'prime': (2, 3, 5, 7),
    'square': (0, 1, 4, 9),
    'above four': (5, 6, 7, 8, 9),
    'loop': (0, 6, 8, 9),
}
TEST_IMAGES_PER_CLASS = 36  # out of 174 to 183 images: a fifth of every class
_GRAY_LEVELS = 16  # pixel values count inked pixels in 4x4 blocks: 0 .. 16
_SPLIT_SEED = 0


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits the digits into training and test images, stratified by class and always in the same way.

    Args:
      labels: integers ``[N]`` in 0 .. 9, in scikit-learn's order.

    Returns:
      Sorted int64 indices of the training images ``[N - 360]`` and of the test images ``[360]``.
    """
    # RandomState, not Generator: NumPy guarantees that its streams never change.
    random = np.random.RandomState(_SPLIT_SEED)
    test = np.concatenate(
        [random.permutation(np.flatnonzero(labels == label))[:TEST_IMAGES_PER_CLASS] for label in range(NUM_CLASSES)]
    )
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)


def slant(images: np.ndarray) -> np.ndarray:
    """The slant of the writing: degrees from the vertical, positive to the right.

    The tangent of the angle is the regression coefficient of the ink's column on its row, ``-mu11 / mu02`` with the
    central moments of the ink, as in the usual deskewing of handwriting.

    Args:
      images: ``[N, H, W]``, with higher values for more ink.

    Returns:
      Degrees, float32 ``[N]``.
    """
    ink = images / images.sum((1, 2), keepdims=True)
    rows, columns = (np.arange(size, dtype=np.float64) for size in images.shape[1:])
    row, column = (ink.sum(2) * rows).sum(1), (ink.sum(1) * columns).sum(1)
    from_row = rows[None, :, None] - row[:, None, None]
    from_column = columns[None, None] - column[:, None, None]
    covariance, variance = (ink * from_row * from_column).sum((1, 2)), (ink * from_row**2).sum((1, 2))
    return np.degrees(np.arctan2(-covariance, variance)).astype(np.float32)


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, uint8 ``[8, 8, 1]``: 1,437 for training and 360 for testing, with targets for each task."""

    VERSION = tfds.core.Version('1.1.0')
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        '1.0.0': 'Stratified split with 36 test images per class.',
        '1.1.0': 'Adds parity, attributes and slant to the class.',
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Handwritten digits of 43 people, scaled from 0..16 to 0..255.',
            homepage='https://archive.ics.uci.edu/dataset/80',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    'label': tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                    'parity': tfds.features.ClassLabel(names=['even', 'odd']),
                    'attributes': tfds.features.Sequence(tfds.features.ClassLabel(names=list(ATTRIBUTES))),
                    'slant': tfds.features.Scalar(np.float32),
                }
            ),
            supervised_keys=('image', 'label'),
            disable_shuffling=True,  # keeps scikit-learn's order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager | None) -> dict[str, Any]:
        del dl_manager  # the data come with scikit-learn
        source = load_digits()
        images = np.round(source.images * (255 / _GRAY_LEVELS)).astype(np.uint8)[..., None]
        slants = slant(source.images)
        train, test = split_indices(source.target)
        return {
            'train': self._generate_examples(images, source.target, slants, train),
            'test': self._generate_examples(images, source.target, slants, test),
        }

    def examples_in_memory(self) -> dict[str, list[dict[str, Any]]]:
        """The examples that prepared files hold, by split, without writing files."""
        encode, splits = self.info.features.encode_example, self._split_generators(None)
        return {split: [encode(example) for _, example in examples] for split, examples in splits.items()}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, slants: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices.tolist():
            label = int(labels[index])
            attributes = [name for name, digits in ATTRIBUTES.items() if label in digits]
            yield (
                index,
                {
                    'image': images[index],
                    'label': label,
                    'parity': label % 2,
                    'attributes': attributes,
                    'slant': slants[index],
                },
            )
