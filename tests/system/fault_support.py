"""What the fault tests and the fault benchmark share: a stream with serve workers, and what it must come to.

Whatever happened on the way, each event has one prediction and one example under `read_committed`, and the features in
the examples are bit for bit those of one undisturbed pass over the same log.
"""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from infra.kafka import Record, group_ready, read_all
from infra.settings import Settings, load_secret
from streams import wire
from streams.feed import Item, feed
from streams.prepare import prepare
from streams.privacy import Pseudonymiser
from streams.rows import ROW_ARRAYS
from streams.simulate import simulate
from streams.stage import StagePartition
from streams.task import Task, load_task
from streams.topics import Topics
from tests.system import run_support as runs

PARTITIONS = 4
_READY = re.compile(
    r"^(\S+ \S+) INFO streams\.serve: TP\(topic='(.+)', partition=(\d+)\) ready", re.MULTILINE
)
_READ_S = 900.0  # a long stream on a busy machine takes minutes to read
_WORKER = Path(__file__).with_name("fault_worker.py")


class Broker(Protocol):
    """What a stream must know of its broker."""

    @property
    def address(self) -> str: ...


@dataclass
class Stream:
    """The clicks under a name of their own, prepared on the broker, and a long source of its events."""

    task: Task
    settings: Settings
    items: Iterator[Item]

    def __post_init__(self) -> None:
        self.sent: set[str] = set()
        self._runs: list[runs.Run] = []

    @property
    def topics(self) -> Topics:
        return Topics.of(self.task)

    @property
    def group(self) -> str:
        """The serve workers' consumer group."""
        return f"driftline-{self.task.name}-serve"

    def send(self, count: int, rate: float | None = None) -> None:
        """Produce so many more events."""
        items = list(islice(self.items, count))
        self.sent |= {str(item.value["event_id"]) for item in items if isinstance(item.value, dict)}
        counts = feed(items, count, self.task, self.settings.kafka, rate=rate)
        assert counts.events == count

    def send_until(self, done: Callable[[], Any], *alive: runs.Run) -> None:
        """Produce 200 events a second until `done()`; fails when one of `alive` has ended."""
        while not done():
            for run in alive:
                run.check_alive()
            self.send(40, rate=200)

    def send_until_ready(self, run: runs.Run, times: int) -> None:
        """Produce until the present life of a `faulty` worker has taken so many partitions over."""

        def ready() -> bool:
            last_life = run.output.rpartition("\nlife ")[2]
            return last_life.count("ready at offset") >= times

        self.send_until(ready, run)

    def send_until_it_works(self, run: runs.Run) -> None:
        """Produce 500 events a second until a new worker has partitions, and a little longer."""
        while "ready at offset" not in run.output:
            run.check_alive()
            self.send(100, rate=500)
        self.send(500, rate=500)

    def worker(self, stack: ExitStack, name: str) -> runs.Run:
        """One more serve worker; all share the blobs and the secret, as they would in a cluster."""
        folder = self.settings.data.parent / name
        folder.mkdir()
        worker = runs.serving(folder / "data", self.task, self.settings.kafka, **self._shared())
        run = stack.enter_context(worker)
        self._runs.append(run)
        return run

    def faulty(
        self, stack: ExitStack, name: str, lives: Sequence[str] = (), *, prefix: Sequence[str] = ()
    ) -> runs.Run:
        """Serve workers one after the other, with the faults of `lives`; see fault_worker.py.

        `prefix` is a command that runs them.
        """
        folder = self.settings.data.parent / name
        folder.mkdir(exist_ok=True)
        (folder / "faults").write_text("".join(f"{line}\n" for line in lives))
        command = [
            *prefix, sys.executable, str(_WORKER), str(folder / "faults"),
            "serve", "--task", str(self.task.path), "--kafka", self.settings.kafka,
        ]  # fmt: skip
        runs.register(folder / "data", self.task, **self._shared())
        run = stack.enter_context(runs.running_command(folder / "data", command, **self._shared()))
        self._runs.append(run)
        return run

    def _shared(self) -> dict[str, str]:
        names = ("DRIFTLINE_BLOBS", "DRIFTLINE_SECRET")
        return {name: value for name, value in self.settings.to_env().items() if name in names}

    def snapshots(self, index: int, partition: int) -> list[Path]:
        """Files of the snapshots of one partition of a stage, oldest first."""
        folder = Path(self.settings.blobs.removeprefix("file://"))
        return sorted(
            (folder / f"state/{self.task.name}/{self.topics.stage(index)}/{partition}").glob("*.state")
        )

    def tails(self) -> Iterator[tuple[str, str]]:
        for run in self._runs:
            yield from run.tails()


