"""Methods that differ from MultiLabel; test_multilabel.py tests the metrics."""

import numpy as np

from resnet_jax.tasks.binary import Binary


def test_one_output_predicts_both_classes():
    task, names, shares = Binary(), ('no', 'yes'), np.array([[0.75], [0.25]])
    assert task.num_outputs(2) == 1
    assert task.in_words(shares, names) == ['yes', 'no']
    assert task.ranked(shares, names, 3) == [[('yes', 0.75), ('no', 0.25)], [('no', 0.75), ('yes', 0.25)]]
    assert task.ranked(shares, names, 1) == [[('yes', 0.75)], [('no', 0.75)]]
    assert task.prediction_names(names) == ['yes']
