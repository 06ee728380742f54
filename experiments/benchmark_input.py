"""Times the photograph input pipeline against torchvision and TensorFlow.

python -m experiments.benchmark_input --dataset=folder:DIR
python -m experiments.benchmark_input --dataset=folder:DIR --num_workers=8 --against=torchvision,tf_antialias,tf

Random crops of 8 to 100 % of the area of a folder's training images are resized to uint8 squares of --image_size
pixels, ready for a device. Every turn is its own process, and the readers alternate, so that other load on the machine
affects all of them. ``tf`` resizes without antialiasing, the others with it.
"""

import dataclasses
import importlib.util
import itertools
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from absl import flags

from experiments.shared import scripts
from experiments.shared.contenders import Contender
from resnet_jax import InputError
from resnet_jax.data import stream
from resnet_jax.data.folder import list_folder
from resnet_jax.devices import usable_cores

GROUP = 'tools'
FLAGS = flags.FLAGS

_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
# More batches than any turn reads.
_LAST = 1_000_000


def define_flags() -> None:
    flags.DEFINE_string('dataset', None, 'folder:DIR with photographs; TensorFlow needs JPEG.')
    flags.DEFINE_integer('image_size', 224, 'Height and width of the output in pixels.', lower_bound=1)
    flags.DEFINE_integer('batch_size', 50, 'Images per batch.', lower_bound=1)
    flags.DEFINE_integer(
        'num_workers', 0, 'Processes that decode; 0 uses threads, for torchvision one process per core.', lower_bound=0
    )
    flags.DEFINE_integer(
        'warmup', 20, 'Untimed batches per turn, while processes start and caches fill.', lower_bound=1
    )
    flags.DEFINE_integer('batches', 100, 'Timed batches per turn.', lower_bound=1)
    flags.DEFINE_integer('rounds', 3, 'Number of turns per reader.', lower_bound=1)
    flags.DEFINE_list('against', [], 'Readers to compare with, separated by commas: torchvision, tf_antialias, tf.')


@dataclasses.dataclass(frozen=True)
class Case:
    """What to time; the fields are the flags of the same names."""

    dataset: str
    image_size: int
    batch_size: int
    num_workers: int
    warmup: int
    batches: int


def files_of(case: Case) -> list[str]:
    images = list_folder(case.dataset)[0]['train'].photographs
    return [images.name(index) for index in range(len(images))]


def read_here(case: Case) -> Iterator[Any]:
    """Yields batches the way training reads them."""
    images = list_folder(case.dataset)[0]['train'].photographs
    size = min(case.batch_size, len(images))
    crop = stream.RandomCrop(case.image_size, _AREA, _RATIO)
    function = stream.TrainingImages(images, 0, size, 1, crop, range(size))
    batches = stream.batches(function, 0, _LAST, size, case.num_workers)
    try:
        for batch in batches:
            yield batch['image']
    finally:
        if (close := getattr(batches, 'close', None)) is not None:
            close()


class Files:
    """A PyTorch dataset of image files, like torchvision's ``ImageFolder`` without labels."""

    def __init__(self, files: list[str], size: int):
        from torchvision import transforms

        self.files = files
        self.transform = transforms.Compose(
            [transforms.RandomResizedCrop(size, _AREA, _RATIO), transforms.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from torchvision.datasets.folder import default_loader

        return self.transform(default_loader(self.files[index]))


def read_with_torchvision(case: Case) -> Iterator[Any]:
    import torch

    torch.set_num_threads(1)
    files: Any = Files(files_of(case), case.image_size)
    options: dict[str, Any] = {'num_workers': case.num_workers or usable_cores(), 'persistent_workers': True}
    loader = torch.utils.data.DataLoader(files, batch_size=case.batch_size, shuffle=True, drop_last=True, **options)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def read_with_tensorflow(case: Case, antialias: bool) -> Iterator[Any]:
    """Reads with ``tf.data``, decoding only the crop."""
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    import tensorflow as tf

    files, size = files_of(case), (case.image_size, case.image_size)
    whole = tf.zeros((1, 0, 4))

    def load(path: Any) -> Any:
        data = tf.io.read_file(path)
        options = {'aspect_ratio_range': _RATIO, 'area_range': _AREA, 'max_attempts': 10, 'min_object_covered': 0.0}
        options['use_image_if_no_bounding_boxes'] = True
        shape = tf.io.extract_jpeg_shape(data)
        start, extent, _ = tf.image.sample_distorted_bounding_box(shape, whole, **options)
        part = tf.concat([start[:2], extent[:2]], 0)
        pixels = tf.io.decode_and_crop_jpeg(data, part, channels=3)
        return tf.cast(tf.round(tf.image.resize(pixels, size, antialias=antialias)), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    return iter(data.map(load, tf.data.AUTOTUNE).batch(case.batch_size).prefetch(tf.data.AUTOTUNE))


READERS: dict[str, tuple[Callable[[Case], Iterator[Any]], str]] = {
    'ours': (read_here, 'grain'),
    'torchvision': (read_with_torchvision, 'torchvision'),
    'tf_antialias': (lambda case: read_with_tensorflow(case, antialias=True), 'tensorflow'),
    'tf': (lambda case: read_with_tensorflow(case, antialias=False), 'tensorflow'),
}


def images_per_second(name: str, case: Case) -> Generator[float, None, None]:
    """One turn of a reader: yields its images per second."""
    batches = READERS[name][0](case)
    for _ in range(case.warmup):
        next(batches)
    start, count = time.perf_counter(), 0
    for _ in range(case.batches):
        count += len(next(batches))
    seconds = time.perf_counter() - start
    if (close := getattr(batches, 'close', None)) is not None:
        close()
    yield count / seconds


def take_turn(name: str, case: Case) -> float:
    """Images per second of one turn, in its own process.

    Raises:
      InputError: the reader failed.
    """
    contender = Contender(name, images_per_second, name, case)
    contender.close()
    return contender.prepared


def main() -> None:
    if not (FLAGS.dataset or '').startswith('folder:'):
        raise InputError(f'dataset={FLAGS.dataset} must be folder:DIR')
    for name in FLAGS.against:
        if name not in READERS or name == 'ours':
            raise InputError(f'against={name!r} must be one of {", ".join(list(READERS)[1:])}')
        if importlib.util.find_spec(READERS[name][1]) is None:
            raise InputError(f'against={name} needs {READERS[name][1]}: pip install {READERS[name][1]}')
    case = Case(**{field.name: getattr(FLAGS, field.name) for field in dataclasses.fields(Case)})
    files_of(case)  # raises errors before anything starts
    turns: dict[str, list[float]] = {name: [] for name in ('ours', *FLAGS.against)}
    for _ in range(FLAGS.rounds):
        for name, found in turns.items():
            found.append(take_turn(name, case))
    rows = []
    for name, found in turns.items():
        speed = statistics.median(found)
        ratios = [ours / other for ours, other in zip(turns['ours'], found, strict=True)]
        rows.append((name, f'{speed:,.0f}', f'{speed / usable_cores():,.0f}', f'{statistics.median(ratios):.2f}'))
    print(scripts.markdown_table(('reader', 'images/s', 'images/s per core', 'ours / reader'), rows))


if __name__ == '__main__':
    scripts.run(main, define_flags)
