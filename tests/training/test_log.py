"""The log of a run."""

import json
import os
import types

import numpy as np
import pytest

from resnet_jax import DivergenceError, InputError, TrainConfig
from resnet_jax.training import log as log_module
from resnet_jax.training.log import Log
from resnet_jax.training.plan import objective_task
from resnet_jax.training.progress import Bar, Lines, Silence
from resnet_jax.training.seeds import Seeds


def test_speed_of_each_interval(tmp_path, monkeypatch):
    """An epoch has five steps of one second: intervals of two, two and one."""
    clock = [0.0]
    monkeypatch.setattr(log_module.time, 'perf_counter', lambda: clock[0])
    config = TrainConfig().replace(batch_size=8, epochs=2, log_every_steps=2)
    sums = {'loss': np.float32(4), 'correct': np.int32(2), 'correct_top5': np.int32(5), 'count': np.int32(8)}
    plan = types.SimpleNamespace(config=config, task=objective_task(config, {}), epoch_steps=5, seeds=Seeds((0,)))
    received = []
    log = Log(plan, 0, tmp_path, 0, Silence(), [received.append])
    for step in range(1, 11):
        clock[0] += 1
        log.step(step, sums | {'skipped': np.int32(0), 'gradient_norm': np.float32(1)}, last=step % 5 == 0)
    log.close()
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [record['step'] for record in records] == [2, 4, 5, 7, 9, 10]
    assert [record['examples_per_second'] for record in records] == pytest.approx([8] * 6)
    assert log.train_seconds == 10
    assert received == [record | {'seed': 0} for record in records]


def test_any_metric_name_is_logged(tmp_path):
    """A hook may name its metrics after classes; TensorBoard's tags are UTF-8."""
    config = TrainConfig().replace(batch_size=8, epochs=2)
    plan = types.SimpleNamespace(config=config, task=objective_task(config, {}), epoch_steps=5, seeds=Seeds((0,)))
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
    plan = types.SimpleNamespace(config=config, task=objective_task(config, {}), epoch_steps=5, seeds=Seeds((0,)))
    log = Log(plan, 0, tmp_path, 0, Silence())
    with pytest.raises(InputError, match=f"a hook returns '{name}', which every test record already has"):
        log.test(5, {'loss': 1.0, 'accuracy': 0.5}, {'other': 1.0, name: 2.0}, 0.1)
    assert log.records == []
    log.close()


def test_the_divergence_message_names_the_checkpoint_that_is_left(tmp_path):
    config = TrainConfig().replace(batch_size=8, epochs=2, max_skipped_steps=1)
    plan = types.SimpleNamespace(config=config, task=objective_task(config, {}), epoch_steps=5, seeds=Seeds((0,)))
    sums = {'loss': np.float32(0), 'skipped': np.int32(1), 'gradient_norm': np.float32(np.nan)}
    for saved, line in (((), 'no checkpoint was saved'), ((3, 12), 'the last checkpoint, step 12, is valid')):
        for step in saved:
            (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
        log = Log(plan, 0, tmp_path, 0, Silence())
        with pytest.raises(DivergenceError, match=f'; they were skipped; {line}; restart in another --workdir'):
            log.step(1, sums, last=True)
        log.close()
