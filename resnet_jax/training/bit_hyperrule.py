"""Big Transfer's settings for fine-tuning."""

import math

from resnet_jax.data.augment import Augmentation
from resnet_jax.errors import InputError
from resnet_jax.training.config import Data, TrainConfig
from resnet_jax.training.optimizers import SGD
from resnet_jax.training.schedules import StepDecay, Warmup


def bit_hyperrule(
    num_train_examples: int,
    *,
    dataset: str = 'cifar10',
    image_pixels: int = 32,
    batch_size: int = 512,
    horizontal_flip: bool = True,
    recipe: str = 'bit_hyperrule',
) -> TrainConfig:
    """How Big Transfer fine-tunes: settings that follow from the data alone (Kolesnikov et al. 2020, arXiv:1912.11370).

    Section 3.3, and bit_hyperrule.py of the authors' google-research/big_transfer: fewer than 20,000 examples train 500
    steps, fewer than 500,000 train 10,000 and more 20,000. SGD of 0.003 for 512 images rises linearly from zero for 500
    steps, 100 in the shortest schedule, and falls to a tenth after 30, 60 and 90 % of all steps (40, 60 and 80 % in the
    code's shortest, which is followed). Mixup of 0.1 but for the smallest data. Images of less than 96x96 pixels are
    enlarged to 160 and cropped to 128, others resized to 512 and cropped to 480. No weight decay.

    Other than there, training ends with an epoch, the nearest one that lies behind the last fall of the rate; a batch
    has no more than all examples, with the learning rate in proportion; and evaluation sees images of 160 or 512
    pixels, the authors' of 128 or 480.

    Args:
      num_train_examples: size of the training set, at least 1.
      dataset: name as in ``data.datasets.load_dataset``.
      image_pixels: height and width of its images.
      batch_size: examples in a step.
      horizontal_flip: mirror half of the images; the authors do where it makes sense.
      recipe: for the record.

    Raises:
      InputError: no examples, or a batch of less than one.
    """
    for name, value in (('num_train_examples', num_train_examples), ('batch_size', batch_size)):
        if value < 1:
            raise InputError(f'{name}={value} must be at least 1')
    supports = (500, 6_000, 12_000, 18_000, 20_000)
    if num_train_examples < 20_000:
        supports = (100, 200, 300, 400, 500)
    elif num_train_examples < 500_000:
        supports = (500, 3_000, 6_000, 9_000, 10_000)
    batch_size = min(batch_size, num_train_examples)
    epoch_steps = num_train_examples // batch_size
    # The code's rate falls in the step behind each of these.
    decay_epochs = tuple((step + 1) / epoch_steps for step in supports[1:-1])
    small = image_pixels < 96
    return TrainConfig(
        recipe=recipe,
        data=Data(dataset, image_size=160 if small else 512),
        epochs=max(round(supports[-1] / epoch_steps), math.floor(decay_epochs[-1]) + 1),
        batch_size=batch_size,
        optimizer=SGD(learning_rate=0.003, learning_rate_batch_size=512, weight_decay=0.0),
        schedule=StepDecay(decay_epochs=decay_epochs, warmup=Warmup(supports[0] / epoch_steps, warmup_start=0.0)),
        augmentation=Augmentation(
            crop_size=128 if small else 480,
            horizontal_flip=horizontal_flip,
            mixup=0.0 if num_train_examples < 20_000 else 0.1,
        ),
    )
