"""Contenders that are timed in turns, each in a process of its own."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any

from resnet_jax import InputError

# A contender's work: a generator that is given a request and yields its answer, the first one without a request.
Work = Callable[..., Generator[Any, Any, None]]

_PATIENCE_SECONDS = 20


class _Failure(str):
    """What went wrong in a contender's process."""


def _serve(work: Work, arguments: tuple[Any, ...], connection: Connection) -> None:
    """Answers requests until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the parent's to answer
    try:
        answers = work(*arguments)
        connection.send(next(answers))
        while True:
            connection.send(answers.send(connection.recv()))
    except EOFError:  # the parent has ended, or has asked for the end
        pass
    except Exception:
        connection.send(_Failure(traceback.format_exc().strip().splitlines()[-1]))


class Contender:
    """A process that prepares something, and then answers requests while the others wait.

    Attributes:
      name: what errors call it.
      prepared: its first answer.

    Raises:
      InputError: it failed, or its process ended.
    """

    def __init__(self, name: str, work: Work, *arguments: Any):
        self.name = name
        context = multiprocessing.get_context('spawn')
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, arguments, there))
        self._process.start()
        there.close()
        try:
            self.prepared: Any = self._receive()
        except BaseException:
            self.close()
            raise

    def ask(self, request: Any) -> Any:
        """Its answer to a request.

        Raises:
          InputError: it failed, or its process ended.
        """
        try:
            self._here.send(request)
        except OSError as error:
            raise self._ended() from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._here.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, _Failure):
            raise InputError(f'{self.name} failed: {answer}')
        return answer

    def _ended(self) -> InputError:
        self._process.join()
        return InputError(f'{self.name}: its process ended with status {self._process.exitcode}: out of memory?')

    def close(self) -> None:
        """Ends the process, and with it what it started; one that does not end is killed."""
        self._here.close()
        self._process.join(_PATIENCE_SECONDS)
        self._process.kill()
        self._process.join()
