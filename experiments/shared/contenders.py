"""Contenders that are timed in alternation, each in its own process."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import Any

from resnet_jax import InputError

# A contender's work: a generator that yields an answer to every request it is sent, and one before the first request.
Work = Callable[..., Generator[Any, Any, None]]

_JOIN_SECONDS = 20


class _Failure(str):
    """The error of a contender's process."""


def _serve(work: Work, arguments: tuple[Any, ...], connection: Connection) -> None:
    """Answers requests until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interruptions
    try:
        answers = work(*arguments)
        connection.send(next(answers))
        while True:
            connection.send(answers.send(connection.recv()))
    except EOFError:  # the parent has exited or closed the connection
        pass
    except Exception:
        connection.send(_Failure(traceback.format_exc().strip().splitlines()[-1]))


class Contender:
    """A process that does its preparation and then answers requests, one contender at a time.

    Attributes:
      name: its name in error messages.
      prepared: its first answer.

    Raises:
      InputError: its work failed, or its process ended.
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
        """Returns its answer to a request.

        Raises:
          InputError: its work failed, or its process ended.
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
        return InputError(f'{self.name}: its process exited with status {self._process.exitcode} (out of memory?)')

    def close(self) -> None:
        """Ends the process and its children; kills it if it does not exit in time."""
        self._here.close()
        self._process.join(_JOIN_SECONDS)
        self._process.kill()
        self._process.join()
