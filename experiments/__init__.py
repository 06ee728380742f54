"""Commands, started as ``python -m experiments.NAME``; all flags are defined in this package."""

from experiments.shared.environment import restart_with_settings

restart_with_settings()  # before the slow imports
