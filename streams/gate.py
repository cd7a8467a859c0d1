"""How far event time may close windows: as far as the events have come, once the labels' path has come as far.

Labels reach the join by another path than events. A window that ends at event time D may be closed when every event
up to D has come, and no sooner than every label that Kafka got before the event that showed it. Two clocks meet here:

- the watermark of the events: the lowest of the newest event times of their partitions. One that was silent for
  `IDLE_AFTER` records is left out, and an event time ahead of Kafka's own clock counts as that clock: a producer whose
  clock is wrong closes nobody's window;
- how far the labels' path has come in Kafka's time: every partition of the labels topic tells it, with each batch that
  it passes on, and now and then while nothing comes (`label_mark`). Until all of them have come so far, nothing closes:
  a join worker that is down holds windows open, and `behind_ms` says for how long.

Pure, as the join's log holds both. (Watermarks as in Akidau et al., "The Dataflow Model", VLDB 2015.)
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.ordering import IDLE, SOURCE, WATERMARK, told

__all__ = ["IDLE", "IDLE_AFTER", "Gate", "label_mark"]

IDLE_AFTER = 1000
PARTITIONS = "driftline.partitions"
BEGINNING = -(2**62)
_MOST_WAITING = 4096


def label_mark(partition: int, partitions: int, come_ms: int) -> list[tuple[str, bytes]]:
    """Headers that say: partition `partition` of the labels topic, which has `partitions`, has come to `come_ms`.

    That is: all of its labels with a Kafka timestamp before that stand earlier in the same log.
    """
    return [*told(partition, come_ms), (PARTITIONS, str(partitions).encode())]


@dataclass(slots=True)
class _Source:
    """A partition of the events topic, as far as its examples have come."""

    event_ms: int = BEGINNING  # newest event time
    received_ms: int = BEGINNING  # newest time of Kafka's clock
    heard: int = 0  # number of the record that last spoke of it


class Gate:
    """The two clocks of one partition of the join's log, and where they have met: `closing_ms`."""

    def __init__(self) -> None:
        self._sources: dict[int, _Source] = {}  # by partition of the events topic
        self._come: dict[int, int] = {}  # by partition of the labels topic
        self._partitions = 0  # of the labels topic; 0 until one has told
        self._records = 0
        self._newest_ms = BEGINNING  # when Kafka got the newest event of the newest record of examples
        # Watermarks that wait for the labels, with the time to which these must have come; both rise.
        self._waiting: deque[tuple[int, int]] = deque()
        self._opened = BEGINNING

    def heard(
        self, partition: NDArray[np.int32], event_ms: NDArray[np.int64], received_ms: NDArray[np.int64]
    ) -> None:
        """A record of examples: their partitions in the events topic, event times and Kafka's times [n]."""
        self._records += 1
        for number in np.unique(partition).tolist():
            own = partition == number
            source = self._sources.setdefault(number, _Source())
            source.event_ms = max(source.event_ms, int(np.minimum(event_ms[own], received_ms[own]).max()))
            source.received_ms = max(source.received_ms, int(received_ms[own].max()))
            source.heard = self._records
        if len(received_ms):
            self._newest_ms = int(received_ms.max())
        watermark = self.watermark_ms
        if watermark > (self._waiting[-1][0] if self._waiting else self._opened):
            self._wait(watermark)
        self._open()

    def _wait(self, watermark: int) -> None:
        waiting = self._waiting
        while (
            waiting and waiting[-1][1] >= self._newest_ms
        ):  # when this one may close, so may what is before it
            waiting.pop()
        waiting.append((watermark, self._newest_ms))
        if len(waiting) > _MOST_WAITING:  # coarser: every other one closes with the one after it
            self._waiting = deque(list(waiting)[(len(waiting) - 1) % 2 :: 2])

    def passed(self, count: int, headers: Iterable[tuple[str, bytes]]) -> None:
        """A record with `count` labels, and what its headers tell. Raises ValueError for headers of someone else."""
        self._records += (
            count > 0
        )  # marks alone are no traffic beside which an events partition could look idle
        told_of = dict(headers)
        if WATERMARK in told_of and PARTITIONS in told_of:
            partition, come = int(told_of[SOURCE]), int(told_of[WATERMARK])
            self._partitions = max(self._partitions, int(told_of[PARTITIONS]))
            self._come[partition] = max(self._come.get(partition, BEGINNING), come)
        self._open()

    def _open(self) -> None:
        come = self.come_ms
        while self._waiting and self._waiting[0][1] < come:
            self._opened, _ = self._waiting.popleft()

    @property
    def closing_ms(self) -> int:
        """Event time up to which windows may close."""
        return min(self._opened, self.watermark_ms)

    @property
    def watermark_ms(self) -> int:
        """Event time up to which every events partition that is not idle has come."""
        return min((source.event_ms for source in self._live()), default=BEGINNING)

    @property
    def received_ms(self) -> int:
        """The same for Kafka's clock: every event that Kafka got before it has come."""
        return min((source.received_ms for source in self._live()), default=BEGINNING)

    @property
    def come_ms(self) -> int:
        """Kafka's time to which every partition of the labels topic has come."""
        if not 0 < self._partitions <= len(self._come):
            return BEGINNING
        return min(self._come.values())

    @property
    def behind_ms(self) -> int:
        """Milliseconds of Kafka's time for which events have waited for the labels' path; 0 if none wait."""
        return max(0, self._newest_ms - self._waiting[0][1]) if self._waiting else 0

    def _live(self) -> list[_Source]:
        return [source for source in self._sources.values() if self._records - source.heard <= IDLE_AFTER]

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of everything."""
        sources = [[p, s.event_ms, s.received_ms, s.heard] for p, s in sorted(self._sources.items())]
        return {
            "sources": np.array(sources, np.int64).reshape(-1, 4),
            "come": np.array(sorted(self._come.items()), np.int64).reshape(-1, 2),
            "waiting": np.array(list(self._waiting), np.int64).reshape(-1, 2),
            "clocks": np.array([self._partitions, self._records, self._newest_ms, self._opened], np.int64),
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to a snapshot."""
        self._sources = {partition: _Source(*rest) for partition, *rest in arrays["sources"].tolist()}
        self._come = dict(arrays["come"].tolist())
        self._waiting = deque((watermark, ms) for watermark, ms in arrays["waiting"].tolist())
        self._partitions, self._records, self._newest_ms, self._opened = arrays["clocks"].tolist()
