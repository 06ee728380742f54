"""Signals are recorded at any time and handled at a safe point."""

import os
import signal
import threading
import time

import jax
import pytest
from jax.experimental import multihost_utils

from resnet_jax import Interrupted
from resnet_jax.training.interruption import StopRequest


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_only_recorded(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.check()
        assert not stop.after_call()
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.noted == number
        assert stop.after_call()
        with pytest.raises(Interrupted) as raised:
            stop.check()
        assert raised.value.signal == number
    assert signal.getsignal(number) is before


def test_processes_agree_on_a_number_of_calls(monkeypatch):
    """JAX names the number after the largest one; numbers of steps could leave it out."""
    numbers = []

    def reached(number):
        numbers.append(number)
        return number == 3

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', reached)
    stop = StopRequest()
    assert [stop.after_call() for _ in range(4)] == [False, False, True, True]
    assert numbers == [1, 2, 3]


def interrupt_and_wait():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def test_a_second_signal_interrupts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore SIGINT
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert stop.noted == signal.SIGINT
            with pytest.raises(KeyboardInterrupt) as raised:
                interrupt_and_wait()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(raised.value, Interrupted)


def test_in_a_job_sigint_becomes_sigterm_and_a_second_one_interrupts(monkeypatch):
    monkeypatch.setattr('jax.process_count', lambda: 2)
    noted = []
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: lambda number, frame: noted.append(number)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert noted == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                interrupt_and_wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_wait_for_returns_or_raises():
    release = threading.Event()
    with StopRequest() as stop:
        assert stop.wait_for(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            stop.wait_for(lambda: 1 // 0)
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        start = time.monotonic()
        with pytest.raises(Interrupted):
            stop.wait_for(lambda: release.wait(30))
        assert time.monotonic() - start < 5
        with pytest.raises(Interrupted):  # recorded before the call
            stop.wait_for(lambda: pytest.fail('was called'))
    release.set()


def test_other_threads_install_no_handlers():
    before, failures = signal.getsignal(signal.SIGTERM), []

    def work():
        try:
            with StopRequest() as stop:
                assert signal.getsignal(signal.SIGTERM) is before
                stop.check()
        except BaseException as error:  # checked below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
