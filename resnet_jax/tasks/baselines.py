"""What is simpler than a network, for tasks of classes."""

import numpy as np


def class_shares(kind: str, pixels: np.ndarray, labels: np.ndarray, unseen: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities of the classes that a simple model predicts.

    Args:
      kind: ``constant``: the shares of the classes in training; ``linear``: scikit-learn's logistic regression.
      pixels: of training images, float ``[N, H W C]``.
      labels: theirs, integers ``[N]``.
      unseen: pixels of other images, ``[N', H W C]``.
      classes: how many there are; one without training images has no probability.

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
