"""Programs: several seeds, averages with recomputed statistics, remat, phases."""

import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

from resnet_jax import (
    InputError,
    Interrupted,
    load_variables,
    train_and_evaluate,
    with_changes,
)
from resnet_jax.checkpoints.checkpoint import checkpoint_steps
from resnet_jax.data.examples import Split
from resnet_jax.data.feeds import THREAD_READER, ArrayFeed
from resnet_jax.devices import data_mesh
from resnet_jax.training import loop, program
from resnet_jax.training.evaluation import Evaluator, StatisticsEstimator
from resnet_jax.training.log import Log
from resnet_jax.training.plan import make_model, make_plan
from resnet_jax.training.program import Phase, compile_program
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.states import initial_state
from tests.training.runs import CONFIG, SPEC, after_step


def assert_close(first, second):
    trees = [jax.tree.leaves(load_variables(workdir)) for workdir in (first, second)]
    for one, other in zip(*trees, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_seed_among_others_agrees_with_a_single_run(alone, shades, tmp_path):
    result = train_and_evaluate(SPEC, CONFIG.replace(seed=3), tmp_path, num_seeds=2, dataset=shades)
    assert_close(tmp_path / 'seed4', alone[0])
    assert result['runs'][1]['seed'] == 4
    assert result['runs'][1]['test_loss'] == pytest.approx(alone[1]['test_loss'], rel=1e-3)
    assert result['runs'][0]['test_loss'] != result['runs'][1]['test_loss']
    accuracies = [run['test_accuracy'] for run in result['runs']]
    assert result['test_accuracy_mean'] == pytest.approx(np.mean(accuracies))
    assert result['test_accuracy_std'] == pytest.approx(np.std(accuracies, ddof=1))
    again = train_and_evaluate(SPEC, CONFIG.replace(seed=3), tmp_path, num_seeds=2, dataset=shades)
    assert again == result


def test_statistics_are_recomputed_as_means_over_batches(alone, shades):
    model = make_model(SPEC, CONFIG)
    model = dataclasses.replace(model, spec=with_changes(SPEC, num_classes=3, drop_path_rate=0.0))
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


def test_the_average_is_evaluated_and_loaded(shades, tmp_path):
    config = CONFIG.replace(ema_decay=0.8, ema_warmup=True, reestimate_examples=50, shard_optimizer=True)
    result = train_and_evaluate(SPEC, config, tmp_path, dataset=shades)
    variables = load_variables(tmp_path)
    model = make_model(with_changes(SPEC, num_classes=3), config)
    total = Evaluator(model, shades.test, shades.mean, shades.std)(variables).summary
    assert total['loss'] == pytest.approx(result['test_loss'], rel=1e-5)


@pytest.mark.slow
def test_recomputed_statistics_do_not_depend_on_earlier_ones(shades, tmp_path, monkeypatch):
    """An interrupted run, which recomputes them at another time, ends bit for bit the same."""
    fields = {'ema_decay': 0.8, 'reestimate_examples': 50, 'epochs': 3, 'checkpoint_every_steps': 2}
    config = CONFIG.replace(**fields)
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


def test_remat_gives_the_same_gradients(shades):
    mesh, states = data_mesh(jax.devices()[:1]), []
    for remat in (False, True):
        plan = make_plan(SPEC, CONFIG.replace(remat=remat), Seeds((0,)), shades, mesh, THREAD_READER)
        state, _ = initial_state(plan)
        state, sums = compile_program(plan, state).step(state, 0)
        states.append((state.params, state.batch_stats, sums))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('fails', ['peek', 'lower', 'Evaluator'])
def test_the_feed_is_closed_if_compilation_fails(fails, shades, monkeypatch):
    plan = make_plan(SPEC, CONFIG, Seeds((0,)), shades, data_mesh(), THREAD_READER)
    state, closed = initial_state(plan)[0], []

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(ArrayFeed, 'close', lambda self: closed.append(self))
    if fails == 'peek':
        monkeypatch.setattr(ArrayFeed, 'peek', fail)
    else:
        monkeypatch.setattr(program, 'take_step' if fails == 'lower' else 'Evaluator', fail)
    with pytest.raises(ZeroDivisionError):
        compile_program(plan, state)
    assert len(closed) == 1


class TestPhases:
    """Phases of training with their own programs."""

    @staticmethod
    def plan_of(shades, **changes):
        config = CONFIG.replace(epochs=2, mixup=0.0, **changes)
        return make_plan(SPEC, config, Seeds((0,)), shades, data_mesh(jax.devices()[:1]), THREAD_READER)

    @pytest.mark.parametrize(
        ('seeds', 'steps_per_call', 'calls'), [((0,), 2, [0, 2]), ((0,), 9, [0]), ((0, 1), 2, [0, 2])]
    )
    def test_several_steps_per_call_agree_with_single_steps(self, seeds, steps_per_call, calls, shades):
        """An epoch has three steps: with two steps per call, a call of two and one of one."""
        plan = dataclasses.replace(self.plan_of(shades), seeds=Seeds(seeds))
        looped = self.plan_of(shades, steps_per_call=steps_per_call).config
        assert plan.epoch_steps == 3
        found = {}
        for name, one in (('single', plan), ('looped', dataclasses.replace(plan, config=looped))):
            state, _ = initial_state(one)
            compiled, sums = compile_program(one, state), []
            for step in calls if name == 'looped' else range(3):
                state, call = compiled.step(state, step)
                sums.append(call)
            axis = plan.seeds.batch_axis
            found[name] = state.params, jax.tree.map(lambda *parts, axis=axis: np.concatenate(parts, axis), *sums)
            assert plan.seeds.num_steps(found[name][1]) == 3
        for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)

    def test_image_size_of_a_phase(self, shades):
        """For constant images, resizing in the phase agrees with resizing them before."""
        plan = self.plan_of(shades, crop_padding=0)
        flat = np.repeat(np.arange(len(shades.train), dtype=np.uint8), 36).reshape(-1, 6, 6, 1)
        sizes = {}
        for size in (None, 4):
            constant = dataclasses.replace(
                shades, train=Split(flat[:, :size, :size] if size else flat, shades.train.labels)
            )
            plan = dataclasses.replace(plan, dataset=constant)
            phases = [Phase(image_size=4 if size is None else None)]
            _, sums = compile_program(plan, initial_state(plan)[0], phases=phases).step(initial_state(plan)[0], 0)
            sizes[size] = sums
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), sizes[None], sizes[4])

    def test_fit_runs_all_phases(self, shades, tmp_path, monkeypatch):
        """Records agree with those of single steps; a call of several steps is one record."""
        config = CONFIG.replace(epochs=2, log_every_steps=1)
        train_and_evaluate(SPEC, config, tmp_path / 'single', dataset=shades)
        phases = functools.partial(compile_program, phases=(Phase(), Phase(1, steps_per_call=2)))
        monkeypatch.setattr(loop, 'compile_program', phases)
        train_and_evaluate(SPEC, config, tmp_path / 'phases', dataset=shades)
        single, phased = (records_of(tmp_path / name) for name in ('single', 'phases'))
        assert [record['step'] for record in phased] == [1, 3, 3, 5, 6, 6]
        losses = {record['step']: record['loss'] for record in single if record['split'] == 'train'}
        expected = [losses[1], (losses[2] + losses[3]) / 2, (losses[4] + losses[5]) / 2, losses[6]]
        found = [record['loss'] for record in phased if record['split'] == 'train']
        assert found == pytest.approx(expected, rel=1e-3)
        tests = [[record['loss'] for record in records if record['split'] == 'test'] for records in (single, phased)]
        assert tests[1] == pytest.approx(tests[0], rel=1e-3)


