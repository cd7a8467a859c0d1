"""The embedded Kafka: it keeps its port and data over every end, never outlives its owner, and says what is wrong."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra import embedded, jars
from infra.embedded import EmbeddedKafka
from infra.errors import UserError
from infra.kafka import create_topics, make_producer, read_all
from infra.ports import free_port
from infra.settings import KafkaTools, kafka_tools

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def runs(kafka: EmbeddedKafka) -> bool:
    return kafka.pid is not None


def crash(kafka: EmbeddedKafka) -> None:
    """End the broker without its knowing, and wait until that was seen."""
    os.kill(kafka.pid or 0, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while runs(kafka):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.02)


def java_processes(home: Path) -> list[int]:
    """Ids of the processes whose working folder is that of the broker at `home`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(home) and not gone(process.pid):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def send(address: str, topic: str, *values: bytes) -> None:
    create_topics(address, {topic: (1, {})})
    producer = make_producer(address)
    for value in values:
        producer.send(topic, value)
    producer.flush()
    producer.close()


def values(address: str, topic: str) -> list[bytes | None]:
    return [record.value for record in read_all(address, topic)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for a broker, with a name that would need escaping; no process may be left in it."""
    home = tmp_path / "a home: \\ of=Kafka"
    yield home
    left = java_processes(home)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_it_listens_on_loopback_only(broker: Any) -> None:
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.Process(broker.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_to_start_it_again_while_it_runs_changes_nothing(broker: Any) -> None:
    before = (broker.pid, broker.address)
    assert broker.start() == broker.address
    assert (broker.pid, broker.address) == before
    broker.check()


def test_what_was_written_outlives_every_end_at_the_same_address(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOCK_TIMEOUT_S", 0.1)
    kafka = EmbeddedKafka(home)
    with pytest.raises(RuntimeError, match="not started yet"):
        kafka.address  # noqa: B018
    kafka.stop()  # nothing runs, nothing happens
    kafka.kill()
    with kafka:
        address = kafka.address
        send(address, "kept", b"one")
        with pytest.raises(UserError, match="another embedded Kafka already uses") as refused:
            EmbeddedKafka(home).start()
        assert str(home) in refused.value.message
        assert "another data folder" in refused.value.fix

        kafka.kill()  # as a crash
        assert not runs(kafka)
        kafka.check()  # we ended it ourselves
        assert kafka.start() == address
        send(address, "kept", b"two")

        crash(kafka)
        with pytest.raises(UserError, match="ended with exit code 137") as crashed:
            kafka.check()
        assert str(kafka.log_path) in crashed.value.fix
        assert kafka.start() == address
        assert values(address, "kept") == [b"one", b"two"]
    assert java_processes(home) == []
    with EmbeddedKafka(home) as again:  # another process would do the same
        assert again.address == address
        assert values(address, "kept") == [b"one", b"two"]


# The owner may reach nothing but loopback, and cannot import what would download.
OWNER = """
import sys, time
from pathlib import Path

def offline(event, args):
    if event == "socket.getaddrinfo" and args[0] != "127.0.0.1":
        raise OSError(f"the network is off: {args[0]}")
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] != "127.0.0.1":
        raise OSError(f"the network is off: {args[1]}")

sys.addaudithook(offline)
sys.modules["jgo"] = sys.modules["requests"] = None
from infra.embedded import EmbeddedKafka
kafka = EmbeddedKafka(Path(sys.argv[1]))
print(kafka.start(), kafka.pid, flush=True)
time.sleep(1000)
"""


def test_it_starts_without_network_and_ends_with_an_owner_that_was_killed(home: Path, broker: Any) -> None:
    assert jars.missing(kafka_tools()) == []  # the session's broker has fetched them, if nobody had before
    command = [sys.executable, "-c", OWNER, str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        address, pid = owner.stdout.readline().split()
        send(address, "kept", b"one")
        owner.kill()
    # It is still ending: the next one waits for that, then goes on with the same data at the same address.
    with EmbeddedKafka(home) as next_one:
        assert gone(int(pid))
        assert next_one.address == address
        assert values(address, "kept") == [b"one"]
        send(address, "kept", b"two")
        assert values(address, "kept") == [b"one", b"two"]


def test_a_port_that_was_asked_for_and_is_in_use_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1.* is in use") as caught:
            EmbeddedKafka(home, port=port).start()
    assert "choose another port" in caught.value.fix


def test_a_remembered_port_that_is_in_use_is_replaced(home: Path) -> None:
    home.mkdir()
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        (home / "port").write_text(str(port))
        with EmbeddedKafka(home, heap_mb=256) as kafka:
            assert kafka.address != f"127.0.0.1:{port}"
            send(kafka.address, "any", b"one")
            assert (home / "port").read_text() == f"{kafka.address.partition(':')[2]}\n"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot use .*file") as caught:
        EmbeddedKafka(tmp_path / "file" / "kafka").start()
    assert "another data folder" in caught.value.fix


def pretended(tmp_path: Path, script: str) -> KafkaTools:
    """A Java that does what `script` says instead of running Kafka; its first argument is the main class."""
    java = tmp_path / "java"
    java.write_text(f"""#!/bin/sh
[ "$1" = -version ] && {{ echo 'openjdk version "17"' >&2; exit 0; }}
while [ "$1" != -cp ]; do shift; done
shift 2
{script}
""")
    java.chmod(0o755)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.0.0.jar").touch()
    return KafkaTools(tmp_path / "cache", jars=tmp_path / "libs", java=str(java))


FORMATS = (
    "[ $1 = kafka.tools.StorageTool ] && { mkdir -p data; echo cluster.id=x > data/meta.properties; exit 0; }"
)


@pytest.mark.parametrize(
    ("script", "message", "fix"),
    [
        (
            "echo 'java.io.IOException: No space left on device'; exit 1",
            "could not format",
            "free some space",
        ),
        (f"{FORMATS}; echo 'No space left on device'; exit 1", "ended with exit code 1", "free some space"),
        (
            f"{FORMATS}; echo 'java.lang.OutOfMemoryError'; exit 3",
            "exit code 3",
            "give the machine more memory",
        ),
        (f"{FORMATS}; echo 'something new'; exit 1", "something new", "see "),
        (f"{FORMATS}; exec sleep 1000", "does not listen after", "see "),
    ],
)
def test_a_failed_start_quotes_the_last_words_and_leaves_nothing_running(
    script: str, message: str, fix: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in script:  # the others end by themselves, however long a busy machine takes
        monkeypatch.setattr(embedded, "START_TIMEOUT_S", 1.0)
    home.mkdir()
    (home / "kafka.log").write_text("OutOfMemoryError of an earlier run: No space left on device\n")
    kafka = EmbeddedKafka(home, tools=pretended(tmp_path, script))
    with pytest.raises(UserError, match=message) as caught:
        kafka.start()
    assert caught.value.fix.startswith(fix)
    assert str(kafka.log_path) in caught.value.fix
    assert "earlier run" not in caught.value.message
    assert not runs(kafka)


def test_when_somebody_else_is_faster_at_the_port_that_is_told(tmp_path: Path, home: Path) -> None:
    tools = pretended(tmp_path, f"{FORMATS}; echo 'java.net.BindException: Address already in use'; exit 1")
    with pytest.raises(UserError, match="is in use"):
        EmbeddedKafka(home, tools=tools).start()
