"""Big Transfer's rule for fine-tuning settings."""

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
    """Big Transfer's fine-tuning settings, which depend only on the data (Kolesnikov et al. 2020, arXiv:1912.11370).

    Follows section 3.3 and bit_hyperrule.py of the authors' google-research/big_transfer. Training takes 500 steps for
    fewer than 20,000 examples, 10,000 steps for fewer than 500,000, and 20,000 steps for more. SGD's learning rate of
    0.003 for 512 images rises linearly from zero for 500 steps (100 in the shortest schedule), then is divided by 10
    after 30, 60 and 90 % of all steps (40, 60 and 80 % in the shortest, following the code). Mixup is 0.1, except for
    the smallest datasets. Images smaller than 96x96 pixels are resized to 160 and cropped to 128, others resized to 512
    and cropped to 480. There is no weight decay.

    Differences: training ends at the nearest end of an epoch after the last decay; a batch has at most all examples,
    with a proportional learning rate; and evaluation uses images of 160 or 512 pixels instead of 128 or 480.

    Args:
      num_train_examples: number of training examples, at least 1.
      dataset: name as in ``data.datasets.load_dataset``.
      image_pixels: height and width of its images.
      batch_size: examples per step.
      horizontal_flip: mirror half of the images; the authors do so where it makes sense.
      recipe: name of the recipe, for the record.

    Raises:
      InputError: no examples, or a batch size below 1.
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
    # In the code, the rate decays in the step after each of these.
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