class TestStepsPerCall:
    """Runs with several steps per call."""

    CONFIG = CONFIG.replace(epochs=2, steps_per_call=2, checkpoint_every_steps=1)

    def test_a_run_resumes_with_another_number(self, shades, tmp_path, monkeypatch):
        """Killed after a call within an epoch and resumed with single steps, a run ends with the same weights."""
        plain = CONFIG.replace(epochs=2)
        train_and_evaluate(SPEC, plain, tmp_path / 'single', dataset=shades)
        with monkeypatch.context() as patch:
            after_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(Interrupted, match='after step 5'):
                train_and_evaluate(SPEC, self.CONFIG, tmp_path / 'calls', dataset=shades)
        assert checkpoint_steps(tmp_path / 'calls' / 'checkpoints')[-1] == 5
        train_and_evaluate(SPEC, plain, tmp_path / 'calls', dataset=shades)
        assert_close(tmp_path / 'calls', tmp_path / 'single')

    def test_every_program_is_compiled_once(self, shades, tmp_path, monkeypatch):
        """Epochs of three steps in calls of two: one program of two steps and one of one, also when resuming."""
        traced, plain = [], program.take_step
        monkeypatch.setattr(program, 'take_step', lambda *args: traced.append(1) or plain(*args))
        train_and_evaluate(SPEC, self.CONFIG, tmp_path / 'odd', dataset=shades)
        assert len(traced) == 2
        train_and_evaluate(SPEC, self.CONFIG.replace(steps_per_call=100), tmp_path / 'whole', dataset=shades)
        assert len(traced) == 3
        assert_close(tmp_path / 'odd', tmp_path / 'whole')

    def test_seeds_in_sequence_share_their_programs(self, alone, shades, tmp_path, caplog):
        """Nothing is compiled for the second and third seed; each agrees with a run of its own."""
        config, compiled = CONFIG.replace(seed=3), []

        def sink(record):
            if record['split'] == 'train' and record['step'] == 3:  # the end of the first epoch
                compiled.append(sum('Compiling' in line for line in caplog.messages))

        with caplog.at_level('DEBUG', logger='jax'), jax.log_compiles():
            result = train_and_evaluate(
                SPEC, config, tmp_path, num_seeds=3, in_sequence=True, dataset=shades, sinks=[sink]
            )
            after = sum('Compiling' in line for line in caplog.messages)
        assert [run['seed'] for run in result['runs']] == [3, 4, 5]
        assert compiled[0] > 2
        assert compiled[1] == compiled[2] == after
        assert_close(tmp_path / 'seed4', alone[0])

    def test_photographs_are_read_for_each_step(self, shades):
        photographs = dataclasses.replace(shades, image_size=6)
        message = 'steps_per_call=2 applies only to images in memory; shades has photographs'
        with pytest.raises(InputError, match=message):
            make_plan(SPEC, self.CONFIG, Seeds((0,)), photographs, data_mesh(), THREAD_READER)


def records_of(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
