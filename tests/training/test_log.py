"""The log of a run."""

import json
import os
import types

import numpy as np
import pytest

from resnet_jax import DivergenceError, InputError, TrainConfig
from resnet_jax.training import log as log_module
from resnet_jax.training.config import rate_of
from resnet_jax.training.log import Log
from resnet_jax.training.plan import objective_task
from resnet_jax.training.progress import Bar, Lines, Silence
from resnet_jax.training.seeds import Seeds


def plan_of(config):
    """The part of a plan that a log reads, with five steps per epoch."""
    task = objective_task(config, {})
    return types.SimpleNamespace(config=config, task=task, epoch_steps=5, seeds=Seeds((0,)), rate=rate_of(config, 5))


@pytest.mark.parametrize(
    ('calls', 'steps_of_records'),
    [([1] * 10, [2, 4, 5, 7, 9, 10]), ([1, 3, 1] * 2, [4, 5, 9, 10]), ([5, 5], [5, 10])],
)
def test_speed_of_each_interval(calls, steps_of_records, tmp_path, monkeypatch):
    """An epoch has five steps of one second: intervals of two, two and one; calls of several steps stay whole.

    A call is recorded when the call before it has finished; its own time counts, although it is still running.
    """
    clock, end = [0.0], [0.0]
    monkeypatch.setattr(log_module.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(log_module.jax, 'block_until_ready', lambda tree: clock.__setitem__(0, end[0]))
    config = TrainConfig().replace(batch_size=8, epochs=2, log_every_steps=2)
    names = {'loss': 4, 'correct': 2, 'correct_top5': 5, 'count': 8, 'skipped': 0, 'gradient_norm': 1}
    plan = plan_of(config)
    received = []
    log = Log(plan, 0, tmp_path, 0, Silence(), [received.append])
    for step, steps in zip(np.cumsum(calls).tolist(), calls, strict=True):
        clock[0], end[0] = end[0], end[0] + steps
        log.step(step, {name: np.full(steps, value) for name, value in names.items()}, last=step % 5 == 0)
    log.close()
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [record['step'] for record in records] == steps_of_records
    assert {record['loss'] for record in records} == {0.5}
    assert [record['examples_per_second'] for record in records] == pytest.approx([8] * len(records))
    assert log.train_seconds == 10
    assert received == [record | {'seed': 0} for record in records]


def test_any_metric_name_is_logged(tmp_path):
    """A hook may name its metrics after classes; TensorBoard's tags are UTF-8."""
    config = TrainConfig().replace(batch_size=8, epochs=2)
    plan = plan_of(config)
    log = Log(plan, 0, tmp_path, 0, Silence())
    name = 'accuracy of ' + os.fsdecode(b'caf\xe9\n$_$')
    log.test(5, {'loss': 1.0, 'accuracy': 0.5}, {name: 2.0}, 0.1)
    log.close()
    assert json.loads((tmp_path / 'metrics.jsonl').read_text())[name] == 2.0
    (events,) = tmp_path.glob('events*')
    assert b'test/accuracy of caf\\xe9\\x0a$_$' in events.read_bytes()


@pytest.mark.parametrize('text', ['[bold]x[/bold]', '[/]', ':cat: [1]', 'a\x1b[31mb', os.fsdecode(b'caf\xe9')])
@pytest.mark.parametrize('display', [Lines, lambda: Bar(2, 0, '[/x]')])
def test_a_message_is_shown_as_it_is(display, text, capsys):
    shown = display()
    shown.training({'epoch': 1.0, 'step': 1, 'loss': 1.0, '[/x]': 0.5, 'examples_per_second': 1.0})
    shown.message(f'first\n{text}')
    shown.close()
    expected = text.replace('\x1b', '\\x1b').replace('\udce9', '\\xe9')
    assert f'first\n{expected}\n' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['accuracy', 'train_seconds', 'step'])
def test_a_duplicate_metric_name_raises_before_writing(name, tmp_path):
    config = TrainConfig().replace(batch_size=8, epochs=2)
    plan = plan_of(config)
    log = Log(plan, 0, tmp_path, 0, Silence())
    with pytest.raises(InputError, match=f"a hook returns '{name}', which every test record already has"):
        log.test(5, {'loss': 1.0, 'accuracy': 0.5}, {'other': 1.0, name: 2.0}, 0.1)
    assert log.records == []
    log.close()


def test_the_divergence_message_names_the_checkpoint_that_is_left(tmp_path):
    config = TrainConfig().replace(batch_size=8, epochs=2, max_skipped_steps=1)
    plan = plan_of(config)
    sums = {'loss': np.zeros(1), 'skipped': np.ones(1, int), 'gradient_norm': np.full(1, np.nan)}
    for saved, line in (((), 'no checkpoint was saved'), ((3, 12), 'the last checkpoint, step 12, is valid')):
        for step in saved:
            (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
        log = Log(plan, 0, tmp_path, 0, Silence())
        with pytest.raises(DivergenceError, match=f'; they were skipped; {line}; restart in another --workdir'):
            log.step(1, sums, last=True)
        log.close()
