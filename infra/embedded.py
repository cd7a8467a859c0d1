"""The real Apache Kafka, started from its jars: one node (KRaft), loopback only, in a folder of its own.

It is for the demo, the tests and a first evening; production points DRIFTLINE_KAFKA at a cluster instead.
Nothing is printed here; the broker's own words are in HOME/kafka.log.
"""

import fcntl
import os
import secrets
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from infra import jars
from infra.disk import usable
from infra.errors import UserError
from infra.guard import GRACE_S, Guarded
from infra.java import find_java
from infra.kafka import MAX_MESSAGE_BYTES, wait_ready
from infra.ports import HOST, free_port, is_listening
from infra.settings import KafkaTools, kafka_tools

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LOCK_TIMEOUT_S = GRACE_S + 2.0  # the guard of an owner that was killed gives its broker GRACE_S to end
QUOTED_LINES = 8

# What the broker's log says when it fails, and what to do about it; else the log itself is the advice.
FIXES = {
    "No space left on device": "free some space, or choose another data folder",
    "OutOfMemoryError": "give the machine more memory, or stop other programs",
    "insufficient memory": "give the machine more memory, or stop other programs",
}

# Paths are relative to the broker's working folder, so that no character of HOME needs escaping.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=data
auto.create.topics.enable=false

# one node: one replica of everything, and one partition of the topics that Kafka keeps for itself
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1

# a dead letter fits into one record; a request is a little larger than the records in it
message.max.bytes={message}
replica.fetch.max.bytes={message}
socket.request.max.bytes={request}

# a worker that comes or goes is noticed at once, a transaction of one that died is ended within a second
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000

