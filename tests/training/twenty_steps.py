"""Runs twenty steps with most features on, alone or as one process of a job; for test_devices.py.

python -m tests.training.twenty_steps WORKDIR [COORDINATOR NUM_PROCESSES INDEX]
"""

import sys

import numpy as np

from resnet_jax import TrainConfig, make_spec, train_and_evaluate
from resnet_jax.data.examples import Dataset, Split
from resnet_jax.devices import join_processes

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'B', drop_path_rate=0.1, dropout_rate=0.1, num_classes=3)
CONFIG = TrainConfig().replace(
    **{'dataset': 'shades', 'epochs': 2, 'batch_size': 16, 'learning_rate': 0.05, 'schedule': 'cosine'},
    **{'optimizer': 'lamb', 'clip_norm': 1.0, 'weight_decay': 0.01, 'decayed': 'kernels', 'sam_rho': 0.02},
    **{'loss': 'sigmoid_cross_entropy', 'label_smoothing': 0.1, 'mixup': 0.2, 'cutmix': 1.0},
    **{'crop_area': (0.5, 1.0), 'crop_size': 8, 'horizontal_flip': True, 'policy': 'rand_augment', 'cutout': 2},
    **{'color_jitter': (0.2, 0.2, 0.2), 'random_erasing': 0.2, 'augmentation_repeats': 2},
    **{'ema_decay': 0.9, 'ema_warmup': True, 'reestimate_examples': 64, 'shard_optimizer': True, 'remat': True},
    **{'warmup_epochs': 0.5, 'checkpoint_every_steps': 7, 'log_every_steps': 1},
)


def shades() -> Dataset:
    """Images whose brightness determines their class."""
    rng = np.random.default_rng(0)

    def split(size: int) -> Split:
        labels = (np.arange(size) % 3).astype(np.int32)
        images = rng.integers(0, 60, (size, 10, 10, 3)) + 90 * labels[:, None, None, None]
        return Split(images.astype(np.uint8), labels)

    return Dataset('shades', split(160), split(45), ('a', 'b', 'c'), (0.3,) * 3, (0.3,) * 3)


if __name__ == '__main__':
    workdir, *job = sys.argv[1:]
    if job:
        join_processes(job[0], int(job[1]), int(job[2]))
    train_and_evaluate(SPEC, CONFIG, workdir, dataset=shades())
