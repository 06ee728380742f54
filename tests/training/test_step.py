"""Steps: golden values, what they touch, and that they compile once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import ResNet, ResNetSpec, TrainConfig, create_train_state, eval_step, init_variables, train_step
from resnet_jax import numpy_reference as reference
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.tasks import MultiClass

SPEC = ResNetSpec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=4)
MODEL = ResNet(SPEC)
CONFIG = TrainConfig(epochs=4, learning_rate=0.1, weight_decay=1e-3, schedule='step', decay_epochs=(3,))
OPTIMIZER = make_optimizer(CONFIG, 10)


@pytest.fixture(scope='module')
def batch():
    rng = np.random.default_rng(0)
    return {
        'image': jnp.asarray(rng.normal(size=(8, 6, 6, 3)), jnp.float32),
        'label': jnp.asarray(rng.integers(0, 4, 8), jnp.int32),
    }


@pytest.fixture(scope='module')
def state():
    return create_train_state(init_variables(MODEL, jax.random.key(1), (6, 6, 3)), OPTIMIZER)


@pytest.fixture(scope='module')
def jitted():
    return jax.jit(lambda state, batch: train_step(state, batch, model=MODEL, optimizer=OPTIMIZER))


def test_one_step_equals_the_reference(state, batch, jitted):
    """Forward, backward, statistics and update of a step, computed with NumPy alone."""
    after, sums = jitted(state, batch)
    wide = jax.tree.map(np.float64, jax.device_get(state.variables))
    outputs, stats, backward = reference.resnet(
        wide['params'], wide['batch_stats'], np.float64(batch['image']), block='basic', stage_sizes=(1, 1),
        strides=(1, 2), stem='cifar', shortcut_kind='A', train=True,
    )  # fmt: skip
    loss, loss_backward = reference.softmax_cross_entropy(outputs['logits'], np.asarray(batch['label']))
    _, grads = backward(loss_backward())
    np.testing.assert_allclose(sums['loss'] / sums['count'], loss, rtol=1e-5)
    params = jax.tree.map(lambda w, g: w - 0.1 * (g + 1e-3 * w), wide['params'], grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), dict(after.params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), dict(after.batch_stats), stats)
    assert int(after.step) == 1


def test_golden_metrics(state, batch, jitted):
    """If this changes on purpose (initialization, loss, optimizer), say so in CHANGELOG.md and put the values here."""
    losses = []
    for _ in range(3):
        state, sums = jitted(state, batch)
        losses.append(float(sums['loss'] / sums['count']))
    np.testing.assert_allclose(losses, [2.101535, 1.467353, 0.829631], rtol=1e-3)


def test_every_parameter_learns(state, batch, jitted):
    after, _ = jitted(state, batch)
    for path, before in jax.tree_util.tree_flatten_with_path(state.params)[0]:
        now = after.params
        for key in path:
            now = now[key.key]
        assert not np.array_equal(before, now), jax.tree_util.keystr(path)


def test_a_few_images_are_learnt_by_heart(state, batch, jitted):
    for _ in range(25):
        state, sums = jitted(state, batch)
    assert float(sums['loss'] / sums['count']) < 0.1


def test_the_second_call_compiles_nothing(state, batch):
    jitted = jax.jit(lambda state, batch: train_step(state, batch, model=MODEL, optimizer=OPTIMIZER))
    state, _ = jitted(state, batch)
    jitted(state, batch)
    assert jitted._cache_size() == 1


def test_label_smoothing_raises_the_loss_of_a_confident_network(state, batch, jitted):
    for _ in range(25):
        state, plain = jitted(state, batch)
    _, smooth = train_step(state, batch, model=MODEL, optimizer=OPTIMIZER, task=MultiClass(label_smoothing=0.1))
    _, plain = train_step(state, batch, model=MODEL, optimizer=OPTIMIZER)
    assert smooth['loss'] > plain['loss'] + 0.5


def test_padded_evaluation_equals_unpadded(state, batch):
    score = jax.jit(lambda variables, batch: eval_step(variables, batch, model=MODEL)[0])
    whole = score(state.variables, batch | {'mask': jnp.ones(8, bool)})
    first = score(state.variables, jax.tree.map(lambda x: x[:5], batch) | {'mask': jnp.ones(5, bool)})
    masked = score(state.variables, batch | {'mask': jnp.arange(8) < 5})
    assert int(whole['count']) == 8
    for name in first:
        np.testing.assert_allclose(masked[name], first[name], rtol=1e-6)


def test_what_is_dropped_at_random_changes_with_the_key_and_compiles_once(batch):
    model = ResNet(dataclasses.replace(SPEC, drop_path_rate=0.5, dropout_rate=0.3))
    step = jax.jit(lambda state, batch, key: train_step(state, batch, model=model, optimizer=OPTIMIZER, key=key))
    state = create_train_state(init_variables(model, jax.random.key(1), (6, 6, 3)), OPTIMIZER)
    losses = []
    for seed in (0, 0, 1, 2):
        after, sums = step(state, batch, jax.random.key(seed))
        losses.append(float(sums['loss']))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    step(after, batch, jax.random.key(3))
    assert step._cache_size() == 1


def test_everything_but_the_head_can_be_frozen(batch):
    """Also the normalization behind a pre-activation network's last block: its statistics stay, too."""
    pattern = '(?!head)'
    model = ResNet(dataclasses.replace(SPEC, block='preact_basic'), frozen=pattern)
    optimizer = make_optimizer(dataclasses.replace(CONFIG, freeze=pattern), 10)
    state = create_train_state(init_variables(model, jax.random.key(1), (6, 6, 3)), optimizer)
    after, _ = jax.jit(lambda state: train_step(state, batch, model=model, optimizer=optimizer))(state)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)
    assert not np.array_equal(after.params.pop('head')['kernel'], state.params['head']['kernel'])
    rest = {name: value for name, value in state.params.items() if name != 'head'}
    jax.tree.map(np.testing.assert_array_equal, after.params, rest)
