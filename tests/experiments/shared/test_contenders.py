"""Processes that answer requests."""

import os
import time

import pytest

from experiments.shared.contenders import Contender
from resnet_jax import InputError


def adder(start):
    total = start
    while total < 100:
        total += yield total
    os._exit(3)


def test_it_answers_requests_and_reports_its_death_in_one_line():
    contender = Contender('adder', adder, 5)
    assert contender.prepared == 5
    assert [contender.ask(number) for number in (1, 10)] == [6, 16]
    with pytest.raises(InputError, match=r'^adder: its process exited with status 3 \(out of memory'):
        contender.ask(100)
    contender.close()


def test_a_failure_is_one_line_and_closing_is_fast():
    contender = Contender('adder', adder, 5)
    with pytest.raises(InputError, match=r'^adder failed: TypeError: unsupported operand .*$') as error:
        contender.ask('one')
    assert '\n' not in str(error.value)
    start = time.monotonic()
    contender.close()
    assert time.monotonic() - start < 10
