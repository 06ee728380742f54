"""Fixtures of the tests of training."""

from collections.abc import Iterator

import pytest

from resnet_jax.training import report


@pytest.fixture(scope='session', autouse=True)
def no_reports() -> Iterator[None]:
    """Runs here leave the place of ``report.png``: drawing it takes longer than they do. Others draw theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'draw_report', lambda path, *_: path.write_bytes(b'\x89PNG'))
        yield