def make_stream(
    broker: Broker, folder: Path, name: str, serving: str, *, events: int = 100_000, label_rates: bool = True
) -> Stream:
    """A stream whose task is called `name`; `serving` are lines of its [serving] table.

    Label rates depend on when labels come back. Where a join runs, only features without them can be compared.
    """
    task = runs.own_task(folder, name, serving=serving)
    if not label_rates:
        task.path.write_text(re.sub(r"^label_rate.*\n", "", task.text, flags=re.MULTILINE))
        task = load_task(str(task.path))
    settings = prepare(task, Settings(kafka=broker.address, data=folder / "shared", partitions=PARTITIONS))
    load_secret(settings.secret)
    clicks = simulate("clicks", seed=5, events=events)
    return Stream(task, settings, (item for item in clicks.items() if item.kind == "event"))


def check_one_prediction_each(stream: Stream) -> None:
    """Every event that was sent has exactly one prediction, and nothing was set aside."""
    rows = runs.await_predictions(stream.settings.kafka, stream.task, stream.sent)
    seen = Counter(row["event_id"] for row in rows)
    assert set(seen) == stream.sent
    assert [event_id for event_id, count in seen.items() if count > 1] == []
    assert read(stream, stream.topics.dead_letters) == []


def check_as_if_nothing_had_happened(stream: Stream) -> None:
    """One prediction and one example an event, with the features of an undisturbed pass over each stage's log."""
    check_one_prediction_each(stream)
    first, last = folded(stream, 0), folded(stream, 1)
    assert sorted(first.ids) == sorted(stream.sent)
    assert difference(moved(stream), first) == {}
    assert difference(examples(stream), last) == {}


def read(stream: Stream, topic: str) -> list[Record]:
    """Every committed record of a topic."""
    return read_all(stream.settings.kafka, topic, timeout_s=_READ_S)


def folded(stream: Stream, index: int) -> wire.Rows:
    """The rows that one undisturbed pass over a stage's log makes."""
    secret, topic = load_secret(stream.settings.secret), stream.topics.stage(index)
    records: dict[int, list[Any]] = {partition: [] for partition in range(PARTITIONS)}
    for record in read(stream, topic):
        records[record.partition].append(record)
    stages = {p: StagePartition(stream.task, index, Pseudonymiser(secret), PARTITIONS) for p in records}
    return wire.Rows.concat([stage.fold(records[p]).rows for p, stage in stages.items()])


def moved(stream: Stream) -> wire.Rows:
    """The rows that the first stage wrote for the second."""
    records = read(stream, stream.topics.stage(1))
    return wire.Rows.concat([wire.decode_rows(record.value) for record in records])


def examples(stream: Stream) -> wire.Rows:
    """The rows of the examples topic, as they were served; labels and their marks stand there too."""
    records = [
        record
        for record in read(stream, stream.topics.examples)
        if dict(record.headers).get(wire.KIND) == wire.EXAMPLES
    ]
    return wire.Rows.concat([wire.decode_examples(record.value)[0] for record in records])


