"""Ports of this machine's loopback, for the servers that we start ourselves."""

import secrets
import socket
from contextlib import suppress

HOST = "127.0.0.1"
# Below the range from which systems take the local ports of outgoing connections. In that range a client that
# keeps trying to reach a stopped server can end up connected to itself, and the server can never come back.
LOWEST, COUNT = 20_000, 12_000


def free_port() -> int:
    """A port that nobody listens on at this moment; two callers at once may get the same one."""
    while True:
        port = LOWEST + secrets.randbelow(COUNT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections at `port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0
