"""Watching the refreshes that a learner sends, and the processor time that a process has used."""

import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kafka import TopicPartition

from infra.errors import UserError
from infra.kafka import make_consumer
from streams.parts import ended

if TYPE_CHECKING:
    from benchmarks._broker import Worker


class Refreshes:
    """The topic of updates, read from its start."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._consumer, self._place = make_consumer(kafka), TopicPartition(topic, 0)

    def __enter__(self) -> Self:
        self._consumer.assign([self._place])
        self._consumer.seek_to_beginning(self._place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def poll(self, timeout_ms: int = 50) -> list[dict[str, Any]]:
        """The metas of new updates, each with the `bytes` of its payload."""
        found = []
        for records in self._consumer.poll(timeout_ms=timeout_ms).values():
            for record in records:
                if (update := ended(record)) is not None:
                    found.append(update[0] | {"bytes": update[1]})
        return found

    def await_event(self, event_ms: int, worker: "Worker", limit_s: float = 900.0) -> int:
        """Wait for an update that learned of an event at `event_ms` or later; the newest event it learned of."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            worker.check()
            reached = [int(meta["event_ms"]) for meta in self.poll() if meta["event_ms"] >= event_ms]
            if reached:
                return reached[-1]
        raise UserError(
            f"{worker.log.stem} did not learn within {limit_s:g} s", "try it on a quieter machine"
        )


def processor_seconds(pid: int) -> float:
    """Processor time that all threads of a process have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
