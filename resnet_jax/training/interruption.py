"""Leaving a run in good order: SIGTERM and SIGINT are noted when they arrive, and obeyed at the next safe place."""

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
    """Notes signals while it is open, as a context manager in the main thread; elsewhere it notes none.

    The first signal is noted and nothing else, so that it can arrive at any moment. A second one acts as if nobody
    were here: the user is in a hurry.

    In a job of several processes SIGTERM is JAX's own to note, so that all of them agree on the step at which they
    stop; SIGINT becomes SIGTERM.

    Attributes:
      noted: the signal, or None.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self._many, self._passed_on = jax.process_count() > 1, False
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

    def at_step(self, step: int) -> bool:
        """Whether to stop after this step; every process must ask after every step, and all get the same answer."""
        if self._many and self.noted is None and multihost_utils.reached_preemption_sync_point(step):
            self.noted = signal.SIGTERM
        return self.noted is not None

    def check(self) -> None:
        """Raises Interrupted, which carries no message yet, if a signal was noted."""
        if self.noted is not None:
            raise Interrupted('', self.noted)

    def wait_for(self, function: Callable[[], Result]) -> Result:
        """The result of a function that takes long and answers to no signal, such as a compilation.

        It runs in a thread of its own, and is left alone there if a signal comes.

        Raises:
          Interrupted: a signal was noted, perhaps before; and whatever the function raises.
        """
        self.check()
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(function())
            except BaseException as error:  # it is raised below, in the thread that waits
                failure.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            self.check()
        if failure:
            raise failure[0]
        return outcome[0]
