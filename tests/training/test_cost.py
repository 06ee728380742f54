"""The cost of a run."""

import jax
import pytest

from resnet_jax.training.cost import Cost, Profile

COST = Cost(25_557_032, 4_089_184_256, 2**30, 12.34, 'TPU v5 lite', 8)


def test_card():
    assert COST.card() == (
        'cost: 25,557,032 parameters, 4,089.2 M multiply-adds per image, 1,024.0 MiB per step, compiled in 12.3 s'
    )


def test_fraction_of_the_peak():
    """A step costs three forward passes, a multiply-add two operations."""
    share = COST.peak_share(10_000)
    assert share == pytest.approx(6 * 4_089_184_256 * 10_000 / (8 * 197e12))
    assert COST.speed(10_000) == 'speed: 10,000 images/s, 245,351.1 GFLOP/s, 15.6 % of the bfloat16 peak'
    unknown = Cost(1, 10**6, 1, 1.0, 'cpu', 1)
    assert unknown.peak_share(100) is None
    assert unknown.speed(100) == 'speed: 100 images/s, 0.6 GFLOP/s'
    assert unknown.record(100.0)['peak_share'] is None


@pytest.mark.parametrize(
    ('steps_per_call', 'expected'),
    [(1, ['start 3', 'stop 5']), (2, ['start 4', 'stop 6']), (5, ['start 5', 'stop 10'])],
)
def test_profiling_starts_and_stops_once(steps_per_call, expected, tmp_path, monkeypatch):
    events, now = [], [0]
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: events.append(f'start {now[0]}'))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: events.append(f'stop {now[0]}'))
    with Profile(tmp_path, 2) as profile:
        for now[0] in range(0, 20, steps_per_call):
            profile.at(now[0])
    assert events == expected


def test_a_run_that_is_too_short_to_profile_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: pytest.fail('traced'))
    message = r'^profile_steps=2: nothing was traced, because tracing starts after 3 steps'

    def short_run():
        with Profile(tmp_path, 2) as profile:
            for step in range(3):
                profile.at(step)

    with pytest.warns(UserWarning, match=message):
        short_run()
    with pytest.raises(KeyboardInterrupt), Profile(tmp_path, 2):  # an interrupted run does not add a warning
        raise KeyboardInterrupt
