"""A real Redis for a benchmark, where it is installed."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._common import environment
from infra.errors import UserError
from infra.guard import Guarded
from infra.ports import free_port, is_listening

START_S = 30.0


@contextmanager
def redis_server(home: Path) -> Iterator[str | None]:
    """Its address while the body runs, or None where redis-server is not installed. It keeps nothing on disk."""
    program = shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        yield None
        return
    port, log = free_port(), home / "redis.log"
    where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(home)]
    with log.open("wb") as out:
        server = Guarded(
            [program, *where, "--save", "", "--appendonly", "no"], environment({}), out, cwd=home
        )
    try:
        deadline = time.monotonic() + START_S
        while not is_listening(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"redis-server did not come up:\n{log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.stop()
