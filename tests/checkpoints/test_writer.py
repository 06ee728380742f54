"""Writing checkpoints in the background: waiting, errors and retention."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import StorageError
from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.checkpoint import checkpoint_steps, restore_checkpoint
from resnet_jax.checkpoints.writer import CheckpointWriter

STATE = {'w': np.arange(1000, dtype=np.float32)}


@pytest.fixture
def gate(monkeypatch):
    """An event that every write waits for."""
    event = threading.Event()
    save = checkpoint.save_checkpoints
    monkeypatch.setattr(checkpoint, 'save_checkpoints', lambda *args: (event.wait(60), save(*args)))
    yield event
    event.set()


@pytest.fixture
def failures(monkeypatch):
    """The steps whose writing fails."""
    steps = set()
    save = checkpoint.save_checkpoints

    def save_or_fail(step, entries, keep):
        if step in steps:
            raise StorageError(f'cannot write checkpoint {step}: No space left on device')
        save(step, entries, keep)

    monkeypatch.setattr(checkpoint, 'save_checkpoints', save_or_fail)
    return steps


def test_save_returns_before_anything_is_written_and_close_after(tmp_path, gate):
    writer = CheckpointWriter()
    writer.save(1, [(tmp_path, STATE, 0.5)])
    writer.check()  # does not wait, either
    assert checkpoint_steps(tmp_path) == []
    gate.set()
    writer.close()
    assert checkpoint_steps(tmp_path) == [1]
    np.testing.assert_array_equal(restore_checkpoint(tmp_path, 1, STATE)['w'], STATE['w'])
    writer.close()


def test_a_state_may_be_overwritten_after_save(tmp_path, gate):
    """As its memory is when the state is donated."""
    state = {'w': STATE['w'].copy()}
    with CheckpointWriter() as writer:
        writer.save(1, [(tmp_path, state, None)])
        state['w'][:] = -1
        gate.set()
    np.testing.assert_array_equal(restore_checkpoint(tmp_path, 1, STATE)['w'], STATE['w'])


def test_a_state_may_be_donated_after_save(tmp_path, gate):
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 3 + 1, state), donate_argnums=0)
    state = {'w': jnp.asarray(STATE['w'])}
    with CheckpointWriter() as writer:
        writer.save(1, [(tmp_path, jax.device_get(state), None)])
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        gate.set()
    np.testing.assert_array_equal(restore_checkpoint(tmp_path, 1, STATE)['w'], STATE['w'])


def test_steps_are_written_one_at_a_time_in_order(tmp_path, monkeypatch):
    events, save = [], checkpoint.save_checkpoints

    def record(step, *args):
        events.append(('begin', step))
        save(step, *args)
        events.append(('end', step))

    monkeypatch.setattr(checkpoint, 'save_checkpoints', record)
    with CheckpointWriter() as writer:
        for step in range(1, 6):
            writer.save(step, [(tmp_path / name, STATE, score) for name, score in (('a', step), ('b', -step))])
    assert events == [(what, step) for step in range(1, 6) for what in ('begin', 'end')]
    assert checkpoint_steps(tmp_path / 'a') == [5]
    assert checkpoint_steps(tmp_path / 'b') == [1, 5]


@pytest.mark.parametrize('call', ['save', 'check', 'close', 'exit'])
def test_the_next_call_raises_the_error_once(tmp_path, failures, call):
    failures.add(2)
    writer = CheckpointWriter()
    writer.save(1, [(tmp_path, STATE, None)])
    writer.save(2, [(tmp_path, STATE, None)])
    writer._thread.join()
    calls = {
        'save': lambda: writer.save(3, [(tmp_path, STATE, None)]),
        'check': writer.check,
        'close': writer.close,
        'exit': lambda: writer.__exit__(None, None, None),
    }
    with pytest.raises(StorageError, match='checkpoint 2: No space left'):
        calls[call]()
    writer.check()
    writer.close()
    assert checkpoint_steps(tmp_path) == [1]
    writer.save(4, [(tmp_path, STATE, None)])
    writer.close()
    assert checkpoint_steps(tmp_path) == [4]


def test_an_error_of_the_writer_is_added_as_a_note(tmp_path, failures):
    failures.add(1)

    def diverge():
        with CheckpointWriter() as writer:
            writer.save(1, [(tmp_path, STATE, None)])
            raise ZeroDivisionError('the loss')

    with pytest.raises(ZeroDivisionError, match='the loss') as caught:
        diverge()
    assert caught.value.__notes__ == ['cannot write checkpoint 1: No space left on device']


def test_exit_by_an_exception_waits_for_the_checkpoint(tmp_path):
    def interrupt():
        with CheckpointWriter() as writer:
            writer.save(1, [(tmp_path, STATE, None)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert checkpoint_steps(tmp_path) == [1]


def test_a_full_disk_is_reported_by_the_next_call(small_disk):
    big = {'w': np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)}
    writer = CheckpointWriter()
    writer.save(1, [(small_disk / 'a', STATE, None)])
    writer.save(2, [(small_disk / 'a', big, None)])
    with pytest.raises(StorageError, match=r'a/2: No space left on device; last intact step: 1$'):
        writer.close()
    assert [path.name for path in (small_disk / 'a').iterdir()] == ['1']


def test_keep_is_the_number_of_last_steps(tmp_path):
    with CheckpointWriter(keep=2) as writer:
        for step in range(1, 6):
            writer.save(step, [(tmp_path, STATE, -step)])
    assert checkpoint_steps(tmp_path) == [1, 4, 5]
