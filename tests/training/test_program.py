"""Programs: several seeds at once, teachers, averages with statistics of their own, what the flags of the step do."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from resnet_jax import InputError, Interrupted, ResNetSpec, TrainConfig, load_variables, train_and_evaluate, train_seeds
from resnet_jax.data.examples import Split
from resnet_jax.training.evaluation import Evaluator, StatisticsEstimator
from resnet_jax.training.log import Log
from resnet_jax.training.program import Program, make_model, step_options, together
from resnet_jax.training.sharding import data_mesh

SPEC = ResNetSpec('basic', (1, 1), (8, 16), (1, 2), 'cifar', 8, 'A', drop_path_rate=0.1, num_classes=3)
CONFIG = TrainConfig(dataset='shades', epochs=16, batch_size=16, learning_rate=0.1, crop_padding=1, mixup=0.2)


@pytest.fixture(scope='module')
def shades(make_shades):
    return make_shades(50)


@pytest.fixture(scope='module')
def alone(shades, tmp_path_factory):
    """A run of seed 4 alone."""
    workdir = tmp_path_factory.mktemp('runs') / 'alone'
    return workdir, train_and_evaluate(SPEC, dataclasses.replace(CONFIG, seed=4), workdir, dataset=shades)


def assert_close(first, second):
    trees = [jax.tree.leaves(load_variables(workdir)) for workdir in (first, second)]
    for one, other in zip(*trees, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_seed_among_others_is_the_seed_alone(alone, shades, tmp_path):
    result = train_seeds(SPEC, dataclasses.replace(CONFIG, seed=3), tmp_path, 2, dataset=shades)
    assert_close(tmp_path / 'seed4', alone[0])
    assert result['runs'][1]['seed'] == 4
    assert result['runs'][1]['test_loss'] == pytest.approx(alone[1]['test_loss'], rel=1e-3)
    assert result['runs'][0]['test_loss'] != result['runs'][1]['test_loss']
    accuracies = [run['test_accuracy'] for run in result['runs']]
    assert result['test_accuracy_mean'] == pytest.approx(np.mean(accuracies))
    assert result['test_accuracy_std'] == pytest.approx(np.std(accuracies, ddof=1))
    again = train_seeds(SPEC, dataclasses.replace(CONFIG, seed=3), tmp_path, 2, dataset=shades)
    assert again == result


@pytest.mark.parametrize('form', ['map', 'vmap'])
def test_many_at_once_are_as_one_by_one(form, rng):
    """What a CPU does, in a loop, and what the others do, side by side."""
    x, shared = rng.normal(size=(3, 4)).astype(np.float32), np.float32(2)

    def function(x, shared):
        return {'sum': (x * shared).sum(), 'sorted': jax.numpy.sort(x)}

    if form == 'map':
        found = jax.jit(together(function))(x, shared)
    else:  # the branch of other platforms, which this one can compute as well
        found = jax.jit(lambda x: jax.vmap(lambda x: function(x, shared))(x))(x)
    for index in range(3):
        expected = function(x[index], shared)
        np.testing.assert_allclose(found['sum'][index], expected['sum'], rtol=1e-6)
        np.testing.assert_array_equal(found['sorted'][index], expected['sorted'])


def test_other_platforms_take_the_seeds_side_by_side(shades):
    """As lowered for a TPU, a program of two seeds has no loop; for a CPU it has one."""
    function = jax.jit(together(lambda x, _: x @ x))
    x = jax.ShapeDtypeStruct((3, 4, 4), np.float32)
    texts = {name: jax.export.export(function, platforms=[name])(x).mlir_module() for name in ('cpu', 'tpu')}
    assert 'while' in texts['cpu']
    assert 'while' not in texts['tpu']


def test_a_teacher_of_other_classes_is_refused(alone, shades, tmp_path):
    def in_two(split):
        return Split(split.images, split.labels % 2)

    two = dataclasses.replace(shades, train=in_two(shades.train), test=in_two(shades.test), class_names=('a', 'b'))
    config = dataclasses.replace(CONFIG, distill_from=str(alone[0]))
    with pytest.raises(InputError, match='has 3 outputs, not 2'):
        train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=two)
    assert not (tmp_path / 'run').exists()


def test_a_student_learns_from_its_teacher_alone(alone, shades, tmp_path):
    """With labels that say nothing and the teacher's share of 1 it finds the classes all the same."""
    wrong = dataclasses.replace(shades, train=Split(shades.train.images, np.zeros_like(shades.train.labels)))
    fields = {'distill_from': str(alone[0]), 'distill_weight': 1.0, 'distill_temperature': 2.0, 'mixup': 0.0}
    config = dataclasses.replace(CONFIG, epochs=24, **fields)
    result = train_and_evaluate(SPEC, config, tmp_path, dataset=wrong)
    assert alone[1]['test_accuracy'] > 0.9
    assert result['test_accuracy'] > 0.9


