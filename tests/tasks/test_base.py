"""Custom tasks: their defaults, and that they are accepted wherever a name is."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.datasets import load_dataset
from resnet_jax.data.examples import Split, dataset_from_arrays
from resnet_jax.errors import InputError
from resnet_jax.tasks.base import Task
from resnet_jax.tasks.kinds import get_task, make_task, task_name
from resnet_jax.tasks.metrics import add_up


@dataclasses.dataclass(frozen=True)
class Counts(Task):
    """Poisson regression; the output is the log rate."""

    name = 'counts'
    has_statistics = True
    scale: float = 1.0

    def check_targets(self, place, targets, names):
        if targets.min() < 0:
            raise InputError(f'{place}: task=counts needs non-negative numbers, found {targets.min()}')
        return names or ('count',)

    def stored_targets(self, targets):
        return targets.astype(np.float32).reshape(len(targets), 1)

    def statistics(self, targets):
        return {'scale': float(targets.mean())}

    def training_loss(self):
        return lambda outputs, targets: (jnp.exp(outputs) - targets * outputs).mean(-1)


class Alone(Task):
    """A task without targets."""

    name = 'alone'
    needs_targets = False

    def training_loss(self):
        return lambda outputs, targets: jnp.square(outputs).mean(-1)

    def num_outputs(self, num_targets):
        return 7


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (6, 4, 4, 1), np.uint8)


@pytest.mark.parametrize('task', [Counts, Counts()])
def test_a_class_or_an_instance_is_accepted(task, images):
    targets = np.array([0, 1, 2, 3, 2, 1])
    dataset = dataset_from_arrays('birds', (images, targets), (images, targets), task=task)
    assert dataset.task == Counts()
    assert (dataset.class_names, dataset.train.labels.dtype, dataset.train.labels.shape) == (
        ('count',),
        np.float32,
        (6, 1),
    )
    assert load_dataset(dataset, task=task) is dataset
    made = make_task(task, statistics=dataset.target_statistics())
    assert made == Counts(scale=1.5)
    assert task_name(task) == f'{__name__}:Counts'
    with pytest.raises(InputError, match="'birds', test: task=counts needs non-negative numbers, found -1"):
        dataset_from_arrays('birds', (images, targets), (images, targets - 1), task=task)


def test_defaults_of_a_custom_task():
    task, outputs, targets = Counts(), jnp.zeros((4, 1)), jnp.array([[0.0], [1.0], [2.0], [9.0]])
    losses = task.losses(outputs, targets)
    np.testing.assert_allclose(losses, 1)
    sums = task.sums(losses, outputs, targets, jnp.array([True, True, True, False]))
    assert task.summarize(add_up([sums])) == {'loss': 1.0}
    assert (task.primary_metric, task.higher_is_better) == ('loss', False)
    assert task.in_words(task.predictions(np.zeros((1, 1))), ('count',)) == [(0.0,)]
    assert hash(task) == hash(Counts())
    for wrong in ({'loss': 'squared_error'}, {'label_smoothing': 0.1}, {'target_threshold': 0.5}):
        with pytest.raises(InputError, match='counts'):
            Counts(**wrong)


def test_targets_may_be_absent(images):
    dataset = dataset_from_arrays('photos', (images, None), (images[:2], None), task=Alone)
    assert dataset.train.labels is None
    assert (dataset.num_classes, dataset.task.num_outputs(dataset.num_classes)) == (0, 7)
    assert dataset.image_shape == (4, 4, 1)
    np.testing.assert_array_equal(dataset.train.pixels, images)
    with pytest.raises(InputError, match='these images have no targets'):
        _ = dataset.train.arrays
    with pytest.raises(InputError, match=r"'photos', train: task=multiclass needs one label per image"):
        dataset_from_arrays('photos', (images, None), (images, None))
    assert Split(images).labels is None


def test_a_task_with_arguments_must_be_an_instance():
    @dataclasses.dataclass(frozen=True)
    class Bins(Task):
        bins: int = dataclasses.field(kw_only=True)

    assert get_task(Bins(bins=3)).bins == 3
    with pytest.raises(InputError, match=r'task=Bins needs arguments .* pass an instance'):
        get_task(Bins)
