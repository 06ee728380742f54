"""Losses and metrics of the tasks against scikit-learn, and the mistakes they explain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn

from resnet_jax import InputError
from resnet_jax.training import metrics
from resnet_jax.training.tasks import TASKS, Binary, MultiClass, MultiLabel, Regression


def totals(task, outputs, targets, batch=16):
    """Sums over batches of one size, the last one filled up with nonsense behind a mask."""
    parts = []
    for start in range(0, len(outputs), batch):
        out, tar = outputs[start : start + batch], targets[start : start + batch]
        mask = np.arange(batch) < len(out)
        missing = batch - len(out)
        out = np.concatenate([out, np.full((missing, *out.shape[1:]), 7, out.dtype)])
        tar = np.concatenate([tar, np.ones((missing, *tar.shape[1:]), tar.dtype)])
        sums = task.sums(task.losses(jnp.asarray(out), jnp.asarray(tar)), out, jnp.asarray(tar), mask)
        parts.append(sums | task.eval_sums(out, tar, mask))
    return metrics.add_up(parts)


def test_classes_against_scikit_learn(rng):
    targets = rng.integers(0, 5, 60).astype(np.int32)
    outputs = rng.normal(size=(60, 6)).astype(np.float32) + 2 * np.eye(6, dtype=np.float32)[targets]
    predicted = outputs.argmax(1)
    found = MultiClass().summarize(totals(MultiClass(), outputs, targets))
    assert found['accuracy'] == pytest.approx(sklearn.accuracy_score(targets, predicted))
    assert found['top5_accuracy'] == pytest.approx(sklearn.top_k_accuracy_score(targets, outputs, k=5, labels=range(6)))
    assert found['loss'] == pytest.approx(sklearn.log_loss(targets, jax.nn.softmax(outputs), labels=range(6)), rel=1e-5)
    for name in ('precision', 'recall', 'f1'):
        expected = getattr(sklearn, f'{name}_score')(targets, predicted, average='macro', zero_division=0)
        assert found[name] == pytest.approx(expected), name


@pytest.mark.parametrize('labels', [1, 4])
def test_labels_against_scikit_learn(labels, rng):
    task = Binary() if labels == 1 else MultiLabel()
    targets = rng.integers(0, 2, (45, labels)).astype(np.int32)
    outputs = (rng.normal(size=(45, labels)) + targets).astype(np.float32)
    given = targets[:, 0] if labels == 1 else targets
    found = task.summarize(totals(task, outputs, given)) | task.scores(outputs, given)
    predicted = outputs > 0
    assert found['accuracy'] == pytest.approx(np.mean(predicted == targets))
    for name in ('precision', 'recall', 'f1'):
        scores = [
            getattr(sklearn, f'{name}_score')(targets[:, k], predicted[:, k], zero_division=0) for k in range(labels)
        ]
        assert found[name] == pytest.approx(np.mean(scores)), name
    aucs = [sklearn.roc_auc_score(targets[:, k], outputs[:, k]) for k in range(labels)]
    precisions = [sklearn.average_precision_score(targets[:, k], outputs[:, k]) for k in range(labels)]
    assert found['roc_auc'] == pytest.approx(np.mean(aucs))
    assert found['average_precision'] == pytest.approx(np.mean(precisions))
    probabilities = task.predictions(outputs)
    losses = [sklearn.log_loss(targets[:, k], probabilities[:, k].astype(float)) for k in range(labels)]
    assert found['loss'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_label_that_all_have_cannot_be_ranked_and_is_left_out():
    targets, outputs = np.array([[1, 0], [1, 1], [1, 0]]), np.array([[0.1, -1], [0.2, 2], [0.3, 1]], np.float32)
    assert MultiLabel().scores(outputs, targets) == {'roc_auc': 1.0, 'average_precision': 1.0}
    assert Binary().scores(outputs[:, :1], targets[:, 0]) == {}


@pytest.mark.parametrize('values', [1, 3])
def test_values_against_scikit_learn(values, rng):
    targets = (rng.normal(size=(50, values)) * 20 + 300).astype(np.float32)
    mean, std = tuple(targets.mean(0).tolist()), tuple(targets.std(0).tolist())
    task = Regression(mean=mean, std=std)
    outputs = ((targets - mean) / std + 0.3 * rng.normal(size=targets.shape)).astype(np.float32)
    predicted = task.predictions(outputs)
    found = task.summarize(totals(task, outputs, targets))
    assert found['r2'] == pytest.approx(sklearn.r2_score(targets, predicted), abs=1e-5)
    assert found['mae'] == pytest.approx(sklearn.mean_absolute_error(targets, predicted), rel=1e-5)
    roots = [sklearn.root_mean_squared_error(targets[:, d], predicted[:, d]) for d in range(values)]
    assert found['rmse'] == pytest.approx(np.mean(roots), rel=1e-5)
    assert found['loss'] == pytest.approx(np.mean(((targets - predicted) / std) ** 2), rel=1e-4)
    absolute = Regression('absolute_error', mean=mean, std=std)
    expected = np.mean(np.abs(targets - predicted) / std)
    assert absolute.summarize(totals(absolute, outputs, targets))['loss'] == pytest.approx(expected, rel=1e-4)


def test_a_value_that_never_changes_has_the_r2_of_scikit_learn():
    constant = np.full((4, 1), 2.0, np.float32)
    for outputs in (constant, constant + 1):
        expected = sklearn.r2_score(constant, outputs)
        assert Regression().summarize(totals(Regression(), outputs, constant))['r2'] == expected


def test_sigmoids_for_classes():
    outputs, targets = np.array([[2.0, -1.0, 0.5]], np.float32), np.array([2], np.int32)
    task = MultiClass('sigmoid_cross_entropy')
    shares = 1 / (1 + np.exp(-outputs))
    expected = -np.mean([np.log(1 - shares[0, 0]), np.log(1 - shares[0, 1]), np.log(shares[0, 2])])
    np.testing.assert_allclose(task.losses(outputs, targets), [expected], rtol=1e-5)
    np.testing.assert_allclose(task.predictions(outputs), shares, rtol=1e-5)
    np.testing.assert_allclose(MultiClass().predictions(outputs).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize('task', [MultiClass(label_smoothing=0.1), Binary(label_smoothing=0.1)])
def test_labels_are_smoothed_in_training_alone(task):
    outputs, targets = jnp.full((2, 1 if task.name == 'binary' else 3), 5.0), jnp.array([1, 1])
    outputs = outputs.at[:, 0].set(9.0) if task.name == 'binary' else outputs.at[:, 1].set(20.0)
    assert np.all(task.losses(outputs, targets, smooth=True) > task.losses(outputs, targets) + 0.3)


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
    for smooth in (False, True):
        found = task.dense_losses(outputs, dense, smooth)
        np.testing.assert_allclose(found, task.losses(outputs, targets, smooth), rtol=1e-6)


def test_mixed_classes_by_hand():
    """Half of class 0 and half of class 1, smoothed by 0.3 over three classes: 0.45, 0.45, 0.1."""
    outputs, dense = jnp.array([[2.0, -1.0, 0.5]]), jnp.array([[0.5, 0.5, 0.0]])
    smooth = np.array([0.45, 0.45, 0.1])
    log_shares = np.asarray(jax.nn.log_softmax(outputs))[0]
    np.testing.assert_allclose(
        MultiClass(label_smoothing=0.3).dense_losses(outputs, dense, True), [-(smooth * log_shares).sum()], rtol=1e-5
    )
    log_yes, log_no = np.asarray(jax.nn.log_sigmoid(outputs))[0], np.asarray(jax.nn.log_sigmoid(-outputs))[0]
    sigmoids = MultiClass('sigmoid_cross_entropy', label_smoothing=0.3)
    expected = -(smooth * log_yes + (1 - smooth) * log_no).mean()
    np.testing.assert_allclose(sigmoids.dense_losses(outputs, dense, True), [expected], rtol=1e-5)
    cut = MultiClass('sigmoid_cross_entropy', label_smoothing=0.3, target_threshold=0.2)
    expected = -(log_yes[0] + log_yes[1] + log_no[2]) / 3
    np.testing.assert_allclose(cut.dense_losses(outputs, dense, True), [expected], rtol=1e-5)


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