# a broker that was killed may come back only after its old session has ended
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# small machine
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
"""


class EmbeddedKafka:
    """One broker with its data under `home`. It ends with the process that started it, also by kill -9.

    `port` is the client port; None takes the one that this home had before, if it is free, else any free one.
    The port and the data stay the same over stop, kill and start. `tools` says where jars and Java come from.
    """

    def __init__(
        self,
        home: Path,
        *,
        port: int | None = None,
        heap_mb: int = 512,
        tools: KafkaTools | None = None,
        progress: jars.Progress | None = None,
    ) -> None:
        self.home = home.absolute()
        self.log_path = self.home / "kafka.log"
        self._tools = tools or kafka_tools()
        self._progress = progress
        self._heap_mb = heap_mb
        self._asked = port
        self._port = 0
        self._process: Guarded | None = None
        self._logged = 0  # size of the log file when the present broker was started

    @property
    def address(self) -> str:
        """Where it listens, as host:port; known once it was started."""
        if not self._port:
            raise RuntimeError("the broker was not started yet")
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id of the JVM, or None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> str:
        """Start the broker, wait until it takes requests and return its address. Raises UserError."""
        if self.pid is not None:
            return self.address
        self.stop()  # one that has ended by itself still holds a pipe
        jars_path = jars.classpath(self._tools, self._progress)
        java = [find_java(self._tools), *_java_options(self._heap_mb), "-cp", jars_path]
        known = self._asked or self._port  # clients of a broker that ran before know its port
        with usable(self.home, "choose another data folder"):
            (self.home / "tmp").mkdir(parents=True, exist_ok=True)
            # A known port is tried again too: the one that was taken may have been the controller's.
            ports = [known, known] if known else [self._last_port(), free_port(), free_port()]
            for port in ports:
                with suppress(_PortTakenError):
                    self._start(java, port)
                    return self.address
        raise UserError(
            f"port {ports[-1]} of {HOST}, where the embedded Kafka should listen, is in use",
            "stop the program that uses it, or choose another port",
        )

    def check(self) -> None:
        """Raise UserError with the broker's last words if it has ended by itself, for want of disk for one."""
        if self._process and self._process.poll() is not None:
            raise self._failure(f"ended with exit code {self._process.poll()}")

    def stop(self) -> None:
        """Shut the broker down cleanly; not an error when it does not run."""
        if self._process:
            self._process.stop(STOP_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        """End the broker as a crash would (SIGKILL). `start` brings it back on the same port and data."""
        if self._process:
            self._process.kill()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold HOME/lock, a file descriptor that the broker inherits: it is free once the broker is gone.

        A broker whose owner was killed a moment ago is waited for, one that is in use is left alone.
        """
        handle = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while not _take(handle):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"another embedded Kafka already uses {self.home}",
                        "stop it, or give this one another data folder",
                    )
                time.sleep(0.05)
            yield handle
        finally:
            os.close(handle)

    def _start(self, java: list[str], port: int) -> None:
        with self._locked() as lock:
            if is_listening(port):
                raise _PortTakenError
            self._write_properties(port)
            self._logged = self.log_path.stat().st_size if self.log_path.exists() else 0
            if not (self.home / "data" / "meta.properties").exists():
                self._format(java)
            with self.log_path.open("ab") as log:
                command = [*java, "kafka.Kafka", "server.properties"]
                self._process = Guarded(command, os.environ, log, cwd=self.home, keep=[lock])
        try:
            self._await(self._process, port)
        except BaseException:
            self.stop()
            raise
        self._port = port
        self._port_note.write_text(f"{port}\n")

    @property
    def _port_note(self) -> Path:
        return self.home / "port"

    def _last_port(self) -> int:
        note = self._port_note.read_text().strip() if self._port_note.exists() else ""
        return int(note) if note.isdecimal() else free_port()

    def _write_properties(self, port: int) -> None:
        sizes = {"message": MAX_MESSAGE_BYTES, "request": 2 * MAX_MESSAGE_BYTES}
        text = PROPERTIES.format(host=HOST, port=port, controller=free_port(), **sizes)
        (self.home / "server.properties").write_text(text)

    def _format(self, java: list[str]) -> None:
        cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=").replace("-", "0")
        command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", "server.properties"]
        with self.log_path.open("ab") as log:
            done = subprocess.run(
                command, cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        if done.returncode != 0:
            raise self._failure(f"could not format {self.home / 'data'}")

    def _await(self, process: Guarded, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_listening(port):
            if process.poll() is not None:
                raise self._failure(f"ended with exit code {process.poll()} while starting")
            if time.monotonic() > deadline:
                raise self._failure(f"does not listen after {START_TIMEOUT_S:g} s")
            time.sleep(0.05)
        cluster = wait_ready(f"{HOST}:{port}", max(1.0, deadline - time.monotonic()))
        if cluster != self._cluster_id():  # another server got hold of the port since we looked
            raise _PortTakenError

    def _cluster_id(self) -> str:
        note = (self.home / "data" / "meta.properties").read_text()
        return next(line.partition("=")[2] for line in note.splitlines() if line.startswith("cluster.id="))

    def _failure(self, what: str) -> UserError:
        with self.log_path.open("rb") as log:
            log.seek(self._logged)
            text = log.read().decode(errors="replace")
        if "Address already in use" in text:
            return _PortTakenError()
        told = [
            line for line in text.splitlines() if line.strip() and not line.startswith(("\t", "WARNING:"))
        ]
        quote = "\n".join(f"    {line[:300]}" for line in told[-QUOTED_LINES:])
        fix = next((f"{fix}; " for words, fix in FIXES.items() if words in text), "")
        return UserError(
            f"the embedded Kafka {what}; its last words:\n{quote}",
            f"{fix}see {self.log_path} for all of them",
        )


class _PortTakenError(UserError):
    def __init__(self) -> None:
        super().__init__("the port is in use")


def _java_options(heap_mb: int) -> list[str]:
    logger = "-Dorg.slf4j.simpleLogger."
    return [
        *("-Xms64m", f"-Xmx{heap_mb}m", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData"),
        *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),  # starts fast and stays small
        *("-Djava.net.preferIPv4Stack=true", "-Djava.awt.headless=true", "-Djava.io.tmpdir=tmp"),
        *(f"{logger}logFile=System.out", f"{logger}defaultLogLevel=warn", f"{logger}showDateTime=true"),
        f"{logger}dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
        f"{logger}log.kafka.server.KafkaRaftServer=info",
    ]


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
