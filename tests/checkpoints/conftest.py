"""Fixture: a folder with one checkpoint."""

import pathlib

import pytest

from resnet_jax.checkpoints.checkpoint import save_checkpoint
from tests.checkpoints.states import STATE


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """``checkpoints`` with step 7, whose score is 0.5."""
    save_checkpoint(tmp_path / 'checkpoints', 7, STATE, 0.5)
    return tmp_path / 'checkpoints'
