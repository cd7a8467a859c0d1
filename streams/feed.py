"""From items to Kafka: paces events and labels by their own time, keeps memory bounded, can stop and resume.

The steps, in order: wait until an item is due (`Pace`), put it into a batch (`Lane.add`), hand full batches
to Kafka (`Lane.flush`), and save how far Kafka has acknowledged (`Position`). Only what Kafka has
acknowledged counts as sent, so a feed that died sends an item again rather than never.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from infra.blobs import Blobs
from infra.errors import UserError
from streams.feed_lane import Lane
from streams.task import Task
from streams.topics import Topics

_TICK_S = 0.2  # how often progress is told, and how long at most we sleep without looking up
_NAP_S = (
    0.02  # how long at least: items that fall due meanwhile go together, as a batch costs more than a record
)
_SAVE_S = 0.5  # how often the position is saved: about what a kill makes us repeat


class Item(NamedTuple):
    """One record to send. Bytes are sent as they are.

    `time_ms` is event time, for a label the time when it becomes known. `key` is the text of the record's
    key; "" sends it to any partition.
    """

    time_ms: int
    kind: Literal["event", "label"]
    key: str
    value: dict[str, Any] | bytes


@dataclass(frozen=True)
class Counts:
    """What a feed did: events and labels that it sent, and `skipped` items that an earlier run had sent.

    `stopped` says that there are items left.
    """

    events: int
    labels: int
    skipped: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a feed is: items that Kafka has acknowledged, and the event time of the last one sent, if any.

    `done` of `total` items counts those that an earlier run had sent; `events` and `labels` are this run's.
    """

    done: int
    total: int
    events: int
    labels: int
    time_ms: int | None


@dataclass(frozen=True)
class Pace:
    """When items are due. `speed` is event seconds a second, `rate` events a second; None means no limit.

    Labels go along with the events around them. Falling behind is made up for, so that the mean is kept.
    """

    speed: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("speed", "rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(
                    f"a {name} of {value:g} cannot be kept", f"give a {name} above 0, or none at all"
                )

    @property
    def is_limited(self) -> bool:
        """Whether items ever have to wait."""
        return self.speed is not None or self.rate is not None

    def due_s(self, after_ms: int, events: int) -> float:
        """Seconds after the start when an item goes: `after_ms` after the first, behind `events` events."""
        by_time = after_ms / 1000 / self.speed if self.speed else 0.0
        by_count = events / self.rate if self.rate else 0.0
        return max(by_time, by_count)


def feed(
    items: Iterable[Item],
    total: int,
    task: Task,
    kafka: str,
    *,
    speed: float | None = None,
    rate: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    resume: Path | None = None,
    source: str = "",
) -> Counts:
    """Send `items`, which must be in time order, to the task's events and labels topics.

    Args:
        items: what to send.
        total: how many there are, for the progress.
        task: names the topics, which must exist.
        kafka: "host:port".
        speed: event seconds a second of ours; None for no such limit.
        rate: events a second; None for no such limit.
        on_progress: called about five times a second, and at the end.
        stop: set it from a signal handler or another thread to end the feed after the item at hand.
        resume: file of the position. What it counts as sent is skipped. It is kept up to date, and stays when
            all is sent. Items must come the same way again.
        source: what the items are, in words; a position of another source is refused.

    Returns:
        Counts of items that Kafka has acknowledged.

    Raises:
        UserError: no broker, no topics, a record that the broker refuses, or a position of another source.
    """
    pace = Pace(speed, rate)
    topics = Topics.of(task)
    position = Position(resume, task.name, source)
    rest = islice(items, position.sent, None)
    lane = Lane(kafka, topics.events, topics.labels)
    run = _Run(lane, position, total, on_progress)
    try:
        stopped = run.send_all(rest, pace, stop or threading.Event())
        lane.settle()
    finally:
        run.finish()
    return Counts(lane.settled_events, lane.settled_labels, run.skipped, stopped)


class _Run:
    """One pass over the items: waits, sends, and tells about it now and then."""

    def __init__(
        self, lane: Lane, position: "Position", total: int, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self._lane, self._position, self._total, self._tell = lane, position, total, on_progress
        self.skipped = position.sent
        self._time_ms: int | None = None
        self._next_tick = 0.0

    def send_all(self, items: Iterator[Item], pace: Pace, stop: threading.Event) -> bool:
        """Send until the items end (False) or `stop` is set (True)."""
        lane, begin, first_ms = self._lane, time.monotonic(), None
        for item in items:
            if first_ms is None:
                first_ms = item.time_ms
            if pace.is_limited:
                self._wait(begin + pace.due_s(item.time_ms - first_ms, lane.events), stop)
            if stop.is_set():
                return True
            lane.add(item.kind, item.key, item.value)
            self._time_ms = item.time_ms
            if lane.is_chunk_full:
                lane.flush()
                self._tick(time.monotonic())
        return False

    def finish(self) -> None:
        """Whatever happened: let go of the connection, save what Kafka has, tell the last progress."""
        self._lane.close()
        self._position.save(self.skipped + self._lane.settled)
        self._report()

    def _wait(self, due: float, stop: threading.Event) -> None:
        while (left := due - time.monotonic()) > 0 and not stop.is_set():
            self._lane.flush()
            self._lane.idle(min(max(left, _NAP_S), _TICK_S))
            self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        if now < self._next_tick:
            return
        self._next_tick = now + _TICK_S
        if now - self._position.saved_at >= _SAVE_S:
            self._position.save(self.skipped + self._lane.settled)
        self._report()

    def _report(self) -> None:
        if self._tell:
            lane = self._lane
            done, events, labels = self.skipped + lane.settled, lane.settled_events, lane.settled_labels
            self._tell(Progress(done, self._total, events, labels, self._time_ms))


class Position:
    """How many items are sent, in a file: {"task", "source", "sent"}, always replaced as a whole."""

    def __init__(self, path: Path | None, task: str, source: str) -> None:
        self._path, self._of = path, {"task": task, "source": source}
        self.sent = self._load()
        self.saved_at = time.monotonic()

    def _load(self) -> int:
        if self._path is None or not self._path.exists():
            return 0
        try:
            state = json.loads(self._path.read_bytes())
            of = {"task": state["task"], "source": state["source"]}
            sent = int(state["sent"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self._path} is no position of a feed", "name another file, or delete it"
            ) from None
        if of != self._of:
            raise UserError(
                f"{self._path} is the position of another feed: {of['source']}, to task {of['task']}; "
                f"this one is {self._of['source']}, to task {self._of['task']}",
                "name another file, or delete it to send everything from the start",
            )
        return sent

    def save(self, sent: int) -> None:
        """Write `sent` down, unless it is there already."""
        self.saved_at = time.monotonic()
        if self._path is not None and (sent != self.sent or not self._path.exists()):
            folder = self._path.absolute().parent
            Blobs(f"file://{folder}").put(self._path.name, json.dumps({**self._of, "sent": sent}).encode())
            self.sent = sent
