"""What the learner tells people: alerts, decisions, metrics and feature drift, as JSON on their topics.

The fields are those of docs/schemas.md: times of the stream end in _time, times of the clock in _at.
"""

import logging
from dataclasses import asdict, replace
from typing import Any, Protocol

import msgspec

from infra.blobs import Blobs
from infra.clock import now_ms
from learners.arena import Decision, MetricRow
from learners.drift import Alert
from streams.alerts import keep_evidence
from streams.task import Task
from streams.topics import Topics

log = logging.getLogger(__name__)

_NAMES = {"since_ms": "since_time", "event_ms": "event_time", "created_ms": "created_at"}


class Sender(Protocol):
    """Whatever takes a record for a topic without waiting, such as kafka-python's producer."""

    def send(self, topic: str, value: bytes, key: bytes) -> Any:
        """Sends it some time soon."""


class Announcer:
    """Sends what comes of a step, each kind to its topic. What an alert rests on goes to `store` first."""

    def __init__(self, task: Task, sender: Sender, store: Blobs) -> None:
        self._task, self._topics, self._sender, self._store = task, Topics.of(task), sender, store
        self._encode = msgspec.json.Encoder().encode
        self._psi: dict[str, float] = {}

    def tell(self, event: Alert | Decision | MetricRow, created_ms: int | None = None) -> None:
        """Send one event of the arena. An alert came at `created_ms`, as what was decided for it; else now."""
        if isinstance(event, Alert):
            log.info("alert: %s", event.message)
            evidence = keep_evidence(self._store, self._task.name, event)
            self._send(self._topics.drift_alerts, replace(event, details={}), created_ms, evidence=evidence)
        elif isinstance(event, Decision):
            log.info("%s %s: %s", event.action, event.lineage, event.reason)
            self._send(self._topics.audit, event)
        else:
            self._send(self._topics.metrics, event)

    def tell_feature_drift(self, psi: dict[str, float], event_ms: int) -> None:
        """Send how far each column has moved, whenever a new window was compared."""
        if psi == self._psi:
            return
        self._psi = psi
        times = {"event_time": event_ms, "created_at": now_ms()}
        value = self._encode({"task": self._task.name, **times, "psi": psi})
        self._sender.send(self._topics.feature_drift, value=value, key=self._task.name.encode())

    def _send(
        self, topic: str, event: Alert | Decision | MetricRow, created_ms: int | None = None, **more: str
    ) -> None:
        record = {_NAMES.get(name, name): value for name, value in asdict(event).items() if name != "details"}
        record = {"task": self._task.name, "created_at": created_ms or now_ms()} | record | more
        self._sender.send(topic, value=self._encode(record), key=self._task.name.encode())
