"""One partition of one group of topics: the step that processes it, and what waits for it."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from faust.types import TP

from streams.transaction import Outputs, Record, Written
from streams.transport import Fetch


class Step(Protocol):
    """What happens to one partition of one group: taking over, working, hearing of nothing, and letting go. It has no
    producer: what it wants written it puts into `outputs`, and what it wants done after the commit into
    `outputs.after`. The next pass may be processed before that is called.
    """

    async def open(self, committed: Mapping[TP, int]) -> None:
        """Take the partition over, at these offsets: the first to process of every source."""

    def process(self, records: Mapping[TP, Sequence[Any]], outputs: Outputs) -> None:
        """Process records in offset order; raising ends the worker."""

    async def quiet(self, outputs: Outputs) -> float | None:
        """Nothing came for a while, or since the partition was taken over; seconds until it wants to hear of it again.

        None: not before something came.
        """

    def close(self, *, final: bool) -> None:
        """Let go; `final` when the worker stops by request and may save what speeds up the next start."""


class LostFetch(Exception):
    """A fetch went missing between the consumer and its place; starting again from the commit brings it back."""


@dataclass
class Tail:
    """Where a log ends that we alone write: with a record of ours before offset `end`, then with `marks` of the
    transaction that wrote it; -1 until it is written. Until `until`, by the loop's clock, that record is waited for.
    """

    marks: int
    end: int = -1
    until: float = 0.0


class Place:
    """One partition of one group: its step, the fetches that wait for it, and when it was last heard of."""

    def __init__(self, step: Step, sources: Sequence[TP], order: int) -> None:
        self.step, self.sources, self.order = step, sources, order
        self.tails: dict[TP, Tail] = {}  # where logs that we alone write end
        self.opening = self.ready = self.gone = False
        self.waiting = 0  # records in the queue
        self.quiet_at: float | None = None  # when its step is to be told, by the loop's clock
        self._queue: deque[Fetch] = deque()
        self._last: dict[TP, Fetch] = {}
        self.next: dict[TP, int] = {}

    def put(self, fetch: Fetch) -> None:
        """One more fetch waits, unless all of it was taken up when it was written."""
        tp = TP(fetch.topic, fetch.partition)
        if (
            self.ready
            and not self._queue
            and fetch.records[-1].offset < self.next[tp]
            and fetch.follows(self._last.get(tp))
        ):
            self._last[tp] = fetch
            return
        self._queue.append(fetch)
        self.waiting += len(fetch.records)

    async def open(self, committed: Mapping[TP, int]) -> None:
        """Take the partition over."""
        self.next = {tp: committed[tp] for tp in self.sources}
        await self.step.open(self.next)
        self.ready = True

    def take(self, most: int) -> dict[TP, list[Any]]:
        """The records of the next fetches, about `most` of them: those at or above the next offset, in order."""
        fresh: dict[TP, list[Any]] = {}
        while self._queue and most > 0:
            fetch = self._queue.popleft()
            self.waiting -= len(fetch.records)
            most -= len(fetch.records)
            tp = TP(fetch.topic, fetch.partition)
            if not fetch.follows(self._last.get(tp)):
                raise LostFetch(
                    f"{tp}: fetch {fetch.sequence} of epoch {fetch.epoch} does not follow the last one"
                )
            self._last[tp] = fetch
            first = self.next[tp]
            records = [r for r in fetch.records if r.offset >= first]
            if records:
                fresh.setdefault(tp, []).extend(records)
                self.next[tp] = records[-1].offset + 1
        return fresh

    def take_up(self, tp: TP, written: Sequence[Written], marks: int) -> list[Record]:
        """Records of a log that will be written next, as they will be fetched; none if nobody knows where they will be.

        `marks`: see Committer.
        """
        tail = self.tails.get(tp)
        if tail is None or tail.end != self.next.get(tp):
            return []
        first = tail.end + tail.marks
        self.next[tp] = first + len(written)
        self.tails[tp] = Tail(marks, self.next[tp])
        return [
            Record(*tp, offset, key, value, headers)
            for offset, (key, value, headers) in enumerate(written, first)
        ]

    def owing(self, now: float) -> bool:
        """Whether something that we wrote for it is worth waiting for."""
        return any(now < tail.until and self.next.get(tp, 0) < tail.end for tp, tail in self.tails.items())
