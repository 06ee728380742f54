"""Scripts to run as ``python -m experiments.NAME``; the flags live here and nowhere else."""
