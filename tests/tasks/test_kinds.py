"""What the tasks share: dense targets, the mistakes they explain, and how one is found or brought."""

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
def test_labels_are_smoothed_in_training_alone(task):
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
def test_dense_targets_give_the_losses_of_the_labels(task, targets, rng):
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
def test_nothing_stands_between_a_step_and_the_loss(name):
    """So that a traceback from inside of a loss is short, and an object that a step closes over is plain."""
    task = TASKS[name]()
    found = [task.training_loss(), task.evaluation_loss()]
    found += [task.distillation_loss(2.0)] if task.distillable else []
    for loss in found:
        assert getattr(loss, 'func', loss) in vars(losses).values()


def test_a_threshold_is_for_sigmoids():
    with pytest.raises(InputError, match=r'target_threshold=0.2 is for sigmoid_cross_entropy, not softmax'):
        MultiClass(target_threshold=0.2)


@pytest.mark.parametrize(
    ('task', 'outputs', 'targets', 'message'),
    [
        (MultiClass(), (4, 3), jnp.zeros((4, 3)), 'labels.argmax(-1) of a one-hot'),
        (MultiClass(), (4, 3), jnp.zeros((4, 1), int), '[4, 3] and targets [4, 1] of int32 do not fit; expected one'),
        (MultiClass(), (4, 3), jnp.zeros((4, 1), int), 'labels[:, 0]'),
        (MultiClass(), (4, 3), jnp.zeros(5, int), 'one integer for each example'),
        (MultiClass(), (4, 3), jnp.zeros(4), 'labels.astype(int)'),
        (Binary(), (4, 2), jnp.zeros(4, int), 'a network with one output: num_classes=1'),
        (Binary(), (4, 1), jnp.zeros((4, 1), int), 'labels[:, 0]'),
        (MultiLabel(), (4, 3), jnp.zeros(4, int), 'as many columns of 0 and 1 as the network has outputs'),
        (Regression(), (4, 1), jnp.zeros(4), 'targets[:, None] makes one'),
        (Regression(), (4, 2), jnp.zeros((4, 3)), 'a column for each output of the network'),
        (Regression(mean=(0.0,) * 3, std=(1.0,) * 3), (4, 2), jnp.zeros((4, 2)), '3 columns'),
    ],
)
def test_a_misfit_is_explained(task, outputs, targets, message):
    with pytest.raises(InputError) as error:
        task.losses(jnp.zeros(outputs), targets)
    assert message in str(error.value)
    assert str(error.value).startswith(f'task={task.name}: outputs {list(outputs)}')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', TASKS)
def test_losses_belong_to_tasks(name):
    assert TASKS[name]().loss == TASKS[name].known_losses[0]
    wrong = 'squared_error' if name != 'regression' else 'softmax_cross_entropy'
    with pytest.raises(InputError, match=f"loss='{wrong}' must be one of .* for task={name}"):
        TASKS[name](wrong)


def test_tasks_are_plain_data():
    assert {MultiClass(), MultiClass(), Binary(), MultiLabel()} == {MultiClass(), Binary(), MultiLabel()}
    assert MultiClass(label_smoothing=0.1) != MultiClass()


class TestNames:
    @pytest.mark.parametrize('name', TASKS)
    def test_a_name_stands_for_its_class(self, name):
        assert TASKS[name].name == name
        assert get_task(name) == get_task(TASKS[name]) == TASKS[name]()
        assert task_name(name) == task_name(TASKS[name](loss='')) == name

    def test_what_is_no_task(self):
        with pytest.raises(InputError, match="task='ordinal' must be one of multiclass, binary, multilabel, regressio"):
            get_task('ordinal')
        with pytest.raises(InputError, match="task='mine:Ordinal' is not built in; it must be given as a class"):
            get_task('mine:Ordinal')
        for wrong in (3, int):
            with pytest.raises(InputError, match='or a subclass of Task or an instance of one'):
                get_task(wrong)

    def test_a_run_makes_its_task(self):
        assert make_task(DEFAULT_TASK, None, 0.1) == MultiClass(label_smoothing=0.1)
        statistics = {'mean': [1.0, 2.0], 'std': [3.0, 4.0]}  # as JSON has them
        assert make_task('regression', 'absolute_error', statistics=statistics) == Regression(
            'absolute_error', mean=(1.0, 2.0), std=(3.0, 4.0)
        )
        given = MultiClass('sigmoid_cross_entropy', label_smoothing=0.2, target_threshold=0.3)
        assert make_task(given) == given
        assert make_task(given, label_smoothing=0.1).target_threshold == 0.3
        with pytest.raises(InputError, match=r'label_smoothing=0.1 is for classes; task=regression takes 0'):
            make_task('regression', label_smoothing=0.1)
        with pytest.raises(InputError, match='task=binary does not take mean'):
            make_task('binary', statistics={'mean': [0.0]})


def test_no_task_is_named_elsewhere(root):
    """Whatever depends on the kind of target is asked of the task: nothing else compares with a task's name."""
    for path in (*(root / 'resnet_jax').rglob('*.py'), *(root / 'experiments').rglob('*.py')):
        if path.parent.name == 'tasks':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            named = node.value if isinstance(node, ast.Constant) else getattr(node, 'arg', None)
            assert named not in TASKS, f'{path}:{node.lineno} names the task {named}'
