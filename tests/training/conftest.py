"""Fixtures of the training tests."""

from collections.abc import Iterator

import pytest

from resnet_jax import train_and_evaluate
from resnet_jax.training import report
from tests.training.runs import CONFIG, SPEC


@pytest.fixture(scope='session', autouse=True)
def no_reports() -> Iterator[None]:
    """Replaces the drawing of ``report.png``, which takes longer than these runs; tests elsewhere draw it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'draw_report', lambda path, *_: path.write_bytes(b'\x89PNG'))
        yield


@pytest.fixture(scope='session')
def shades(make_shades):
    return make_shades(50)


@pytest.fixture(scope='session')
def alone(shades, tmp_path_factory):
    """A single run with seed 4: its folder, which tests must not change, and its result."""
    workdir = tmp_path_factory.mktemp('runs') / 'alone'
    return workdir, train_and_evaluate(SPEC, CONFIG.replace(seed=4), workdir, dataset=shades)
