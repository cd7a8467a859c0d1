"""Rows of several partitions in one order that does not depend on how their records happened to arrive.

An entity that is not the events' key gets its events from every partition of the step before it. Where
`serving.order` is "arrival" they are folded as they come. With "event_time" each partition also says how far in event
time it has come (its watermark), rows wait until all have come to their time, and the features of an event are the same
whatever the number of partitions and workers. A partition without events says that it is idle, and is not waited for.
(Watermarks and idleness as in Akidau et al., "The Dataflow Model", VLDB 2015, and in Flink's sources.)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.rows import Rows
from streams.task import Task
from streams.wire import decode_rows, encode_rows

SOURCE, WATERMARK = "driftline.from", "driftline.watermark"
IDLE = 2**62
"""The watermark of a partition that has nothing to wait for."""

_BEGINNING = -(2**62)
_PIECE = 1024  # rows of a snapshot that wait together: when one may go, all of them are looked at


def told(partition: int, watermark_ms: int) -> list[tuple[str, bytes]]:
    """Headers that say how far partition `partition` of the step before has come."""
    return [(SOURCE, str(partition).encode()), (WATERMARK, str(watermark_ms).encode())]


class Merge:
    """Lets rows go in the order of their time, ties by event id, once every partition has come past it.

    A row's time is its event time, or Kafka's own where that is earlier: an event from the future waits for nobody's
    clock. A row that comes when all others are past its time goes at once, and out of order.

    Args:
        task: for the columns of a row.
        partitions: of the step before; until each has said something, nothing goes.
    """

    def __init__(self, task: Task, partitions: int) -> None:
        self._task = task
        self._come = np.full(partitions, _BEGINNING, np.int64)
        self._waiting: list[tuple[int, Rows]] = []  # the earliest time of the rows, and they
        self._earliest = IDLE  # of all

    @property
    def partitions(self) -> int:
        """Of the step before."""
        return len(self._come)

    @property
    def watermark_ms(self) -> int:
        """How far the merged rows have come; IDLE when no partition has anything."""
        return int(self._come.min())

    def add(self, record: Any, rows: Rows) -> None:
        """Rows of one record, and what its headers tell."""
        self._keep(rows)
        headers = dict(record.headers)
        if WATERMARK in headers:
            self._come[int(headers[SOURCE])] = int(headers[WATERMARK])

    def _keep(self, rows: Rows) -> None:
        if len(rows):
            first = int(_times(rows).min())
            self._waiting.append((first, rows))
            self._earliest = min(self._earliest, first)

    def take(self) -> Rows:
        """The rows whose turn it is; those of a record that has none of these are not looked at."""
        come = self.watermark_ms
        if self._earliest >= come:
            return Rows.empty(self._task)
        rows = Rows.concat([part for first, part in self._waiting if first < come])
        self._waiting = [each for each in self._waiting if each[0] >= come]
        self._earliest = min((first for first, _ in self._waiting), default=IDLE)
        times = _times(rows)
        order = np.lexsort((np.array(rows.ids, np.str_), times))
        ready = times[order] < come
        self._keep(rows.take(order[~ready]))
        return rows.take(order[ready])

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Copies of everything."""
        rows = Rows.concat([rows for _, rows in self._waiting]) if self._waiting else Rows.empty(self._task)
        return {"come": self._come.copy(), "waiting": np.frombuffer(encode_rows(rows), np.uint8)}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to a snapshot of the same task and number of partitions."""
        self._come = arrays["come"].copy()
        rows = decode_rows(arrays["waiting"].tobytes(), self._task.rows_hash)
        self._waiting, self._earliest = [], IDLE
        order = np.argsort(_times(rows), kind="stable")
        for start in range(0, len(order), _PIECE):
            self._keep(rows.take(order[start : start + _PIECE]))


def _times(rows: Rows) -> NDArray[np.int64]:
    return np.minimum(rows.event_ms, rows.received_ms)
