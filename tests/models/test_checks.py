"""Checks of single settings."""

import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax.models import checks


def test_valid_values_pass():
    checks.check_choice('norm', 'batch', ('batch', 'group'))
    for rate in (0, 0.0, 0.999, np.float32(0.5)):
        checks.check_rate('rate', rate)
    assert checks.positive_integer('width', np.int64(3)) == 3
    assert type(checks.positive_integer('width', np.int64(3))) is int
    assert checks.as_sequence('widths', [1, 2]) == (1, 2)
    for value, default in ((True, False), (2, 1), (2, 0.5), ('any', None), (0.5, 0.25), ((1,), ())):
        checks.check_like('option', value, default)


@pytest.mark.parametrize(
    ('check', 'message'),
    [
        (
            lambda: checks.check_choice('norm', 'layer', {'batch': 1, 'group': 2}),
            "unknown norm 'layer'; known: batch, group",
        ),
        (lambda: checks.check_choice('norm', ['batch'], {'batch': 1}), r"unknown norm \['batch'\]; known: batch"),
        (lambda: checks.positive_integer('width', 0), 'width=0 must be at least 1'),
        (lambda: checks.positive_integer('width', True), 'width=True must be an integer'),
        (lambda: checks.positive_integer('width', 2.0), 'width=2.0 must be an integer'),
        (lambda: checks.check_rate('rate', 1), 'rate=1 must be at least 0 and less than 1'),
        (lambda: checks.check_rate('rate', float('nan')), 'rate=nan must be at least 0 and less than 1'),
        (lambda: checks.check_rate('rate', '0.5'), "rate='0.5' must be a number"),
        (lambda: checks.check_like('option', 1, False), 'option=1 must be True or False'),
        (lambda: checks.check_like('option', True, 1), 'option=True must be an integer'),
        (lambda: checks.check_like('option', 'x', 0.5), "option='x' must be a number"),
        (lambda: checks.as_sequence('widths', 16), 'widths=16 must be a sequence'),
        (lambda: checks.as_sequence('widths', '16'), "widths='16' must be a sequence"),
    ],
)
def test_invalid_values_raise(check, message):
    with pytest.raises(InputError, match=message):
        check()
