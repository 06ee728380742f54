"""Variables from files, runs and hubs, and back."""
