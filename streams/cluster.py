"""All roles of one task on this machine: `driftline up`, the demo and a replay without a cluster run on it."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self
from zlib import crc32

from infra.blobs import Blobs
from infra.embedded import EmbeddedKafka
from infra.kafka import group_ready, wait_ready
from infra.settings import Settings
from infra.supervisor import Supervisor
from streams.first_start import is_first
from streams.heads import Heads
from streams.prepare import prepare
from streams.reporting import addresses, targets
from streams.running import noted, refuse_second
from streams.task import Task
from streams.topics import Topics


class Cluster:
    """Kafka (embedded unless `settings.kafka` names one) and the four roles, each a supervised process.

    Args:
        task: the task to run.
        settings: where; `settings.kafka` "" means an embedded broker in `<data>/kafka`.
        workers: serve workers.
        freeze_at_ms: event time at which the learner keeps a frozen copy to compare with, or None.
        port: of the embedded broker; None for the one it had before, or a free one.
        say: told, in one sentence each, what is being done.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        *,
        workers: int = 1,
        freeze_at_ms: int | None = None,
        port: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.task, self.settings = task, settings
        self._workers, self._freeze_at_ms, self._port, self._say = workers, freeze_at_ms, port, say
        self._broker: EmbeddedKafka | None = None
        self.roles = Supervisor(settings.log_dir)
        self._stack = ExitStack()

    def start(self) -> None:
        """Start everything; returns when the roles are on their way. Raises UserError."""
        refuse_second(self.settings.data)
        metrics = addresses(self.settings, self._names)
        first = is_first()
        beside = self._begin_first_start()
        if self.settings.kafka:
            wait_ready(self.settings.kafka)
        else:
            folder = self.settings.data / "kafka"
            self._broker = EmbeddedKafka(folder, port=self._port, progress=self._downloading)
            self._stack.callback(self._broker.stop)
            self.settings = replace(self.settings, kafka=self._broker.start())
            self._say(f"Kafka listens on {self.settings.kafka}")
        self.settings = prepare(self.task, self.settings)
        self._stack.enter_context(noted(self.settings.data, self.settings.kafka, str(self.task.path)))
        if first:
            self._say("preparing Python's packages (once)")
            beside.wait()
        self._say("roles start: archive, join, learn, serve")
        if metrics:
            self._say(self._stack.enter_context(targets(self.settings.data, metrics)))
        self._start_roles(metrics)
        beside.wait()

    def _begin_first_start(self) -> subprocess.Popen[bytes]:
        """Run `first_start` beside the broker's start, in a process that gives back what Feast's import takes."""
        command = [sys.executable, "-m", "streams.first_start", str(self.task.path)]
        env = {**os.environ, **self.settings.to_env()}
        log_dir = self.settings.log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        with (log_dir / "first-start.log").open("wb") as log:  # what fails here is tried again by the roles
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def _downloading(self, done: int, total: int) -> None:
        if done == 1:
            self._say(f"downloading Kafka's {total} jars (once)")

    @property
    def _names(self) -> list[str]:
        return ["archive", "join", "learn", *(f"serve-{i + 1}" for i in range(self._workers))]

    def _start_roles(self, metrics: Mapping[str, str]) -> None:
        here = crc32(f"{platform.node()} {self.settings.data}".encode())
        for name in self._names:
            role = name.partition("-")[0]
            command = [sys.executable, "-m", "streams.cli", role, "--task", str(self.task.path)]
            if role == "learn" and self._freeze_at_ms is not None:
                command += ["--freeze-at", str(self._freeze_at_ms)]
            worker, at = f"{name}-{here:08x}", metrics.get(name, "")
            settings = replace(self.settings, worker=worker, metrics=at)
            self.roles.start(name, command, {**os.environ, **settings.to_env()})

    def ready(self) -> bool:
        """Whether the learner has a model and every Faust role its partitions."""
        groups = [Topics.of(self.task).group(role) for role in ("serve", "join", "archive")]
        model = Heads(Blobs(self.settings.blobs), self.task.name).any()
        return model and all(group_ready(self.settings.kafka, group) for group in groups)

    def poll(self) -> None:
        """Restart what ended; to be called about every second. Raises UserError for what cannot stay up."""
        if self._broker:
            self._broker.check()
        self.roles.poll()

    def stop(self) -> None:
        """End the roles, then the broker."""
        self.roles.stop(20.0)
        self._stack.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
