"""Clean interruption of a run: SIGTERM and SIGINT are recorded, and handled at the next safe point."""

import signal
import threading
import types
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from resnet_jax.errors import Interrupted

Result = TypeVar('Result')
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.1


class StopRequest:
    """Context manager that records signals; it only does so in the main thread.

    The first signal is only recorded, so that it can arrive at any time. A second signal has its default effect: the
    user is in a hurry.

    In a multi-process job, JAX itself handles SIGTERM, so that all processes stop at the same step; SIGINT is turned
    into SIGTERM.

    Attributes:
      noted: the recorded signal, or None.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self._many, self._passed_on, self._calls = jax.process_count() > 1, False, 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._many else _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self._many and not self._passed_on:
            self._passed_on = True
            signal.raise_signal(signal.SIGTERM)
        elif not self._many and self.noted is None:
            self.noted = signal.Signals(number)
        else:
            self.__exit__()
            signal.raise_signal(number)

    def after_call(self) -> bool:
        """Whether to stop after this call of the compiled program; all processes get the same answer.

        Every process must call this method after every call. JAX lets all of them stop after the number that follows
        the largest one it has seen. Calls are counted because a call may take several steps and skip that number.
        """
        self._calls += 1
        if self._many and self.noted is None and multihost_utils.reached_preemption_sync_point(self._calls):
            self.noted = signal.SIGTERM
        return self.noted is not None

    def check(self) -> None:
        """Raises Interrupted, still without a message, if a signal was recorded."""
        if self.noted is not None:
            raise Interrupted('', self.noted)

    def wait_for(self, function: Callable[[], Result]) -> Result:
        """Returns the result of a long function that ignores signals, such as a compilation.

        The function runs in its own thread, which is abandoned if a signal arrives.

        Raises:
          Interrupted: a signal was recorded, possibly before the call. Errors of the function are raised too.
        """
        self.check()
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(function())
            except BaseException as error:  # raised below, in the waiting thread
                failure.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            self.check()
        if failure:
            raise failure[0]
        return outcome[0]
