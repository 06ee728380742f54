"""Behavior that all tasks share: dense targets, error messages, and lookup."""

import ast
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.tasks import losses
from resnet_jax.tasks.binary import Binary
from resnet_jax.tasks.kinds import DEFAULT_TASK, TASKS, get_task, make_task, task_name
from resnet_jax.tasks.multiclass import MultiClass
from resnet_jax.tasks.multilabel import MultiLabel
from resnet_jax.tasks.regression import Regression


@pytest.mark.parametrize('task', [MultiClass(label_smoothing=0.1), Binary(label_smoothing=0.1)])
def test_label_smoothing_applies_only_to_training(task):
    outputs, targets = jnp.full((2, 1 if task.name == 'binary' else 3), 5.0), jnp.array([1, 1])
    outputs = outputs.at[:, 0].set(9.0) if task.name == 'binary' else outputs.at[:, 1].set(20.0)
    smoothed = task.training_loss()(outputs, task.dense_targets(outputs, targets))
    assert np.all(smoothed > task.losses(outputs, targets) + 0.3)


@pytest.mark.parametrize(
    ('task', 'targets'),
    [
        (MultiClass(label_smoothing=0.1), jnp.array([0, 2])),
        (MultiClass('sigmoid_cross_entropy', label_smoothing=0.1), jnp.array([0, 2])),
        (MultiLabel(label_smoothing=0.1), jnp.array([[1, 0, 1], [0, 0, 1]])),
        (Regression(mean=(1.0,), std=(3.0,)), jnp.array([[1.0, 2, 3], [4, 5, 6]])),
    ],
)
def test_losses_of_dense_targets_and_labels_agree(task, targets, rng):
    outputs = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    dense = task.dense_targets(outputs, targets)
    assert (dense.shape, dense.dtype) == (outputs.shape, jnp.float32)
    if task.loss == 'softmax_cross_entropy':
        smoothed = losses.softmax_cross_entropy(outputs, targets, task.label_smoothing)
        np.testing.assert_allclose(task.training_loss()(outputs, dense), smoothed, rtol=1e-6)
        np.testing.assert_allclose(task.losses(outputs, targets), losses.softmax_cross_entropy(outputs, targets))
    plain = dataclasses.replace(task, label_smoothing=0.0)
    np.testing.assert_array_equal(plain.training_loss()(outputs, dense), task.evaluation_loss()(outputs, dense))


@pytest.mark.parametrize('name', TASKS)
def test_losses_are_plain_functions(name):
    """This keeps tracebacks from a loss short, and what a step closes over plain."""
    task = TASKS[name]()
    found = [task.training_loss(), task.evaluation_loss()]
    found += [task.distillation_loss(2.0)] if task.distillable else []
    for loss in found:
        assert getattr(loss, 'func', loss) in vars(losses).values()


def test_a_threshold_needs_sigmoids():
    with pytest.raises(InputError, match=r'target_threshold=0.2 applies only to sigmoid_cross_entropy, not to softmax'):
        MultiClass(target_threshold=0.2)


@pytest.mark.parametrize(
    ('task', 'outputs', 'targets', 'message'),
    [
        (MultiClass(), (4, 3), jnp.zeros((4, 3)), 'for one-hot labels use labels.argmax(-1)'),
        (MultiClass(), (4, 3), jnp.zeros((4, 1), int), '[4, 3] and targets [4, 1] of int32 do not fit; expected one'),
        (MultiClass(), (4, 3), jnp.zeros((4, 1), int), 'use labels[:, 0]'),
        (MultiClass(), (4, 3), jnp.zeros(5, int), 'one integer per example'),
        (MultiClass(), (4, 3), jnp.zeros(4), 'labels.astype(int)'),
        (Binary(), (4, 2), jnp.zeros(4, int), 'a network with one output (num_classes=1)'),
        (Binary(), (4, 1), jnp.zeros((4, 1), int), 'use labels[:, 0]'),
        (MultiLabel(), (4, 3), jnp.zeros(4, int), 'one column of 0 and 1 per output of the network'),
        (Regression(), (4, 1), jnp.zeros(4), 'use targets[:, None]'),
        (Regression(), (4, 2), jnp.zeros((4, 3)), 'one column per output of the network'),
        (Regression(mean=(0.0,) * 3, std=(1.0,) * 3), (4, 2), jnp.zeros((4, 2)), '3 columns'),
    ],
)
def test_mismatched_targets_raise(task, outputs, targets, message):
    with pytest.raises(InputError) as error:
        task.losses(jnp.zeros(outputs), targets)
    assert message in str(error.value)
    assert str(error.value).startswith(f'task={task.name}: outputs {list(outputs)}')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', TASKS)
def test_each_task_accepts_only_its_losses(name):
    assert TASKS[name]().loss == TASKS[name].known_losses[0]
    wrong = 'squared_error' if name != 'regression' else 'softmax_cross_entropy'
    with pytest.raises(InputError, match=f"loss='{wrong}' must be one of .* for task={name}"):
        TASKS[name](wrong)


def test_tasks_are_hashable_and_comparable():
    assert {MultiClass(), MultiClass(), Binary(), MultiLabel()} == {MultiClass(), Binary(), MultiLabel()}
    assert MultiClass(label_smoothing=0.1) != MultiClass()


class TestNames:
    @pytest.mark.parametrize('name', TASKS)
    def test_lookup_by_name_and_class(self, name):
        assert TASKS[name].name == name
        assert get_task(name) == get_task(TASKS[name]) == TASKS[name]()
        assert task_name(name) == task_name(TASKS[name](loss='')) == name

    def test_invalid_tasks_raise(self):
        with pytest.raises(InputError, match="task='ordinal' must be one of multiclass, binary, multilabel, regressio"):
            get_task('ordinal')
        with pytest.raises(InputError, match="task='mine:Ordinal' is not built in; pass it as a class"):
            get_task('mine:Ordinal')
        for wrong in (3, int):
            with pytest.raises(InputError, match='a subclass of Task, or an instance of one'):
                get_task(wrong)

    def test_make_task(self):
        assert make_task(DEFAULT_TASK, None, 0.1) == MultiClass(label_smoothing=0.1)
        statistics = {'mean': [1.0, 2.0], 'std': [3.0, 4.0]}  # lists, as read from JSON
        assert make_task('regression', 'absolute_error', statistics=statistics) == Regression(
            'absolute_error', mean=(1.0, 2.0), std=(3.0, 4.0)
        )
        given = MultiClass('sigmoid_cross_entropy', label_smoothing=0.2, target_threshold=0.3)
        assert make_task(given) == given
        assert make_task(given, label_smoothing=0.1).target_threshold == 0.3
        with pytest.raises(InputError, match=r'label_smoothing=0.1 is not supported for task=regression'):
            make_task('regression', label_smoothing=0.1)
        with pytest.raises(InputError, match='task=binary does not support mean'):
            make_task('binary', statistics={'mean': [0.0]})


def test_task_names_occur_only_in_tasks(root):
    """Behavior that depends on the kind of target belongs to the task; other code must not compare task names."""
    for path in (*(root / 'resnet_jax').rglob('*.py'), *(root / 'experiments').rglob('*.py')):
        if path.parent.name == 'tasks':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            named = node.value if isinstance(node, ast.Constant) else getattr(node, 'arg', None)
            assert named not in TASKS, f'{path}:{node.lineno} names the task {named}'
