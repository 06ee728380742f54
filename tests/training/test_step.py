"""Training and evaluation steps: reference values, effects, and compilation."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

from resnet_jax import (
    InputError,
    ResNet,
    TrainConfig,
    create_train_state,
    eval_step,
    init_variables,
    make_spec,
    train_step,
    with_changes,
)
from resnet_jax import numpy_reference as reference
from resnet_jax.tasks.kinds import MultiClass
from resnet_jax.training.config import Averaging, Distillation, optimizer_of
from resnet_jax.training.step import PLAIN, StepOptions, loss_fn

SPEC = make_spec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', num_classes=4)
MODEL = ResNet(SPEC)
CONFIG = TrainConfig().replace(epochs=4, learning_rate=0.1, weight_decay=1e-3, schedule='step', decay_epochs=(3,))
OPTIMIZER = optimizer_of(CONFIG, 10)
QUARTER = StepOptions(distillation=Distillation('teacher', distill_weight=0.25))


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
    """Forward and backward pass, statistics and update, against pure NumPy."""
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
    """After an intentional change (initialization, loss, optimizer), update these values and CHANGELOG.md."""
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


def test_a_few_images_are_memorized(state, batch, jitted):
    for _ in range(25):
        state, sums = jitted(state, batch)
    assert float(sums['loss'] / sums['count']) < 0.1


def test_a_step_is_compiled_once(state, batch):
    jitted = jax.jit(lambda state, batch: train_step(state, batch, model=MODEL, optimizer=OPTIMIZER))
    state, _ = jitted(state, batch)
    jitted(state, batch)
    assert jitted._cache_size() == 1


def test_label_smoothing_raises_the_loss_of_a_confident_network(state, batch, jitted):
    for _ in range(25):
        state, plain = jitted(state, batch)
    arguments = {'model': MODEL, 'task': MultiClass(label_smoothing=0.1)}
    smooth = jax.jit(lambda state: loss_fn(state.params, state.batch_stats, batch, **arguments)[1][0])(state)
    _, plain = jitted(state, batch)
    assert smooth['loss'] > plain['loss'] + 0.5


def test_padded_evaluation_equals_unpadded(state, batch):
    score = jax.jit(lambda variables, batch: eval_step(variables, batch, model=MODEL)[0])
    whole = score(state.variables, batch | {'mask': jnp.ones(8, bool)})
    first = score(state.variables, jax.tree.map(lambda x: x[:5], batch) | {'mask': jnp.ones(5, bool)})
    masked = score(state.variables, batch | {'mask': jnp.arange(8) < 5})
    assert int(whole['count']) == 8
    for name in first:
        np.testing.assert_allclose(masked[name], first[name], rtol=1e-6)


def test_flip_averages_over_mirror_images(state, batch):
    batch = batch | {'mask': jnp.ones(8, bool)}
    mirrored = batch | {'image': batch['image'][:, :, ::-1]}
    plain, other = (eval_step(state.variables, images, model=MODEL)[1] for images in (batch, mirrored))
    both = eval_step(state.variables, batch, model=MODEL, flip=True)[1]
    np.testing.assert_allclose(both, (plain + other) / 2, rtol=1e-5, atol=1e-6)
    assert np.abs(plain - other).max() > 1e-3


def test_shift_averages_over_shifted_images(state, batch):
    batch = batch | {'mask': jnp.ones(8, bool)}
    padded = np.pad(batch['image'], ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
    views = [padded[:, start : start + 6, start : start + 6] for start in (2, 0, 4)]
    views += [view[:, :, ::-1] for view in views]
    each = [eval_step(state.variables, batch | {'image': view}, model=MODEL)[1] for view in views]
    found = eval_step(state.variables, batch, model=MODEL, flip=True, shift=2)[1]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert np.abs(each[1] - each[2]).max() > 1e-3


def test_dropout_depends_on_the_key_and_compiles_once(batch):
    model = ResNet(with_changes(SPEC, drop_path_rate=0.5, dropout_rate=0.3))
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
    """Including the final normalization of a pre-activation network, whose statistics stay too."""
    pattern = '(?!head)'
    model = ResNet(with_changes(SPEC, block='preact_basic'), frozen=pattern)
    optimizer = optimizer_of(CONFIG.replace(freeze=pattern), 10)
    state = create_train_state(init_variables(model, jax.random.key(1), (6, 6, 3)), optimizer)
    after, _ = jax.jit(lambda state: train_step(state, batch, model=model, optimizer=optimizer))(state)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)
    assert not np.array_equal(after.params.pop('head')['kernel'], state.params['head']['kernel'])
    rest = {name: value for name, value in state.params.items() if name != 'head'}
    jax.tree.map(np.testing.assert_array_equal, after.params, rest)


def stepped(model, optimizer, state, batch, options=PLAIN, key=None):
    """Takes a jitted step."""
    step = jax.jit(
        lambda state, batch: train_step(state, batch, model=model, optimizer=optimizer, options=options, key=key)
    )
    return step(state, batch)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize('poison', ['image', 'gradient'])
def test_non_finite_steps_are_skipped(state, batch, poison):
    """Parameters, statistics, momentum and average stay; step and schedule advance."""
    options = StepOptions(averaging=Averaging(0.5))
    state = dataclasses.replace(state, average=jax.tree.map(lambda leaf: leaf + 1, state.variables))
    if poison == 'image':
        batch = batch | {'image': batch['image'].at[0, 0, 0, 0].set(jnp.inf)}
    else:  # finite loss, infinite gradient norm: activations of 1e30, undone by the head
        head = state.params['head'] | {'kernel': state.params['head']['kernel'] * 1e-30}
        block = dict(state.params['stage2_block1'])
        block['norm2'] = block['norm2'] | {'scale': block['norm2']['scale'] * 1e30}
        state = dataclasses.replace(state, params=state.params | {'head': head, 'stage2_block1': block})
    after, sums = stepped(MODEL, OPTIMIZER, state, batch, options)
    assert not np.isfinite(sums['gradient_norm'])
    assert int(sums['skipped']) == 1
    assert float(sums['loss']) == float(sums['count']) == 0
    assert int(after.step) == int(state.step) + 1
    for name in ('params', 'batch_stats', 'average'):
        same(getattr(after, name), getattr(state, name))
    counts, slots = (
        [leaf for leaf in jax.tree.leaves(after.opt_state) if (leaf.ndim == 0) == scalar] for scalar in (True, False)
    )
    assert [int(count) for count in counts] == [1]
    same(slots, [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim])


def test_exponential_moving_average(state, batch, jitted):
    """``a <- d a + (1 - d) new``, with d = min(0.9, (1 + n) / (10 + n)) for the warmup, or every second step."""
    for options, decays in (
        (StepOptions(averaging=Averaging(0.9, ema_warmup=True)), [2 / 11, 3 / 12, 4 / 13, 5 / 14]),
        (StepOptions(averaging=Averaging(0.9, ema_every_steps=2)), [1, 0.9, 1, 0.9]),
    ):
        plain, average = state, jax.device_get(state.variables)
        run = create_train_state(state.variables, OPTIMIZER, average=True)
        step = jax.jit(lambda s, b, o=options: train_step(s, b, model=MODEL, optimizer=OPTIMIZER, options=o))
        for decay in decays:
            plain, _ = jitted(plain, batch)
            run, _ = step(run, batch)
            average = jax.tree.map(lambda a, n, d=decay: d * a + (1 - d) * n, average, plain.variables)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run.average, average)
        assert run.eval_variables is run.average
    options = StepOptions(averaging=Averaging(0.9, reestimate_examples=8))
    after, _ = stepped(MODEL, OPTIMIZER, create_train_state(state.variables, OPTIMIZER, average=True), batch, options)
    same(after.average['batch_stats'], state.batch_stats)


def test_gradient_accumulation(state, batch):
    """Agrees with processing each part (every second example) separately."""
    optimizer = optax.sgd(1.0)
    state = create_train_state(state.variables, optimizer)
    after, sums = stepped(MODEL, optimizer, state, batch, StepOptions(accumulation_steps=2))
    parts, stats = [], state.batch_stats
    gradient_fn = jax.jit(functools.partial(jax.value_and_grad(loss_fn, has_aux=True), model=MODEL))
    for start in (0, 1):
        part = jax.tree.map(lambda x, start=start: x[start::2], batch)
        (_, (_, stats)), gradient = gradient_fn(state.params, stats, part)
        parts.append(gradient)
    expected = jax.tree.map(lambda w, a, b: w - (a + b) / 2, state.params, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), after.params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.batch_stats, stats)
    assert int(sums['count']) == len(batch['label'])


def test_sharpness_aware_minimization(state, batch):
    """``g(w + rho g / |g|)`` (Foret et al. 2021, Eq. 2 and Algorithm 1), with the statistics of w."""
    optimizer = optax.sgd(1.0)
    state = create_train_state(state.variables, optimizer)
    after, sums = stepped(MODEL, optimizer, state, batch, StepOptions(sam_rho=0.1))
    gradient_fn = jax.jit(
        lambda params: jax.value_and_grad(loss_fn, has_aux=True)(params, state.batch_stats, batch, model=MODEL)
    )
    (_, (_, stats)), gradient = gradient_fn(state.params)
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(sums['gradient_norm'], norm, rtol=1e-5)
    uphill = jax.tree.map(lambda w, g: w + 0.1 * g / norm, state.params, gradient)
    expected = jax.tree.map(lambda w, g: w - g, state.params, gradient_fn(uphill)[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), after.params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.batch_stats, stats)


def test_frozen_parameters_have_no_gradient(state, batch):
    """They are excluded from norms, and their gradients are not computed."""
    optimizer, frozen = optax.sgd(1.0), StepOptions(freeze='stem|stage', log_norms=True)
    state = create_train_state(state.variables, optimizer)
    after, sums = stepped(MODEL, optimizer, state, batch, frozen)
    np.testing.assert_allclose(sums['gradient_norm'], sums['norms']['head'][1], rtol=1e-5)
    same(after.params['stem'], state.params['stem'])

    def flops(options):
        step = jax.jit(lambda s, b: train_step(s, b, model=plain, optimizer=optimizer, options=options))
        return step.lower(state, batch).compile().cost_analysis()['flops']

    plain = MODEL.clone(implementation='xla')
    assert flops(StepOptions(freeze='stem|stage')) < 0.6 * flops(PLAIN)


def test_layer_norms(state, batch):
    after, sums = stepped(MODEL, OPTIMIZER, state, batch, StepOptions(log_norms=True))
    assert {'stem/conv', 'stage2_block1/conv2', 'head'} <= set(sums['norms'])
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), after.params['head'], state.params['head'])
    for index, tree in ((0, state.params['head']), (2, moved)):
        expected = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
        np.testing.assert_allclose(sums['norms']['head'][index], expected, rtol=1e-3)


def test_distillation_weight(state, batch):
    """If the teacher agrees with the network, only the weighted task loss remains."""
    outputs = MODEL.apply(state.variables, batch['image'], train=True, mutable=['batch_stats'])[0]
    plain = stepped(MODEL, OPTIMIZER, state, batch)[1]
    taught = stepped(MODEL, OPTIMIZER, state, batch | {'teacher': outputs}, QUARTER)[1]
    np.testing.assert_allclose(taught['loss'], 0.75 * plain['loss'], rtol=1e-5)
    other = batch | {'teacher': -outputs}
    assert stepped(MODEL, OPTIMIZER, state, other, QUARTER)[1]['loss'] > taught['loss']


class TestCustomLoss:
    """A custom loss gets outputs, the batch, and the outputs of the average if one is kept."""

    def test_it_is_called_with_outputs_and_batch(self, state, batch):
        def loss(outputs, batch):
            return jnp.square(outputs).mean(-1) * batch['weight']

        images = {'image': batch['image'], 'weight': jnp.arange(8.0)}  # no label
        value, (sums, _) = loss_fn(state.params, state.batch_stats, images, model=MODEL, loss=loss)
        outputs, _ = MODEL.apply(state.variables, batch['image'], train=True, mutable=['batch_stats'])
        expected = np.square(outputs).mean(-1) * np.arange(8.0)
        np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(sums['loss'], expected.sum(), rtol=1e-5)
        assert int(sums['count']) == 8

    def test_scalar_loss(self, state, batch):
        value, (sums, _) = loss_fn(
            state.params, state.batch_stats, batch, model=MODEL, loss=lambda outputs, batch: outputs.var()
        )
        np.testing.assert_allclose(sums['loss'] / sums['count'], value, rtol=1e-6)

    def test_views_and_the_average(self, state, batch):
        """Outputs are ``[N, V, K]``; the average runs in evaluation mode and without gradient."""
        seen = {}

        def loss(outputs, batch, averaged):
            seen.update(outputs=outputs.shape, averaged=averaged)
            return -(outputs[:, 0] * averaged[:, 1]).sum(-1)

        views = jnp.stack([batch['image'], batch['image'][:, :, ::-1]], axis=1)
        average = jax.tree.map(lambda leaf: leaf + 0.5, state.variables)
        arguments = {'model': MODEL, 'loss': loss, 'average': average}
        loss_fn(state.params, state.batch_stats, {'image': views}, **arguments)
        assert seen['outputs'] == (8, 2, 4)
        expected = MODEL.apply(average, batch['image'][:, :, ::-1], train=False)
        np.testing.assert_allclose(seen['averaged'][:, 1], expected, rtol=1e-4, atol=1e-5)

        def of_average(average):
            return loss_fn(state.params, state.batch_stats, {'image': views}, **(arguments | {'average': average}))[0]

        assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(of_average))(average)))

    def test_outputs_may_be_a_tree(self, state, batch):
        class TwoHeads(nn.Module):
            @nn.compact
            def __call__(self, images, *, train, update_stats=None):
                logits = ResNet(SPEC, name='network')(images, train=train, update_stats=update_stats)
                return {'logits': logits, 'projected': nn.Dense(2)(logits)}

        model, optimizer = TwoHeads(), optax.sgd(0.1)
        start = create_train_state(init_variables(model, jax.random.key(0), (6, 6, 3)), optimizer)

        def loss(outputs, batch):
            return jnp.square(outputs['projected']).mean(-1) + jnp.abs(outputs['logits']).mean(-1)

        step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, loss=loss))
        after, sums = step(start, {'image': batch['image']})
        assert not np.array_equal(after.params['Dense_0']['kernel'], start.params['Dense_0']['kernel'])
        assert np.isfinite(sums['loss'])

    def test_several_views_need_a_custom_loss(self, state, batch):
        views = {'image': batch['image'][:, None], 'label': batch['label']}
        with pytest.raises(InputError, match='1 views per image need a custom loss'):
            loss_fn(state.params, state.batch_stats, views, model=MODEL)


@pytest.mark.parametrize('kind', ['Auto', 'Explicit'])
def test_a_step_on_a_mesh_equals_one_device(batch, kind):
    """With dropout, stochastic depth, an average, and the batch in parts; then an evaluation."""
    model = ResNet(with_changes(SPEC, dropout_rate=0.3, drop_path_rate=0.2))
    options = StepOptions(accumulation_steps=2, averaging=Averaging(0.9), log_norms=True)
    variables = init_variables(model, jax.random.key(1), (6, 6, 3))
    state = create_train_state(variables, OPTIMIZER, average=True)

    @jax.jit
    def compute(state, batch):
        state, sums = train_step(state, batch, model=model, optimizer=OPTIMIZER, key=jax.random.key(2), options=options)
        return state, sums, eval_step(state.variables, batch | {'mask': batch['label'] > 0}, model=model)

    expected = compute(state, batch)
    mesh = jax.make_mesh((2,), ('data',), axis_types=(getattr(jax.sharding.AxisType, kind),))
    whole, split = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ('data',)))
    found = compute(jax.device_put(state, whole), jax.device_put(batch, split))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=1e-4, atol=1e-5)


def twice_donated(state, batch):
    """The loss of two steps whose state is donated."""
    options = StepOptions(averaging=None if state.average is None else Averaging(0.9))
    step = functools.partial(train_step, model=MODEL, optimizer=OPTIMIZER, options=options)
    step = jax.jit(step, donate_argnums=0)
    state, _ = step(state, batch)
    return step(state, batch)[1]['loss']


@pytest.mark.parametrize('average', [False, True])
def test_a_donated_state_leaves_the_variables(batch, average):
    variables = init_variables(MODEL, jax.random.key(1), (6, 6, 3))
    before = jax.tree.map(np.array, variables)
    twice_donated(create_train_state(variables, OPTIMIZER, average=average), batch)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_numpy_variables_are_copied(batch):
    variables = jax.tree.map(np.array, init_variables(MODEL, jax.random.key(1), (6, 6, 3)))
    state = create_train_state(variables, OPTIMIZER)
    before = jax.tree.map(np.array, state.params)
    jax.tree.map(lambda leaf: leaf.fill(7), variables)
    jax.tree.map(np.testing.assert_array_equal, state.params, before)


def test_an_optimizer_that_keeps_the_parameters_can_be_donated(batch):
    keeps = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, state))
    state = create_train_state(init_variables(MODEL, jax.random.key(1), (6, 6, 3)), keeps)
    step = jax.jit(lambda state, batch: train_step(state, batch, model=MODEL, optimizer=keeps), donate_argnums=0)
    assert step(state, batch)[0].step == 1


def test_frozen_dicts_have_the_same_values(state, batch, jitted):
    variables = init_variables(MODEL, jax.random.key(1), (6, 6, 3))
    expected = jitted(state, batch)
    for frozen in (freeze(variables), {name: freeze(tree) for name, tree in variables.items()}):
        jax.tree.map(np.testing.assert_array_equal, jitted(create_train_state(frozen, OPTIMIZER), batch), expected)
        again = dataclasses.replace(state, **frozen, opt_state=OPTIMIZER.init(frozen['params']))
        jax.tree.map(np.testing.assert_array_equal, jitted(again, batch), expected)
        masked = batch | {'mask': jnp.ones(8, bool)}
        sums = [jax.jit(functools.partial(eval_step, model=MODEL))(one, masked) for one in (frozen, variables)]
        jax.tree.map(np.testing.assert_array_equal, *sums)


IMAGE, LABEL, MASK = jnp.zeros((8, 6, 6, 3)), jnp.zeros(8, jnp.int32), jnp.ones(8, bool)
BATCH = {'image': IMAGE, 'label': LABEL}


@pytest.mark.parametrize(
    ('batch', 'options', 'message'),
    [
        ({'images': IMAGE, 'label': LABEL}, {}, "batch has no 'image'; nearest known: images"),
        ({'image': IMAGE, 'labels': LABEL}, {}, "batch has no 'label'; nearest known: labels"),
        ({'image': IMAGE}, {}, "batch has no 'label'; "),
        ({}, {}, "batch has no 'image'; it is empty"),
        ((IMAGE, LABEL), {}, "batch must be a dict with 'image' and 'label', found tuple"),
        ({'image': IMAGE[0], 'label': LABEL[:6]}, {}, r"batch\['image'\] must have shape .*, found \[6, 6, 3\]; "),
        ({'image': IMAGE, 'label': LABEL[:2]}, {}, r"batch\['label'\] must have 8 entries, .*, found shape \[2\]"),
        ({'image': IMAGE, 'label': [0] * 8}, {}, r"batch\['label'\] must be an array, found list"),
        (BATCH | {'target': LABEL}, {}, r"batch\['target'\] must be floats \[8, 4\], .* int32"),
        ({'image': IMAGE.astype(jnp.uint8), 'label': LABEL}, {}, 'images must be floats, normalized as in training'),
        (BATCH, {'key': 0}, r'key must be one random key, such as jax.random.key\(0\), found 0'),
        (BATCH, {'task': 'multiclass'}, "task='multiclass' must be a Task"),
        (BATCH, {'loss': 'mse'}, "loss='mse' must be a function"),
        (BATCH, {'model': 'resnet20'}, 'model must be a Linen module, .*, found str'),
        (BATCH, {'optimizer': optax.sgd}, 'optimizer must be .*, found sgd'),
        (BATCH, {'optimizer': optax.adam(0.1)}, 'state.opt_state is the state of another opt'),
        (
            BATCH,
            {'model': ResNet(with_changes(SPEC, dropout_rate=0.5))},
            'key=None must be a random key',
        ),
        (
            BATCH,
            {'model': ResNet(with_changes(SPEC, num_classes=7))},
            'the variables are not those of the model: For parameter "kernel" in "/head"',
        ),
        (BATCH, {'options': StepOptions(3)}, 'accumulation_steps=3 must divide .*, 8'),
        (BATCH, {'options': StepOptions(averaging=Averaging(0.9))}, 'options.averaging and '),
    ],
)  # fmt: skip
def test_mistakes_in_a_step_are_one_line(state, batch, options, message):
    arguments = {'model': MODEL, 'optimizer': OPTIMIZER} | options
    with pytest.raises(InputError, match=f'^{message}') as raised:
        jax.eval_shape(lambda state: train_step(state, batch, **arguments), state)
    assert '\n' not in str(raised.value)


def test_variables_are_not_a_state(state):
    with pytest.raises(InputError, match=r'^state must be a TrainState, as create_train_state returns, found dict$'):
        train_step(state.variables, BATCH, model=MODEL, optimizer=OPTIMIZER)


@pytest.mark.parametrize(
    ('batch', 'options', 'message'),
    [
        (BATCH, {}, "batch has no 'mask'"),
        ({'image': IMAGE, 'mask': MASK}, {}, "batch has no 'label'"),
        (BATCH | {'mask': jnp.ones(8)}, {}, r"batch\['mask'\] must be bool \[N\], found float32"),
        (BATCH | {'mask': MASK}, {'shift': 6}, 'shift=6 must be below 6, the smaller side of the images'),
        (BATCH | {'mask': MASK}, {'variables': {'stem': {}}}, "variables must be .*, found stem"),
    ],
)  # fmt: skip
def test_mistakes_in_an_evaluation_step_are_one_line(state, batch, options, message):
    variables = options.pop('variables', state.variables)
    with pytest.raises(InputError, match=f'^{message}'):
        jax.eval_shape(lambda: eval_step(variables, batch, model=MODEL, **options))


@pytest.mark.parametrize('variables', [None, {}, {'batch_stats': {}}, {'params': {'w': jnp.zeros(3, jnp.int32)}}])
def test_variables_without_parameters_are_refused(variables):
    with pytest.raises(InputError, match=r"^variables must be a dict with 'params'|^params: w must be a float"):
        create_train_state(variables, OPTIMIZER)
