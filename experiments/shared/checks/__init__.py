"""The parts of ``experiments.check_device``."""
