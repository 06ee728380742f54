"""Scripts to run as ``python -m experiments.NAME``; the flags live here and nowhere else."""

from experiments.shared.environment import restart_with_settings

restart_with_settings()  # before anything heavy is imported
