"""A run with a beginning and an end: roles up, a source fed, everything predicted and learned, roles down.

The demo and a replay without a cluster of its own are such runs.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from infra.clock import now_ms
from infra.errors import UserError
from infra.kafka import Record, committed_offsets, end_offsets, partitions, read_all, records_left
from streams import wire
from streams.cluster import Cluster
from streams.feed import Item, Progress, feed
from streams.gate import PARTITIONS
from streams.ordering import SOURCE, WATERMARK
from streams.task import Task
from streams.topics import Topics
from streams.watch import Watch

READY_S, PREDICT_S, LEARN_S = 120.0, 60.0, 60.0
_QUIET_S = 4.0
_POLL_S = 0.2
_ASK_EVERY_S = 1.0  # Kafka, how far the roles are
_MARKS = 128  # newest offsets of examples, among which stands a mark of each partition of labels


class Source(Protocol):
    """What can be fed: a simulation or a replay. Counts and times as in `simulate.Simulation`."""

    @property
    def total(self) -> int:
        """Items: events and labels."""

    @property
    def events(self) -> int:
        """Events."""

    @property
    def start_ms(self) -> int:
        """Event time of the start."""

    @property
    def span_ms(self) -> int:
        """Event time from start to end."""

    @property
    def identity(self) -> str:
        """Text that differs between sources that differ."""

    def items(self) -> Iterator[Item]:
        """Events and labels in time order."""


@dataclass
class Feeding:
    """The producer's thread: what it has sent so far, and what went wrong."""

    source: Source
    speed: float | None
    resume: Path | None = None
    progress: Progress | None = None
    error: BaseException | None = None
    done: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, task: Task, kafka: str) -> None:
        """Feed until the end or `stop`."""
        source = self.source
        try:
            feed(
                source.items(),
                source.total,
                task,
                kafka,
                speed=self.speed,
                on_progress=self._note,
                stop=self.stop,
                resume=self.resume,
                source=source.identity,
            )
        except BaseException as error:
            self.error = error
        self.done = True

    def _note(self, progress: Progress) -> None:
        self.progress = progress

    @property
    def events(self) -> int:
        """Events acknowledged by Kafka so far."""
        return self.progress.events if self.progress else 0


def await_ready(cluster: Cluster) -> None:
    """Wait until every role has its partitions. Raises UserError when that takes too long."""
    deadline = time.monotonic() + READY_S
    while not cluster.ready():
        cluster.poll()
        if time.monotonic() > deadline:
            raise UserError(
                f"the roles did not get ready within {READY_S:g} s",
                f"see the logs in {cluster.settings.log_dir}",
            )
        time.sleep(0.3)


def stream(cluster: Cluster, feeding: Feeding, show: Callable[[Watch, Feeding], None]) -> Watch:
    """Feed, watch and show until everything is predicted and learned, or nothing more comes.

    The first Ctrl-C ends the feeding and lets what was sent be finished; a second one ends everything.
    """
    watch = Watch(cluster.task, cluster.settings)
    thread = threading.Thread(
        target=feeding.run, args=(cluster.task, cluster.settings.kafka), name="producer", daemon=True
    )

    def on_interrupt(*_: object) -> None:
        if feeding.stop.is_set():
            raise KeyboardInterrupt
        feeding.stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        watch.catch_up()
        thread.start()
        finish = _Finish(
            feeding, watch, lambda: _all_read(cluster), lambda fed_ms: _all_learned(cluster, fed_ms)
        )
        while not finish.reached(time.monotonic()):
            watch.poll(_POLL_S)
            cluster.poll()
            show(watch, feeding)
    finally:
        feeding.stop.set()
        if thread.ident is not None:
            thread.join()
        watch.close()
        signal.signal(signal.SIGINT, before)
    if feeding.error is not None:
        raise feeding.error
    return watch


def _all_read(cluster: Cluster) -> bool:
    """Whether serve has committed every event that is in Kafka."""
    topics = Topics.of(cluster.task)
    return _left(cluster.settings.kafka, topics.group("serve"), topics.events) <= 0


