"""A run's history, read out of the archive.

Everything that grows with the number of events is counted by ClickHouse; only what is drawn comes here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.clickhouse import Archive, literal

METRICS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "ece": "calibration error",
    "rmse": "root mean squared error",
    "mae": "mean absolute error",
    "r2": "share of variance explained",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
}
FROZEN, CONTINUOUS, SERVED, CHAMPION = "frozen", "continuous", "served", "champion"
COMPARED = (FROZEN, CONTINUOUS, CHAMPION, SERVED)
BINS = 120  # of event time and of wall-clock time: as many as a plot can show
LATENCY_BINS = 10  # a decade of milliseconds

Points = list[tuple[int, float]]  # (event time ms, value), in time order


@dataclass(frozen=True)
class Latency:
    """Milliseconds from Kafka's timestamp of the event to a later step."""

    p50: float
    p90: float
    p99: float
    longest: float


@dataclass(frozen=True)
class Lineage:
    """One line of models: what it published and what it served. Times are event times, ms."""

    name: str
    refreshes: int
    whole: int
    newest: int
    bytes: int
    predictions: int
    first_ms: int
    last_ms: int
    mean_score: float


@dataclass(frozen=True)
class Entry:
    """One line of the timeline: an alert or a decision, numbered in the order in which they were made."""

    number: int
    event_ms: int
    row: dict[str, Any]

    @property
    def is_alert(self) -> bool:
        """An alert; otherwise a decision."""
        return "alert_id" in self.row

    @property
    def is_swap(self) -> bool:
        """A decision that changed the model that serves."""
        return self.row.get("action") in ("promote", "rollback")


@dataclass
class History:
    """All that the report shows. Empty parts stay empty: the page says what is missing."""

    task: str
    metric: str
    drift_ms: int | None = None
    curves: dict[str, Points] = field(default_factory=dict)  # arm → the task's metric
    losses: dict[str, Points] = field(default_factory=dict)  # arm → log loss
    window: int = 0  # labelled events that one point of a curve was computed on
    entries: list[Entry] = field(default_factory=list)
    lineages: list[Lineage] = field(default_factory=list)
    serving: list[tuple[int, int, str]] = field(
        default_factory=list
    )  # (from ms, to ms, lineage) of event time
    counts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # dead letters by reason
    scored: Latency | None = None
    archived: Latency | None = None
    histogram: list[tuple[float, float, int]] = field(default_factory=list)  # (from ms, to ms, events)
    rate: list[tuple[float, float, float]] = field(default_factory=list)  # (seconds, received/s, predicted/s)
    psi: list[tuple[int, str, float]] = field(default_factory=list)
    span: tuple[int, int] | None = None  # of event time, ms
    label_delay_ms: int = 0  # median, from an event to when its label was known
    until: dict[str, int] = field(default_factory=dict)  # "alert", "swap" → events from the change to it

    @property
    def alerts(self) -> list[Entry]:
        """The timeline's alerts."""
        return [entry for entry in self.entries if entry.is_alert]

    @property
    def swaps(self) -> list[Entry]:
        """The timeline's changes of the serving model."""
        return [entry for entry in self.entries if entry.is_swap]

    @property
    def changed_ms(self) -> int | None:
        """When the stream changed: as injected, otherwise as the first alert dates it."""
        if self.drift_ms is not None:
            return self.drift_ms
        return min((int(entry.row["since_ms"]) for entry in self.alerts), default=None)

    def first_after_change(self, entries: Sequence[Entry]) -> int | None:
        """Event time of the first of these that came at or after the change."""
        start = self.changed_ms
        return min((e.event_ms for e in entries if start is None or e.event_ms >= start), default=None)


