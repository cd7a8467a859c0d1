"""Time enters the program here, so that everything below it can take time as an argument."""

import time


def now_ms() -> int:
    """Wall-clock time: int milliseconds since the Unix epoch, UTC. It may jump: for stamps, not for waiting."""
    return time.time_ns() // 1_000_000


def ticks_ms() -> int:
    """Int milliseconds that only grow, since some moment of this machine's: for waiting."""
    return time.monotonic_ns() // 1_000_000
