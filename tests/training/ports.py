"""Where the processes of a job find each other."""

import socket


def free_address() -> str:
    """``localhost`` with a port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return f'localhost:{probe.getsockname()[1]}'
