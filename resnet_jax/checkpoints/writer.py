"""Checkpoints written while training goes on."""

import pathlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from resnet_jax.checkpoints import checkpoint


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, one at a time, as ``checkpoint.save_checkpoints`` does.

    An error of the thread is raised by the next call of ``save``, ``check`` or ``close``, once. The steps that were
    there before are removed only when the new one is on the disk, so a process killed at any moment leaves the last
    step that was written whole. In a job of several processes only one has a writer; it does not wait for the others.

    A ``with`` statement ends with ``close``; when it is left by another exception, an error of the writer becomes a
    note of that one.

    Args:
      keep: how many of the last steps are kept beside the best one, as ``checkpoint.save_checkpoints`` has it.
    """

    def __init__(self, keep: int = 1) -> None:
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, entries: Sequence[checkpoint.Entry]) -> None:
        """Starts to write the checkpoints of one step; waits first until the one before is written.

        Args:
          step: steps taken.
          entries: ``(folder, state, score)`` of each run, as ``checkpoint.save_checkpoints`` takes them; ``state`` is a
            tree of NumPy arrays, which are copied before this returns, so their memory may be used again.

        Raises:
          StorageError: the checkpoint before this one could not be written; then this one is not, either.
        """
        self.close()
        # What device_get gives may be the memory of the device itself, which the next training step overwrites.
        copies = [(folder, jax.tree.map(lambda leaf: np.array(leaf), state), score) for folder, state, score in entries]
        # No daemon: an interpreter that ends waits for the file.
        self._thread = threading.Thread(target=self._write, args=(step, copies), name=f'checkpoint {step}')
        self._thread.start()

    def _write(self, step: int, entries: Sequence[tuple[pathlib.Path, Any, float | None]]) -> None:
        try:
            checkpoint.save_checkpoints(step, entries, self._keep)
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raises the error of a checkpoint that could not be written, without waiting for one that still is.

        Raises:
          StorageError: the disk is full or broken.
        """
        if self._thread is None or not self._thread.is_alive():
            self.close()

    def close(self) -> None:
        """Waits until everything is written. The writer can be used again.

        Raises:
          StorageError: the disk is full or broken.
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
