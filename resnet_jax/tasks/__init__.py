"""What networks are trained for: one file for each kind of target, and what the kinds share."""