def test_statistics_are_found_anew_as_means_over_batches(alone, shades):
    model = make_model(SPEC, CONFIG)
    model = dataclasses.replace(model, spec=dataclasses.replace(SPEC, num_classes=3, drop_path_rate=0.0))
    variables = load_variables(alone[0])
    spoilt = variables | {'batch_stats': jax.tree.map(lambda leaf: leaf + 5, variables['batch_stats'])}
    estimate = StatisticsEstimator(model, shades.train, shades.mean, shades.std, 50)
    ghosts = StatisticsEstimator(model.clone(statistics=12), shades.train, shades.mean, shades.std, 50)
    assert all(leaf.shape for leaf in jax.tree.leaves(ghosts(variables)['batch_stats']))
    found, again = estimate(variables), estimate(spoilt)
    for one, other in zip(*(jax.tree.leaves(tree['batch_stats']) for tree in (found, again)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
    images = (np.float32(shades.train.images) / 255 - 0.3) / 0.3
    kernel = variables['params']['stem']['conv']['kernel']
    stem = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    np.testing.assert_allclose(found['batch_stats']['stem']['norm']['mean'], stem.mean((0, 1, 2)), rtol=1e-3, atol=1e-3)
    score = Evaluator(model, shades.test, shades.mean, shades.std)
    assert score(found).summary['accuracy'] > 0.9
    assert score(spoilt).summary['accuracy'] < 0.9


def test_an_averaged_run_is_scored_and_loaded_by_its_average(shades, tmp_path):
    config = dataclasses.replace(CONFIG, ema_decay=0.8, ema_warmup=True, reestimate_examples=50, shard_optimizer=True)
    result = train_and_evaluate(SPEC, config, tmp_path, dataset=shades)
    variables = load_variables(tmp_path)
    model = make_model(dataclasses.replace(SPEC, num_classes=3), config)
    total = Evaluator(model, shades.test, shades.mean, shades.std)(variables).summary
    assert total['loss'] == pytest.approx(result['test_loss'], rel=1e-5)


@pytest.mark.slow
def test_found_statistics_depend_on_no_earlier_ones(shades, tmp_path, monkeypatch):
    """A run that was stopped in between, and found them at another moment, ends with the same bytes."""
    fields = {'ema_decay': 0.8, 'reestimate_examples': 50, 'epochs': 3, 'checkpoint_every_steps': 2}
    config = dataclasses.replace(CONFIG, **fields)
    train_and_evaluate(SPEC, config, tmp_path / 'whole', dataset=shades)
    plain = Log.step

    def stop(self, now, *args):
        plain(self, now, *args)
        if now == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, 'step', stop)
    with pytest.raises(Interrupted):
        train_and_evaluate(SPEC, config, tmp_path / 'halved', dataset=shades)
    monkeypatch.undo()
    train_and_evaluate(SPEC, config, tmp_path / 'halved', dataset=shades)
    jax.tree.map(np.testing.assert_array_equal, load_variables(tmp_path / 'halved'), load_variables(tmp_path / 'whole'))


def test_the_optimizer_can_be_split_over_the_devices(shades):
    mesh = data_mesh()
    for shard in (False, True):
        program = Program(SPEC, dataclasses.replace(CONFIG, shard_optimizer=shard), [0], shades, mesh)
        state = program.initial_state(None)
        trace = max(jax.tree.leaves(state.opt_state), key=lambda leaf: leaf.size)
        assert trace.is_fully_replicated == (not shard)
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        state, _ = program.compile_step(state)(state, 0)
        trace = max(jax.tree.leaves(state.opt_state), key=lambda leaf: leaf.size)
        assert trace.is_fully_replicated == (not shard)


def test_settings_reach_the_network_and_the_step():
    config = dataclasses.replace(
        CONFIG, statistics=4, remat=True, accumulation_steps=2, sam_rho=0.1, ema_decay=0.9, reestimate_examples=9
    )
    model, options = make_model(SPEC, config), step_options(config)
    assert (model.statistics, model.remat) == (4, True)
    assert (options.accumulation_steps, options.sam_rho, options.ema_decay) == (2, 0.1, 0.9)
    assert not options.average_statistics


def test_recomputed_blocks_give_the_same_gradients(shades):
    mesh, states = data_mesh(jax.devices()[:1]), []
    for remat in (False, True):
        program = Program(SPEC, dataclasses.replace(CONFIG, remat=remat), [0], shades, mesh)
        state = program.initial_state(None)
        state, sums = program.compile_step(state)(state, 0)
        states.append((state.params, state.batch_stats, sums))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
