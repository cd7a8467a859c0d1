"""A broker, filled topics and worker processes for the benchmarks that go through Kafka."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks._common import environment
from infra.embedded import EmbeddedKafka
from infra.errors import UserError
from infra.guard import Guarded
from infra.kafka import create_topics, end_offsets, group_ready, read_all
from infra.settings import Settings
from infra.supervisor import last_lines
from streams.feed import feed
from streams.prepare import prepare
from streams.simulate import simulate
from streams.task import Task, load_task
from streams.topics import Topics
from streams.wire import decode_rows

START_S = 90.0
# The broker's clock stamps what it appends, so that programs with producers of their own are timed alike.
STAMPED: Mapping[str, str] = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(16 << 20)}
# In one process for all tasks, since importing Feast takes seconds.
_REGISTER = """
import sys
from featurestore.repository import FeatureWriter
from infra.settings import this_worker
from streams.task import load_task

_, settings = this_worker()
for path in sys.argv[1:]:
    task = load_task(path)
    FeatureWriter(settings.data, settings.online, task.name, task.views).apply()
"""


@dataclass
class Worker:
    """A process under test and its log."""

    process: Guarded
    log: Path

    def check(self) -> None:
        """Raise UserError with its last words if it has ended."""
        code = self.process.poll()
        if code is not None:
            words = "\n".join(f"    {line}" for line in last_lines(self.log, 12))
            raise UserError(f"{self.log.stem} ended with exit code {code}; its last words:\n{words}")


@dataclass
class Bench:
    """An embedded broker in `home`; what was started here ends with it."""

    home: Path
    partitions: int
    _stack: ExitStack = field(default_factory=ExitStack)
    kafka: str = ""

    def __enter__(self) -> Self:
        self.kafka = self._stack.enter_context(EmbeddedKafka(self.home / "kafka")).address
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def settings(self) -> Settings:
        """Where the roles run."""
        return Settings(kafka=self.kafka, data=self.home / "data", partitions=self.partitions)

    def clicks(self, name: str, *, events: str = "", serving: str = "", guard: str = "") -> Task:
        """The built-in clicks under another name, with the topics that serving needs; output topics are stamped.

        `events` names the events topic, `serving` and `guard` are lines of the task file's tables.
        """
        text = load_task("clicks").text.replace('name = "clicks"', f'name = "{name}"')
        text += f"\n[serving]\n{serving}\n" if serving else ""
        text += f"\n[guard]\n{guard}\n" if guard else ""
        text += f'\n[topics]\nevents = "{events}"\n' if events else ""
        path = self.home / f"{name}.toml"
        path.write_text(text)
        task = load_task(str(path))
        topics = Topics.of(task)
        stamped = [
            topics.events,
            topics.predictions,
            *(topics.stage(i) for i in range(1, len(task.entities))),
        ]
        create_topics(self.kafka, dict.fromkeys(stamped, (self.partitions, STAMPED)))
        prepare(task, self.settings)
        return task

    def fill(self, task: Task, events: int, seed: int) -> None:
        """Simulated impressions into the task's events topic, as fast as they go; no labels."""
        simulation = simulate("clicks", seed=seed, events=events)
        feed((i for i in simulation.items() if i.kind == "event"), events, task, self.kafka)

    @contextmanager
    def worker(self, name: str, command: Sequence[str], **settings: str) -> Iterator[Worker]:
        """A process that lives as long as the body, with more `settings`; it cannot outlive this one."""
        log = self.home / f"{name}.log"
        with log.open("wb") as out:
            process = Guarded(command, environment(self.settings.to_env() | settings), out, cwd=self.home)
        try:
            yield Worker(process, log)
        finally:
            process.stop()

    @contextmanager
    def serve(self, task: Task, name: str = "", **settings: str) -> Iterator[Worker]:
        """The real `driftline serve` of a task; `name` tells several of them apart."""
        command = [sys.executable, "-m", "streams.cli", "serve", "--task", str(task.path)]
        title = "-".join(filter(None, ["serve", task.name, name]))
        with self.worker(title, command, **settings) as worker:
            yield worker

    def register(self, tasks: Sequence[Task]) -> None:
        """Register features with Feast, as `driftline up` does beside the broker's start: seconds, once."""
        with self.worker(
            "register", [sys.executable, "-c", _REGISTER, *(str(t.path) for t in tasks)]
        ) as worker:
            if worker.process.wait(START_S):
                worker.check()

    def await_group(self, group: str, worker: Worker) -> None:
        """Wait until the members of a consumer group have their partitions."""
        self.until(lambda: group_ready(self.kafka, group), worker, "get its partitions")

    def until(
        self, condition: Callable[[], bool], worker: Worker, what: str, limit_s: float = START_S
    ) -> None:
        """Wait for a condition while the worker lives; UserError when it takes too long."""
        deadline = time.monotonic() + limit_s
        while not condition():
            worker.check()
            if time.monotonic() > deadline:
                raise UserError(
                    f"{worker.log.stem} did not {what} within {limit_s:g} s", "try it on a quieter machine"
                )
            time.sleep(0.2)

    def rate(self, task: Task, events: int) -> float:
        """Predictions a second of a worker that is done, by Kafka's clock: from a tenth of the `events` read by the
        second step to nine tenths of them predicted. Outputs alone would flatter a first step that runs ahead.
        """
        topics = Topics.of(task)
        records = sorted(read_all(self.kafka, topics.stage(1)), key=lambda record: record.timestamp)
        read = np.cumsum([len(decode_rows(record.value)) for record in records])
        begin_ms = records[int(np.searchsorted(read, events // 10))].timestamp
        predicted = append_times(self.kafka, topics.predictions)
        return middle_rate(len(predicted), begin_ms, int(predicted[len(predicted) * 9 // 10]))

    def count(self, topic: str) -> int:
        """About how many records a topic has: markers of transactions count too."""
        return sum(end_offsets(self.kafka, topic).values())


def append_times(kafka: str, topic: str) -> NDArray[np.int64]:
    """When the broker got each record, in ms, ascending. Open transactions count: their work is done."""
    return np.sort([record.timestamp for record in read_all(kafka, topic, read_committed=False)])


def middle_rate(outputs: int, begin_ms: int, end_ms: int) -> float:
    """A second, of the eight tenths of `outputs` between the two moments."""
    return 0.8 * outputs / (max(1, end_ms - begin_ms) / 1000)
