"""Simple baseline models for classification."""

import numpy as np


def class_shares(kind: str, pixels: np.ndarray, labels: np.ndarray, unseen: np.ndarray, classes: int) -> np.ndarray:
    """Class probabilities predicted by a simple model.

    Args:
      kind: ``constant``: class frequencies in training; ``linear``: scikit-learn's logistic regression.
      pixels: pixels of training images, float ``[N, H W C]``.
      labels: their labels, integers ``[N]``.
      unseen: pixels of test images, ``[N', H W C]``.
      classes: number of classes; those without training images get probability zero before clipping.

    Returns:
      float64 ``[N', classes]``, above 0 and below 1.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    constant = kind == 'constant' or len(set(labels.tolist())) == 1
    model = DummyClassifier(strategy='prior') if constant else LogisticRegression(max_iter=5000)
    shares = np.zeros((len(unseen), classes))
    found = model.fit(pixels, labels).predict_proba(unseen)
    shares[:, model.classes_] = found
    return shares.clip(1e-12, 1 - 1e-12)
