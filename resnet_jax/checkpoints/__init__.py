"""The files of a run: checkpoints, record and metrics."""