def read_history(
    archive: Archive,
    task: str,
    metric: str,
    drift_ms: int | None,
) -> History:
    """The history of one task."""
    history = History(task, metric, drift_ms)
    where = f"FINAL WHERE task = {literal(task)}"
    _read_curves(archive, history, where)
    _read_entries(archive, history, where)
    _read_counts(archive, history, where)
    if history.counts["archived_predictions"]:
        _read_flow(archive, history, where)
        _read_serving(archive, history, where)
        _read_until(archive, history, where)
    _read_lineages(archive, history, where)
    rows = archive.query(
        f"SELECT event_ms, subject, psi FROM feature_drift {where} ORDER BY event_ms, subject"
    )
    history.psi = [(int(ms), str(column), float(value)) for ms, column, value in rows]
    return history


def _read_curves(archive: Archive, history: History, where: str) -> None:
    rows = archive.query(
        f"SELECT arm, lineage, event_ms, {history.metric}, log_loss, n FROM metrics {where} AND segment = ''"
        " ORDER BY event_ms"
    )
    for arm, lineage, event_ms, value, loss, n in rows:
        name = arm if arm in COMPARED else f"{arm} {lineage}".strip()
        history.window = max(history.window, n)
        if math.isfinite(value):
            history.curves.setdefault(name, []).append((event_ms, value))
        if math.isfinite(loss):
            history.losses.setdefault(name, []).append((event_ms, loss))
    times = [ms for points in history.curves.values() for ms, _ in points]
    if times:
        history.span = (min(times), max(times))


def _read_entries(archive: Archive, history: History, where: str) -> None:
    rows = []
    for table, columns in (
        (
            "alerts",
            "alert_id detector level subject strength threshold since_event_id since_ms event_ms version message"
            " severity features evidence created_ms",
        ),
        ("decisions", "decision_id action lineage champion reason evidence event_ms created_ms"),
    ):
        names = columns.split()
        for values in archive.query(f"SELECT {', '.join(names)} FROM {table} {where}"):
            rows.append(dict(zip(names, values, strict=True)))
    # As they were made: partitions are not equally far, so event times go back and forth a little.
    rows.sort(key=lambda row: (row["created_ms"], row["event_ms"], "decision_id" in row))
    for row in rows:
        if "alert_id" in row:
            row["features"] = _features(row["features"])
        else:
            row["evidence"] = _evidence(row["evidence"])
    history.entries = [Entry(i, row["event_ms"], row) for i, row in enumerate(rows, 1)]


def _evidence(text: str) -> dict[str, Any]:
    try:
        evidence = json.loads(text or "{}")
    except ValueError:
        evidence = text
    return evidence if isinstance(evidence, dict) else {"evidence": evidence}


def _features(text: str) -> list[dict[str, Any]]:
    try:
        features = json.loads(text or "[]")
    except ValueError:
        return []
    return [each for each in features if isinstance(each, dict)] if isinstance(features, list) else []


def _read_counts(archive: Archive, history: History, where: str) -> None:
    ((n, ids, late),) = archive.query(
        f"SELECT count(), uniqExact(event_id), sum(late) FROM predictions {where}"
    )
    ((labels, by_default, delay),) = archive.query(
        "SELECT count(), countIf(source = 'default'), quantileExact(0.5)(known_ms - event_ms)"
        f" FROM labels {where}"
    )
    history.label_delay_ms = delay if labels else 0
    ((versions,),) = archive.query(f"SELECT count() FROM versions {where}")
    history.reasons = dict(
        archive.query(
            f"SELECT reason, count() FROM dead_letters {where} GROUP BY reason ORDER BY count() DESC"
        )
    )
    history.counts = {
        "archived_predictions": n,
        "doubled": n - ids,
        "late": late,
        "labels": labels,
        "labels_by_default": by_default,
        "dead_letters": sum(history.reasons.values()),
        "alerts": len(history.alerts),
        "swaps": len(history.swaps),
        "versions": versions,
    }


