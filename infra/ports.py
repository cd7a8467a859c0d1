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


def can_listen(host: str, port: int) -> bool:
    """Whether a server that starts now could have this address."""
    try:
        family, kind, _, _, at = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do, to start again at once
            probe.bind(at)
    except OSError:
        return False
    return True


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections at `port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0
