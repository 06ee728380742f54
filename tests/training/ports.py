"""Addresses for multi-process jobs."""

import socket


def free_address() -> str:
    """``localhost`` with a port that is currently free."""
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return f'localhost:{probe.getsockname()[1]}'
