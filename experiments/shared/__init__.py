"""Code shared by the commands; nothing here is a command."""