def _all_learned(cluster: Cluster, fed_ms: int) -> bool:
    """Whether join has taken every label and example, and knows so, and the learner every row and example.

    Rows whose window is over wait in join until every partition of labels says that it has come past `fed_ms`, when
    the last event was sent. Among the examples stand the newest such marks, and those of transactions, which nobody
    waits for. One record of rows may hold thousands: join may leave none of those, and the learner none that it
    learns from.
    """
    kafka, topics = cluster.settings.kafka, Topics.of(cluster.task)
    join, learn = topics.group("join"), topics.group("learn")
    return (
        _left(kafka, join, topics.labels) <= 0
        and not records_left(
            kafka, topics.examples, committed_offsets(kafka, join, topics.examples), _is_no_mark
        )
        and _labels_came(kafka, topics) >= fed_ms
        and _left(kafka, learn, topics.examples) <= 2 * cluster.settings.partitions
        and not records_left(kafka, topics.labelled, committed_offsets(kafka, learn, topics.labelled))
    )


def _labels_came(kafka: str, topics: Topics) -> int:
    """Kafka's time to which all labels have come, as every partition of join was told; 0 where one was not of late."""
    taken = committed_offsets(kafka, topics.group("join"), topics.examples)
    come: dict[tuple[int, int], int] = {}
    for record in read_all(kafka, topics.examples, newest=_MARKS):
        headers = dict(record.headers)
        if record.offset < taken.get(record.partition, 0) and {PARTITIONS, WATERMARK} <= headers.keys():
            come[record.partition, int(headers[SOURCE])] = int(headers[WATERMARK])
    places = partitions(kafka, topics.examples) * partitions(kafka, topics.labels)
    return min(come.values()) if len(come) == places else 0


def _is_no_mark(record: Record) -> bool:
    """Whether a record of the examples topic holds rows or labels."""
    is_labels = dict(record.headers).get(wire.KIND) == wire.LABELS
    return not is_labels or len(wire.decode_labels(record.value).ids) > 0


def _left(kafka: str, group: str, topic: str) -> int:
    """The most offsets that `group` has before it in a partition."""
    done = committed_offsets(kafka, group, topic)
    return max(end - done.get(partition, 0) for partition, end in end_offsets(kafka, topic).items())


class _Finish:
    """Decides when a run is over: all answered and learned, no new evaluation for a while; or nothing comes."""

    def __init__(
        self,
        feeding: Feeding,
        watch: Watch,
        all_read: Callable[[], bool],
        all_learned: Callable[[int], bool],
    ) -> None:
        self._feeding, self._watch, self._all_read, self._all_learned = feeding, watch, all_read, all_learned
        self._seen, self._moved_at = -1, 0.0
        self._predicted, self._fed_ms = False, 0
        self._evaluations, self._quiet_since, self._ask_at = 0, 0.0, 0.0

    def reached(self, now: float) -> bool:
        if not self._feeding.done:
            return False
        self._fed_ms = self._fed_ms or now_ms()
        if not self._predicted:
            if not self._all_answered(now):
                return False
            self._predicted, self._quiet_since = True, now
        evaluations = len(self._watch.metrics.get("served", ()))
        if evaluations != self._evaluations:
            self._evaluations, self._quiet_since = evaluations, now
        if now - self._quiet_since > LEARN_S:
            return True
        if now - self._quiet_since <= _QUIET_S or now < self._ask_at:
            return False
        self._ask_at = now + _ASK_EVERY_S
        return self._all_learned(self._fed_ms)

    def _all_answered(self, now: float) -> bool:
        """An answer for every event, or silence: duplicates are never answered, so this must end without them too."""
        answered = self._watch.answered
        if answered != self._seen:
            self._seen, self._moved_at = answered, now
        if answered >= self._feeding.events:
            return True
        silent = now - self._moved_at
        return silent > _QUIET_S and (self._all_read() or silent > PREDICT_S)