def _read_flow(archive: Archive, history: History, where: str) -> None:
    """Latency and rate, in wall-clock time."""
    latencies = []
    for step in ("processed_ms", "archived_ms"):
        wait = f"greatest({step} - received_ms, 0)"
        ((*values,),) = archive.query(
            f"SELECT quantileExact(0.5)({wait}), quantileExact(0.9)({wait}), quantileExact(0.99)({wait}), max({wait})"
            f" FROM predictions {where}"
        )
        latencies.append(Latency(*values))
    history.scored, history.archived = latencies
    bins = archive.query(
        f"SELECT toInt32(floor(log10(greatest(archived_ms - received_ms, 1)) * {LATENCY_BINS})) AS bin, count()"
        f" FROM predictions {where} GROUP BY bin ORDER BY bin"
    )
    history.histogram = [(10 ** (b / LATENCY_BINS), 10 ** ((b + 1) / LATENCY_BINS), n) for b, n in bins]
    ((start, end),) = archive.query(
        f"SELECT min(received_ms), max(greatest(received_ms, processed_ms)) FROM predictions {where}"
    )
    width = max(1000, -(-(end - start + 1) // BINS // 1000) * 1000)  # whole seconds
    flows = []
    for step in ("received_ms", "processed_ms"):
        sql = (
            f"SELECT intDiv({step} - {start}, {width}) AS bin, count() FROM predictions {where} GROUP BY bin"
        )
        flows.append(dict(archive.query(sql)))
    seconds = width / 1000
    for b in range((end - start) // width + 1):
        history.rate.append((b * seconds, flows[0].get(b, 0) / seconds, flows[1].get(b, 0) / seconds))


def _read_serving(archive: Archive, history: History, where: str) -> None:
    """Which lineage made most predictions in each part of the event time."""
    if history.span is None:  # no metrics: the events' own times, without the few that are far out
        (history.span,) = archive.query(
            f"SELECT quantileExact(0.001)(event_ms), quantileExact(0.999)(event_ms) FROM predictions {where}"
        )
    start, end = history.span
    width = (end - start) // BINS + 1
    rows = archive.query(
        f"SELECT intDiv(event_ms - {start}, {width}) AS bin, lineage, count() AS events FROM predictions {where}"
        f" AND event_ms BETWEEN {start} AND {end} GROUP BY bin, lineage ORDER BY bin, events"
    )
    for b, lineage in {b: lineage for b, lineage, _ in rows}.items():  # the last of a bin has most events
        begin, stop = start + b * width, min(start + (b + 1) * width, end)
        if history.serving and history.serving[-1][2] == lineage:
            history.serving[-1] = (history.serving[-1][0], stop, lineage)
        else:
            history.serving.append((begin, stop, lineage))


def _read_until(archive: Archive, history: History, where: str) -> None:
    """How many events it took: event time says little of a stream that runs faster than life."""
    for name, entries in (("alert", history.alerts), ("swap", history.swaps)):
        end = history.first_after_change(entries)
        if end is not None and history.changed_ms is not None:
            between = f"event_ms > {history.changed_ms} AND event_ms <= {end}"
            ((history.until[name],),) = archive.query(
                f"SELECT count() FROM predictions {where} AND {between}"
            )


def _read_lineages(archive: Archive, history: History, where: str) -> None:
    published = archive.query(
        "SELECT lineage, countIf(kind = 'refresh'), countIf(kind != 'refresh'), max(refresh), sum(bytes)"
        f" FROM versions {where} GROUP BY lineage"
    )
    served = archive.query(
        f"SELECT lineage, count(), min(event_ms), max(event_ms), avg(score) FROM predictions {where} GROUP BY lineage"
    )
    left = {name: tuple(row) for name, *row in published}
    right = {name: tuple(row) for name, *row in served}
    names = sorted(left.keys() | right.keys(), key=lambda name: (len(name), name))  # L2 before L10
    none, unserved = (0, 0, 0, 0), (0, 0, 0, math.nan)
    history.lineages = [Lineage(n, *left.get(n, none), *right.get(n, unserved)) for n in names]
