"""Tasks: one module per kind of target, and what they share."""
