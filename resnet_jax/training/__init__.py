"""Training: losses, optimization, steps, checkpoints and the loop."""