def difference(found: wire.Rows, wanted: wire.Rows) -> dict[str, list[str]]:
    """Event ids by what is wrong with them; empty when both are the same rows, bit for bit, in whatever order.

    "lost" ids are only in `wanted`, "strange" ones only in `found`, "doubled" ones are there several times, and
    "different" ones have another bit somewhere.
    """
    there, due = Counter(found.ids), Counter(wanted.ids)
    wrong = {
        "lost": sorted(due.keys() - there.keys()),
        "strange": sorted(there.keys() - due.keys()),
        "doubled": sorted(i for i, count in (there | due).items() if count > 1),
    }
    both = sorted(there.keys() & due.keys())
    left, right = _at(found, both), _at(wanted, both)
    changed = np.zeros(len(both), np.bool_)
    for name in ROW_ARRAYS:
        changed |= _bits(getattr(left, name), len(both)) != _bits(getattr(right, name), len(both))
    wrong["different"] = [both[i] for i in np.flatnonzero(changed).tolist()]
    return {what: ids for what, ids in wrong.items() if ids}


def _at(rows: wire.Rows, ids: Sequence[str]) -> wire.Rows:
    place = {event_id: i for i, event_id in enumerate(rows.ids)}
    return rows.take(np.array([place[i] for i in ids], np.int64))


def _bits(array: Any, count: int) -> Any:
    """Each row's bytes as one comparable value [n]; NaN equals the same NaN."""
    flat = np.ascontiguousarray(array).reshape(count, -1)
    if flat.size == 0:
        return np.zeros(count, "V1")
    return flat.view(f"V{flat.shape[1] * flat.itemsize}").ravel()


def owners(logs: Mapping[str, str], topic: str) -> dict[int, str]:
    """Partition → name of the worker that took it over last, by what the workers' logs {name: text} say."""
    newest: dict[int, tuple[str, str]] = {}
    for name, text in logs.items():
        for stamp, of, partition in _READY.findall(text):
            if of == topic:
                newest[int(partition)] = max(newest.get(int(partition), ("", "")), (stamp, name))
    return {partition: name for partition, (_, name) in newest.items()}


def damage(path: Path, how: str) -> None:
    """Spoil a file: "cut" it in half, as a write that was not finished; or turn one "bit" of it around."""
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)


def life(run: runs.Run) -> int:
    """Process id of the present life of a `faulty` worker; waits for one."""

    def found() -> int:
        run.check_alive()
        return next((child.pid for child in psutil.Process(run.process.pid).children()), 0)

    return int(runs.until(found, "a life of the worker"))


@contextmanager
def between_lives(run: runs.Run) -> Iterator[None]:
    """Kill the present life of a `faulty` worker; the next one begins when the body has ended."""
    run.process.send_signal(signal.SIGSTOP)
    os.kill(life(run), signal.SIGKILL)
    yield
    run.process.send_signal(signal.SIGCONT)


def met(run: runs.Run) -> list[tuple[str, int, str, str]]:
    """(action, process id, step, where) of every fault that a `faulty` worker has met."""
    found = re.findall(r"^fault: (\w+) (\d+) at (\S+) of (\S+)$", run.output, re.MULTILINE)
    return [(action, int(pid), step, where) for action, pid, step, where in found]


def taken(run: runs.Run, topic: str) -> set[int]:
    """Partitions of `topic` that a worker has taken over at one time or another."""
    return {int(partition) for _, of, partition in _READY.findall(run.output) if of == topic}


def predicted(stream: Stream) -> set[tuple[str, int]]:
    """(event id, when it was made) of every prediction."""
    rows = runs.values(stream.settings.kafka, stream.topics.predictions)
    return {(row["event_id"], row["processed_at"]) for row in rows}


def wait_ready(stream: Stream) -> None:
    """Wait until the stream's workers have their partitions."""
    runs.until(lambda: group_ready(stream.settings.kafka, stream.group), "serve workers with partitions")
