"""Fixtures with weights: a hub cache, the smallest network, and a run."""

import pathlib
from typing import Any

import jax
import optax
import pytest

from resnet_jax import ResNet, create_model, create_train_state
from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.record import CHECKPOINTS, claim_workdir, describe_run
from resnet_jax.weights.names import tensors_from_variables
from tests.weights.helpers import SPEC, Hub, random_variables

CONFIG = {'task': 'multiclass', 'loss': None, 'compute': {'compute_dtype': 'bfloat16', 'implementation': 'xla'}}


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub cache, offline."""
    constants = pytest.importorskip('huggingface_hub.constants')  # it may have read the environment already
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    return Hub(tmp_path / 'hub')


@pytest.fixture(scope='session')
def small() -> tuple[ResNet, dict[str, Any], dict[str, Any]]:
    """The smallest network, its variables and its state dict."""
    model = create_model('test_resnet')
    variables = random_variables(model)
    return model, variables, tensors_from_variables(variables, model)


@pytest.fixture(scope='session')
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[int, Any]]:
    """The folder of a run on gray images with two checkpoints, of which the first is better, and their variables.

    Its configuration names an unknown optimizer, since nothing is built from it.
    """
    folder = tmp_path_factory.mktemp('runs') / 'run'
    config = CONFIG | {'optimizer': {'name': 'elsewhere:optimizer', 'learning_rate': 0.1}}
    data = {
        'image_shape': (6, 6, 1),
        'mean': (0.3,),
        'std': (0.2,),
        'class_names': ('a', 'b', 'c'),
        'target_statistics': {},
    }
    claim_workdir(folder, describe_run('tiny', SPEC.to_json(), config, data, jax.devices()))
    saved = {}
    for step, accuracy in ((4, 0.9), (8, 0.5)):
        saved[step] = random_variables(ResNet(SPEC), channels=1, seed=step)
        state = create_train_state(saved[step], optax.sgd(0.1, 0.9))
        checkpoint.save_checkpoint(folder / CHECKPOINTS, step, state, accuracy)
    return folder, saved
