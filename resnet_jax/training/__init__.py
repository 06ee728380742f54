"""Training: configuration, recipes, optimizers, steps and the loop."""
