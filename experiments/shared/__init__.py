"""What the commands have in common; nothing here is run by itself."""
