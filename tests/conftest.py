"""Real servers for the tests: one broker, one Redis, one ClickHouse a session, each started when first asked for.

What is not installed skips the tests that need it, with the reason.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from infra.embedded import EmbeddedKafka
from infra.ports import free_port, is_listening

# No test says how fast a machine is, and a run that fails fails again; `--hypothesis-profile=search` looks further.
settings.register_profile("driftline", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("driftline")
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_CLICKHOUSE = """<yandex>
<logger><level>warning</level><log>{home}/server.log</log><errorlog>{home}/error.log</errorlog></logger>
<listen_host>127.0.0.1</listen_host><tcp_port>{tcp}</tcp_port><http_port>{http}</http_port>
<path>{home}/data/</path><tmp_path>{home}/tmp/</tmp_path><user_files_path>{home}/files/</user_files_path>
<mark_cache_size>67108864</mark_cache_size><users_config>config.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database>
<profiles><default></default></profiles><quotas><default></default></quotas>
<users><default><password></password><networks><ip>127.0.0.1</ip></networks>
<profile>default</profile><quota>default</quota></default></users>
</yandex>
"""


@dataclass(frozen=True)
class Server:
    """A server that listens on `address`, "host:port"."""

    address: str


class _BothEnds(LoadFileScheduling):  # type: ignore[misc]  # xdist says no types
    """Of several processes one takes the files from the front, where the system tests are, the others from the back.

    System tests wait much and start whole clusters, unit tests compute: one of each fills two cores, and two processes
    with system tests, at the end, do not wait for one.
    """

    def _assign_work_unit(self, node: Any) -> None:
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _BothEnds:
    """How `pytest -n` deals the tests out: by file, in the order in which they are found."""
    config.option.loadscopereorder = False
    return _BothEnds(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Torch takes every core by default, from the servers and from the tests that run beside it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A real Kafka for the whole session; tests use topics and task names of their own."""
    with EmbeddedKafka(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Redis without persistence."""
    home, port = tmp_path_factory.mktemp("redis"), free_port()
    where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(home)]
    command = [_program("redis-server"), *where, "--save", "", "--appendonly", "no"]
    with _running(command, home / "redis.log", lambda: is_listening(port)):
        yield Server(f"127.0.0.1:{port}")


@pytest.fixture(scope="session")
def clickhouse_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real ClickHouse (Debian's 18.16 or newer), run without privileges from one small file."""
    program = _program("clickhouse-server")
    home, tcp, http = tmp_path_factory.mktemp("clickhouse"), free_port(), free_port()
    config = home / "config.xml"
    config.write_text(_CLICKHOUSE.format(home=home, tcp=tcp, http=http))
    with _running([program, f"--config-file={config}"], home / "console.log", lambda: is_listening(tcp)):
        yield f"clickhouse://127.0.0.1:{tcp}/default"


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes names for topics, groups and tasks on the shared servers: `unique("clicks")` is "clicks-1f0c9a2e".

    Only a-z, 0-9 and "-" are in them, as in a task's name. Without an argument the test's own name leads.
    """

    def name(start: str = "") -> str:
        words = start or request.node.originalname.removeprefix("test_")[:30]
        return f"{re.sub('[^a-z0-9]+', '-', words.lower()).strip('-')}-{uuid4().hex[:8]}"

    return name


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data, which is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} is missing")
    return SHARED_DATA


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def _running(command: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """Run a server until the body ends; fails with its log when it does not come up."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 180
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} did not come up:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
