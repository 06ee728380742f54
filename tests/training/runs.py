"""A small network and training configuration, shared by several test files."""

from resnet_jax import TrainConfig, make_spec

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', drop_path_rate=0.1, num_classes=3)
CONFIG = TrainConfig().replace(dataset='shades', epochs=16, batch_size=16, learning_rate=0.1, crop_padding=1, mixup=0.2)
