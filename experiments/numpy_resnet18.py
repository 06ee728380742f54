"""Runs ResNet-18 in pure NumPy, step by step, on three numbers or on a digit.

python -m experiments.numpy_resnet18 --form=vector                        # three numbers, 21 weights, gradients
python -m experiments.numpy_resnet18 --form=image --image_size=64         # the real network on a digit, against Flax
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.shared import scripts
from resnet_jax import InputError, create_model
from resnet_jax import numpy_reference as reference
from resnet_jax.data.augment import normalize
from resnet_jax.data.datasets import load_dataset
from resnet_jax.numpy_vector import BLOCKS, SIZE, ResNet18

GROUP = 'studies'
FLAGS = flags.FLAGS

X = [1.0, -0.5, 2.0]


def define_flags() -> None:
    flags.DEFINE_enum(
        'form', 'vector', ['vector', 'image'], 'vector: a simplified one-dimensional form; image: the real ResNet-18.'
    )
    flags.DEFINE_integer('seed', 0, 'Seed of the initial weights.', lower_bound=0)
    flags.DEFINE_integer('digit', 0, 'Index of the test digit, from 0 to 359 (image form).', lower_bound=0)
    flags.DEFINE_integer(
        'image_size', 64, 'Height and width in pixels that the digit is resized to (image form).', lower_bound=8
    )


def show(values: np.ndarray) -> str:
    """Formats a vector or a number."""
    return np.array2string(np.asarray(values), precision=4, suppress_small=True, floatmode='fixed')


def vector_form(seed: int) -> None:
    """Prints every stage of the vector form and its gradients, then trains it on a small binary problem."""
    rng = np.random.default_rng(seed)
    weights, biases = rng.uniform(0.3, 0.8, SIZE), rng.uniform(0, 0.1, SIZE)
    network = ResNet18()
    print('block  w1 … w5, b1 … b5')
    for block in range(BLOCKS):
        part = slice(5 * block, 5 * block + 5)
        print(f'  {block + 1}    {show(weights[part])}  {show(biases[part])}')
    print(f'output {show(weights[-1:])}  {show(biases[-1:])}\n')
    for name, value in network.stages(X, weights, biases).items():
        print(f'{name:>12}  {show(value)}')
    loss, dweights, dbiases = network.gradients(X, 1, weights, biases)
    print(f'\nloss for class 1: {loss:.4f}; its gradients')
    for block in range(BLOCKS):
        part = slice(5 * block, 5 * block + 5)
        print(f'  block {block + 1}  weights {show(dweights[part])}')
        print(f'           biases  {show(dbiases[part])}')
    print(f'   output  weight {show(dweights[-1:])}  bias {show(dbiases[-1:])}')

    x, held_out = rng.normal(size=(200, 3)), rng.normal(size=(1000, 3))
    labels, truth = x.mean(1) > 0.2, held_out.mean(1) > 0.2
    weights, biases, losses = network.fit(x, labels, weights, biases)
    accuracy = np.mean((network.predict(held_out, weights, biases) > 0.5) == truth)
    majority = max(truth.mean(), 1 - truth.mean())
    print('\ntraining: is the mean of three numbers above 0.2? 200 vectors, 500 steps of gradient descent')
    for step in (0, 10, 100, 499):
        print(f'  step {step:3d}  loss {losses[step]:.4f}')
    print(f'accuracy on 1,000 held-out vectors {accuracy:.3f}; majority class {majority:.3f}')


def image_form(seed: int, digit: int, image_size: int) -> None:
    """Prints the stages of the real network on a digit and the difference from the Flax network."""
    dataset = load_dataset('digits', image_size=image_size)
    if digit >= len(dataset.test):
        raise InputError(f'digit={digit} must be less than {len(dataset.test)}')
    image = jnp.asarray(dataset.test.arrays[0][digit : digit + 1])
    images = np.asarray(normalize(image, dataset.mean, dataset.std), np.float64)
    params, stats = reference.resnet18_init(np.random.default_rng(seed), num_classes=10, in_channels=1)
    outputs, _, _ = reference.resnet18(params, stats, images, train=False)
    model = create_model('resnet18', num_classes=10)
    variables = jax.tree.map(np.float32, {'params': params, 'batch_stats': stats})
    theirs: Any = model.apply(variables, np.float32(images), train=False, method=model.features)
    theirs |= {'logits': model.apply(variables, np.float32(images), train=False)}

    name = dataset.class_names[dataset.test.arrays[1][digit]]
    print(f'digit {name}, {image_size} x {image_size}, ResNet-18 at initialization\n')
    print(f'{"":>8}  {"shape":<18}{"mean":>9}{"std":>11}{"largest":>9}   difference from Flax')
    for name in ('stem', 'stage1', 'stage2', 'stage3', 'stage4', 'pooled', 'logits'):
        ours = outputs[name]
        largest = np.abs(ours).max()
        difference = np.abs(ours - np.asarray(theirs[name])).max() / largest
        print(f'{name:>8}  {ours.shape!s:<18}{ours.mean():9.4f}{ours.std():11.4f}{largest:9.4f}   {difference:.1e}')
    logits = outputs['logits']
    print(f'\nsoftmax over ten classes   {show(reference.softmax(logits)[0][0])}')
    print(f'sigmoid of the first two   {show(reference.sigmoid(logits[:, :2])[0][0])}')


def main() -> None:
    for name in ('digit', 'image_size') if FLAGS.form == 'vector' else ():
        if FLAGS[name].present:
            raise InputError(f'{name}={FLAGS[name].value} needs --form=image')
    if FLAGS.form == 'vector':
        vector_form(FLAGS.seed)
    else:
        image_form(FLAGS.seed, FLAGS.digit, FLAGS.image_size)


if __name__ == '__main__':
    scripts.run(main, define_flags)
