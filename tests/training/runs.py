"""A small network and training configuration, and ways to end a run, shared by several test files."""

from resnet_jax import TrainConfig, make_spec
from resnet_jax.training.log import Log

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', drop_path_rate=0.1, num_classes=3)
CONFIG = TrainConfig().replace(dataset='shades', epochs=16, batch_size=16, learning_rate=0.1, crop_padding=1, mixup=0.2)


def after_step(monkeypatch, step, do):
    """Calls ``do`` once a run has taken ``step`` steps."""
    plain = Log.step

    def step_and_do(self, now, *args):
        plain(self, now, *args)
        if now == step:
            do()

    monkeypatch.setattr(Log, 'step', step_and_do)


def kill():
    """Ends a run without saving, like SIGKILL."""
    raise SystemError('killed')
