"""Follows a task's out-facing topics and keeps what a person wants to see: for the demo's view and its verdict."""

import json
import time
from collections import deque
from typing import Any

from kafka import TopicPartition

from infra.kafka import make_consumer, partitions
from infra.settings import Settings
from streams.parts import ended
from streams.task import Task
from streams.topics import Topics

_RATE_OVER_S = 5.0
_CAUGHT_UP_S = 0.5  # silence of the topics after which nothing old is left in them


class Watch:
    """Reads predictions, dead letters, alerts, decisions, metrics and model updates, as any consumer could.

    `predicted` holds every event id that has a prediction; `doubled` counts predictions beyond the first of an id.
    `earlier` are the predictions and the dead letters that were there before `catch_up` returned: another run's.
    """

    def __init__(self, task: Task, settings: Settings) -> None:
        self._topics = Topics.of(task)
        self.predicted: set[str] = set()
        self.doubled = 0
        self.dead_letters = 0
        self.earlier = (0, 0)
        self.alerts: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []  # both, in the order they came
        self.metrics: dict[str, list[dict[str, Any]]] = {}
        self.version = "—"
        self.refreshes = 0
        self.latency_ms: deque[int] = deque(maxlen=2000)
        self._arrivals: deque[tuple[float, int]] = deque()
        t = self._topics
        self._handlers = {
            t.predictions: self._prediction,
            t.dead_letters: self._dead_letter,
            t.drift_alerts: lambda r: self._note(r, self.alerts),
            t.audit: lambda r: self._note(r, self.decisions),
            t.metrics: self._metric,
            t.model_updates: self._update,
        }
        self._consumer = make_consumer(settings.kafka, max_poll_records=10_000)
        places = [TopicPartition(n, p) for n in self._handlers for p in range(partitions(settings.kafka, n))]
        self._consumer.assign(places)
        self._consumer.seek_to_beginning(*places)

    def poll(self, timeout_s: float) -> int:
        """Take what has arrived, waiting at most `timeout_s` for the first; how many records."""
        n = 0
        for place, records in self._consumer.poll(timeout_ms=int(timeout_s * 1000)).items():
            for record in records:
                self._handlers[place.topic](record)
            n += len(records)
        return n

    def catch_up(self) -> None:
        """Take everything that earlier runs have left in the topics."""
        while self.poll(_CAUGHT_UP_S):
            pass
        self.earlier = (len(self.predicted), self.dead_letters)

    @property
    def answered(self) -> int:
        """Predictions and dead letters since `catch_up`."""
        return len(self.predicted) + self.dead_letters - sum(self.earlier)

    def close(self) -> None:
        """Let go of Kafka."""
        self._consumer.close()

    def rate(self) -> float:
        """Predictions a second over the last five seconds."""
        now = time.monotonic()
        while self._arrivals and self._arrivals[0][0] < now - _RATE_OVER_S:
            self._arrivals.popleft()
        return sum(n for _, n in self._arrivals) / _RATE_OVER_S

    def latency(self) -> tuple[int, int]:
        """Median and 99th percentile of milliseconds from the event's Kafka timestamp to us reading its prediction."""
        if not self.latency_ms:
            return 0, 0
        ordered = sorted(self.latency_ms)
        return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]

    def latest(self, arm: str) -> dict[str, Any] | None:
        """The newest metrics of an arm."""
        rows = self.metrics.get(arm)
        return rows[-1] if rows else None

    def mean(self, arm: str, metric: str, after_ms: int) -> float | None:
        """Mean of an arm's rolling metric over the evaluations after `after_ms` of event time."""
        values = [
            r[metric]
            for r in self.metrics.get(arm, ())
            if r["event_time"] > after_ms and r[metric] is not None
        ]
        return sum(values) / len(values) if values else None

    @property
    def swaps(self) -> list[dict[str, Any]]:
        """The promotions so far."""
        return [d for d in self.decisions if d["action"] == "promote"]

    def _prediction(self, record: Any) -> None:
        prediction = json.loads(record.value)
        event_id = prediction["event_id"]
        if event_id in self.predicted:
            self.doubled += 1
        self.predicted.add(event_id)
        self._arrivals.append((time.monotonic(), 1))
        self.latency_ms.append(int(time.time() * 1000) - prediction["received_at"])

    def _dead_letter(self, _: Any) -> None:
        self.dead_letters += 1

    def _note(self, record: Any, kept: list[dict[str, Any]]) -> None:
        note = json.loads(record.value)
        kept.append(note)
        self.notes.append(note)

    def _metric(self, record: Any) -> None:
        row = json.loads(record.value)
        if not row["segment"]:
            self.metrics.setdefault(row["arm"], []).append(row)

    def _update(self, record: Any) -> None:
        if (update := ended(record)) is not None:
            meta, _ = update
            self.version = self.version if "canary" in meta else meta["version"]
            self.refreshes += 1
