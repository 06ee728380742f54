"""Checks with real data: accuracy of published weights, and the speed of photographs that feed a training step."""

import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.benchmark_input import Case as InputCase
from experiments.benchmark_input import read_here
from experiments.shared.checks.augmentation import natural_images
from experiments.shared.checks.outcomes import Outcome, Places, Sizes
from experiments.shared.steps import Case, jax_step
from resnet_jax import Preprocessing, from_pretrained, load_dataset
from resnet_jax.data.augment import normalize
from resnet_jax.training.evaluation import Evaluator

# Accuracy of https://github.com/akamaster/pytorch_resnet_cifar10, resnet20-12fca82f.th: 91.73 % of 10,000 images.
PUBLISHED_CORRECT = 9173
# Largest difference of a logit from the CPU's, relative to the largest logit.
_LOGITS = 1e-5
# Share of the slower of input and step that training with photographs must reach on an accelerator.
_FED = 0.7


def check_accuracy(places: Places, dataset: str, weights: str, correct: int = PUBLISHED_CORRECT) -> Outcome:
    """Evaluates published ResNet-20 weights on CIFAR-10's test images, in float32 of highest precision.

    The accuracy under JAX's default precision, TF32 on many GPUs, is only reported.

    Args:
      places: the device and the CPU.
      dataset: ``arrays:DIR`` of CIFAR-10.
      weights: the weights file.
      correct: number of test images that are classified correctly.
    """
    test, loaded = load_dataset(dataset).test, from_pretrained(weights, 'resnet20')
    scale = Preprocessing(32)  # ImageNet's mean and standard deviation, with which the weights were trained

    def evaluate(device: jax.Device, precision: str | None) -> Any:
        with jax.default_matmul_precision(precision):
            evaluator = Evaluator(loaded.model, test, scale.mean, scale.std, [device], keep_outputs=True)
            return evaluator(jax.device_put(loaded.variables, device))

    here, default, there = (
        evaluate(*case) for case in ((places.device, 'highest'), (places.device, None), (places.cpu, 'highest'))
    )
    counts = [int(found.total['correct']) for found in (here, default, there)]
    apart = float(np.abs(here.outputs - there.outputs).max() / np.abs(there.outputs).max())
    values: dict[str, Any] = dict(
        zip(('correct', 'correct in default precision', 'correct on the CPU'), counts, strict=True)
    )
    values |= {'examples': len(test), 'expected': correct, 'difference of logits': apart}
    summary = f'{counts[0]:,} of {len(test):,} correct, expected {correct:,}; default precision {counts[1]:,}'
    return Outcome.of(counts[0] == correct and apart <= _LOGITS, f'{summary}; logits {apart:.1e}', values)


def check_photographs(places: Places, sizes: Sizes, dataset: str | None = None) -> Outcome:
    """Measures images/s of reading photographs, of a training step, and of both together.

    On an accelerator, both together must reach a share of the slower of the two; a CPU does both itself.

    Args:
      places: the device.
      sizes: network, batch, image size and number of steps.
      dataset: ``folder:DIR``; None makes photographs of random noise.
    """
    with tempfile.TemporaryDirectory() as made:
        if dataset is None:
            write_photographs(pathlib.Path(made), sizes.photographs)
        folder = dataset or f'folder:{made}'
        case = InputCase(folder, sizes.speed_size, sizes.speed_batch, 0, 3, sizes.speed_steps)
        step, state = training_step(places, sizes)
        labels = jax.device_put(np.zeros(sizes.speed_batch, np.int32), places.device)
        alone = read_here(case)
        first, speeds = next(alone), {}
        speeds['input'] = _images_per_second(alone, case, lambda images: None)
        alone.close()  # type: ignore[attr-defined]
        _check_batch(first, case)

        def train(images: Any) -> None:
            nonlocal state
            state, sums = step(state, jax.device_put(images, places.device), labels)
            skipped.append(sums['skipped'])

        skipped: list[Any] = []  # 1 where the loss or a gradient is not finite
        speeds['step'] = _images_per_second(_forever(jax.device_put(first, places.device)), case, train, skipped)
        fed = read_here(case)
        speeds['both'] = _images_per_second(fed, case, train, skipped)
        fed.close()  # type: ignore[attr-defined]
    finite = not any(jax.device_get(skipped))
    share = speeds['both'] / min(speeds['input'], speeds['step'])
    words = ', '.join(f'{name} {speed:,.0f}' for name, speed in speeds.items())
    values = {**speeds, 'share': share, 'finite': finite, 'batches': len(skipped), 'folder': dataset or 'random noise'}
    what = f'{sizes.speed_arch} in {sizes.speed_dtype}, {sizes.speed_batch} x {sizes.speed_size}²'
    summary = f'images/s with {what}: {words}' + ('' if finite else '; the loss is not finite')
    return Outcome.of(finite and (places.is_cpu or share >= _FED), summary, values)


def training_step(places: Places, sizes: Sizes) -> tuple[Any, Any]:
    """A compiled step ``(state, uint8 images, labels) -> (state, sums)`` and its first state."""
    case = Case(
        arch=sizes.speed_arch,
        mode='train',
        batch_size=sizes.speed_batch,
        image_size=sizes.speed_size,
        compute_dtype=sizes.speed_dtype,
        implementation='auto',
        scan_blocks=False,
        cardinality=None,
        base_width=None,
    )
    train, make = jax_step(case, plain_flax=False)
    scale = Preprocessing(sizes.speed_size)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        return train(state, {'image': normalize(images, scale.mean, scale.std), 'label': labels})

    with jax.default_device(places.device):
        state, _ = jax.jit(make)(jax.random.key(0))
    return jax.jit(step, donate_argnums=0), jax.device_put(state, places.device)


def _images_per_second(batches: Iterator[Any], case: InputCase, use: Any, results: Any = ()) -> float:
    """Uses ``warmup`` untimed batches and then ``batches`` timed ones; waits for the results, if there are any."""
    for _ in range(case.warmup):
        use(next(batches))
    jax.block_until_ready(list(results))
    start, count = time.perf_counter(), 0
    for _ in range(case.batches):
        images = next(batches)
        use(images)
        count += len(images)
    jax.block_until_ready(list(results))
    return count / (time.perf_counter() - start)


def _forever(batch: Any) -> Iterator[Any]:
    while True:
        yield batch


def _check_batch(images: Any, case: InputCase) -> None:
    expected = (case.batch_size, case.image_size, case.image_size, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise AssertionError(f'batches are {images.dtype} {list(images.shape)}, not uint8 {list(expected)}')


def write_photographs(folder: pathlib.Path, count: int, distinct: int = 32) -> None:
    """Writes JPEG files of 500 x 375 pixels in two classes, ``distinct`` different ones, of about 100 kB each."""
    rng = np.random.default_rng(0)
    for index in range(min(count, distinct)):
        (image,) = natural_images(rng, 1, 375, 500)
        for copy in range(index, count, distinct):
            place = folder / 'train' / f'class{copy % 2}'
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f'{copy:05}.jpg', quality=90)
    for name in ('class0', 'class1'):
        (folder / 'test' / name).mkdir(parents=True)
        Image.fromarray(image).save(folder / 'test' / name / 'last.jpg', quality=90)
