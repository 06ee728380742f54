"""Asynchronous writing of checkpoints."""

import pathlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from resnet_jax.checkpoints import checkpoint


class CheckpointWriter:
    """Writes checkpoints in a background thread, one at a time, by ``checkpoint.save_checkpoints``.

    An error in the thread is raised once, by the next call of ``save``, ``check`` or ``close``. Older steps are removed
    only when the new one is on disk, so a process that is killed always leaves an intact step. With several processes,
    only one has a writer, which does not wait for the others.

    As a context manager, it calls ``close`` on exit; if another exception is propagating, an error of the writer is
    added to that exception as a note.

    Args:
      keep: number of the last steps to keep, as in ``checkpoint.save_checkpoints``.
    """

    def __init__(self, keep: int = 1) -> None:
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, entries: Sequence[checkpoint.Entry]) -> None:
        """Waits for the previous checkpoint, and starts writing the next one.

        Args:
          step: number of steps taken.
          entries: ``(folder, state, score)`` of each run, as in ``checkpoint.save_checkpoints``; ``state`` is a pytree
            of NumPy arrays, which are copied before this returns.

        Raises:
          StorageError: the previous checkpoint could not be written; the new one is not written, either.
        """
        self.close()
        # device_get may return the device's own memory, which the next training step overwrites.
        copies = [(folder, jax.tree.map(lambda leaf: np.array(leaf), state), score) for folder, state, score in entries]
        # Not a daemon, so that the interpreter waits for the file before it exits.
        self._thread = threading.Thread(target=self._write, args=(step, copies), name=f'checkpoint {step}')
        self._thread.start()

    def _write(self, step: int, entries: Sequence[tuple[pathlib.Path, Any, float | None]]) -> None:
        try:
            checkpoint.save_checkpoints(step, entries, self._keep)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raises the error of a finished checkpoint, without waiting for one that is being written.

        Raises:
          StorageError: the checkpoint could not be written.
        """
        if self._thread is None or not self._thread.is_alive():
            self.close()

    def close(self) -> None:
        """Waits until everything is written. The writer can be used again.

        Raises:
          StorageError: the checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as own:
            if error is None:
                raise
            error.add_note(str(own))
