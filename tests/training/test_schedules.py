"""Learning rates against independent formulas at selected steps."""

import math

import jax
import numpy as np
import pytest

from resnet_jax import TrainConfig
from resnet_jax.training.config import rate_of


def rates(steps_per_epoch=10, **fields):
    """The rate at every step, and one step after the last."""
    schedule = jax.jit(jax.vmap(rate_of(TrainConfig().replace(**fields), steps_per_epoch)))
    return np.asarray(schedule(np.arange(fields['epochs'] * steps_per_epoch + 1)))


def test_warmup_and_cosine():
    values = rates(epochs=10, learning_rate=0.4, schedule='cosine', warmup_epochs=2)
    np.testing.assert_allclose(values[:20], 0.4 * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(values[[20, 60, 100]], [0.4, 0.2, 0.0], atol=1e-7)


def test_linear():
    values = rates(epochs=4, learning_rate=1.0, schedule='linear', warmup_epochs=1)
    np.testing.assert_allclose(values[[9, 10, 25, 40]], [1.0, 1.0, 0.5, 0.0], atol=1e-6)


def test_step_decays_exactly_at_its_epochs():
    values = rates(epochs=6, learning_rate=1.0, schedule='step', decay_epochs=(2, 4), decay_factor=0.2)
    np.testing.assert_allclose(values[[0, 19, 20, 39, 40, 59]], [1, 1, 0.2, 0.2, 0.04, 0.04], rtol=1e-6)


def test_constant():
    values = rates(epochs=3, learning_rate=0.3, schedule='constant', warmup_epochs=1)
    np.testing.assert_allclose(values[[0, 9, 10, 29]], [0.03, 0.3, 0.3, 0.3], rtol=1e-6)


@pytest.mark.parametrize('power', [0.5, 2.0])
def test_polynomial_ends_at_the_final_rate(power):
    values = rates(
        epochs=4,
        learning_rate=1.0,
        schedule='polynomial',
        schedule_power=power,
        final_learning_rate=0.2,
        warmup_epochs=1,
    )
    for step in (10, 11, 25, 39, 40):
        assert values[step] == pytest.approx(0.2 + 0.8 * (1 - (step - 10) / 30) ** power, rel=1e-5)
    linear = rates(epochs=4, learning_rate=1.0, schedule='linear', final_learning_rate=0.2)
    assert linear[20] == pytest.approx(0.6)


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'step', 'constant', 'polynomial', 'one_cycle'])
def test_the_peak_is_scaled_to_the_batch(schedule):
    fields = {'epochs': 5, 'schedule': schedule, 'warmup_epochs': 1} | (
        {'decay_epochs': (3,)} if schedule == 'step' else {}
    )
    scaled = rates(learning_rate=0.1, batch_size=512, learning_rate_batch_size=256, **fields)
    assert scaled.max() == pytest.approx(0.2, rel=1e-6)
    np.testing.assert_allclose(scaled, 2 * rates(learning_rate=0.1, **fields), rtol=1e-6)


def test_warmup_start():
    values = rates(epochs=4, learning_rate=0.5, warmup_epochs=1, warmup_start=0.01)
    np.testing.assert_allclose(values[:10], 0.5 * (0.01 + 0.99 * np.arange(10) / 10), rtol=1e-6)
    assert values[10] == pytest.approx(0.5)
    assert rates(epochs=4, learning_rate=0.5, warmup_epochs=1, warmup_start=0.0)[0] == 0


@pytest.mark.parametrize('schedule', ['cosine', 'linear'])
def test_without_prefix_the_schedule_runs_during_the_warmup(schedule):
    fields = {'epochs': 10, 'learning_rate': 1.0, 'schedule': schedule, 'warmup_epochs': 2}
    values, whole = rates(**fields, warmup_prefix=False), rates(**fields | {'warmup_epochs': 0})
    np.testing.assert_allclose(values[20:], whole[20:], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(values[:20], np.arange(1, 21) / 20, rtol=1e-6)
    assert rates(**fields)[20] == 1.0 > values[20]


def test_a_per_epoch_rate_is_that_of_the_start_of_the_epoch():
    """Torchvision's reference: LinearLR from 0.01 over 5 epochs, then CosineAnnealingLR over the other 15."""
    values = rates(
        7, epochs=20, learning_rate=0.5, schedule='cosine', schedule_unit='epoch', warmup_epochs=5, warmup_start=0.01
    )
    for step, value in enumerate(values[:-1]):
        epoch = step // 7
        share = 0.01 + 0.99 * epoch / 5 if epoch < 5 else (1 + math.cos(math.pi * (epoch - 5) / 15)) / 2
        assert value == pytest.approx(0.5 * share, rel=1e-5), step


def test_per_epoch_decays_and_fractional_warmups_round_up():
    fields = {'schedule': 'step', 'schedule_unit': 'epoch', 'learning_rate': 1.0, 'epochs': 8}
    values = rates(4, decay_epochs=(2.5, 5), warmup_epochs=1.5, **fields)[::4]
    np.testing.assert_allclose(values[:8], [1 / 1.5, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01], rtol=1e-5)
    by_step = rates(4, decay_epochs=(2, 5), **fields | {'schedule_unit': 'step'})
    np.testing.assert_array_equal(by_step, rates(4, decay_epochs=(2, 5), **fields))


@pytest.mark.parametrize(('warmup_epochs', 'rise'), [(0.0, 0.3), (1.0, 0.25)])
def test_one_cycle_consists_of_two_half_cosines(warmup_epochs, rise):
    values = rates(epochs=4, learning_rate=0.5, schedule='one_cycle', warmup_epochs=warmup_epochs)
    top, low = 40 * rise - 1, 0.5 / 25
    for step in range(40):
        first, second, share = (low, 0.5, step / top) if step <= top else (0.5, low / 1e4, (step - top) / (39 - top))
        assert values[step] == pytest.approx(
            second + (first - second) * (1 + math.cos(math.pi * share)) / 2, rel=2e-4, abs=1e-7
        )
    assert values[int(top)] == pytest.approx(0.5)


def test_one_cycle_of_a_single_step():
    assert np.isfinite(rates(1, epochs=1, schedule='one_cycle')).all()
    assert np.isfinite(rates(1, epochs=3, warmup_epochs=1, schedule='one_cycle')).all()


def test_long_trainings_keep_their_precision():
    """600 epochs of 1,251 steps in float32."""
    config = TrainConfig().replace(epochs=600, learning_rate=0.5, warmup_epochs=5)
    for step in (6_254, 6_255, 400_001, 750_599):
        progress = (step - 6_255) / (750_600 - 6_255)
        expected = 0.5 * (step + 1) / 6_255 if progress < 0 else 0.25 * (1 + math.cos(math.pi * progress))
        assert rate_of(config, 1251)(step) == pytest.approx(expected, rel=1e-6, abs=2e-8)
