"""What a process counts of itself, and the one list of names it may use. `infra.exporter` shows it to Prometheus."""

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

SERVE, JOIN, LEARN, ARCHIVE = ({role} for role in ("serve", "join", "learn", "archive"))
ALL = SERVE | JOIN | LEARN | ARCHIVE


class Known(NamedTuple):
    """What a name means.

    `roles` are those that use it. Where it has several values, `label` says what tells them apart: one of `of`, or
    anything where that is empty.
    """

    roles: set[str]
    help: str
    label: str = ""
    of: tuple[str, ...] = ()


_REASONS = (
    "null", "too_large", "malformed", "invalid", "invalid_time", "future", "late", "damaged", "orphan", "contradiction",
)  # fmt: skip
_CHECKS = ("meta", "schema", "bytes", "signature", "format", "weights", "golden", "latency")
_LEVELS = ("loss", "input", "score", "step")
_ACTIONS = (
    "freeze", "start", "canary", "promote", "recommend", "reject", "expire", "retire", "confirm", "rollback", "refuse",
    "straggle", "decline", "tune",
)  # fmt: skip

# A counter ends in _total and only grows; the others are the latest value. What has _ms in its name is in milliseconds.
NAMES: Mapping[str, Known] = {
    "lag_records": Known(
        ALL,
        "records of a topic that this worker has still to process, the marks of transactions included",
        "topic",
    ),
    "snapshots_total": Known(
        SERVE | JOIN | LEARN, "snapshots of state, and checkpoints of the learner, that were stored"
    ),
    "snapshots_failed_total": Known(
        SERVE | JOIN | LEARN, "snapshots and checkpoints that could not be stored"
    ),
    "events_total": Known(SERVE, "events read from the events topic, good and bad"),
    "predictions_total": Known(SERVE, "predictions committed to the predictions topic"),
    "prediction_latency_ms": Known(
        SERVE, "time from Kafka's timestamp of an event to the commit of its prediction"
    ),
    "dead_letters_total": Known(SERVE | JOIN, "records sent to the dead-letters topic", "reason", _REASONS),
    "duplicates_total": Known(SERVE, "events dropped because their id was seen already"),
    "late_total": Known(SERVE, "events older than the watermark"),
    "transactions_total": Known(SERVE, "Kafka transactions committed"),
    "batch_events": Known(SERVE, "events in the latest batch of one step"),
    "online_rows_total": Known(SERVE, "feature rows written to Feast's online store"),
    "online_failed_total": Known(SERVE, "failed writes to Feast's online store"),
    "online_staleness_ms": Known(
        SERVE, "how long the oldest row of the latest write to the online store had waited for it"
    ),
    "online_waiting_ms": Known(
        SERVE, "how long the oldest row that is not in the online store yet has waited for it"
    ),
    "model_age_ms": Known(SERVE, "time since the version that serves now was made"),
    "model_learned_age_ms": Known(
        SERVE, "time from the newest event that the latest model update had learned of to its first use"
    ),
    "update_latency_ms": Known(SERVE, "time from the making of a model update to its first use"),
    "rejected_updates_total": Known(SERVE, "model updates that failed verification", "check", _CHECKS),
    "refreshes_total": Known(
        SERVE | LEARN, "refreshes of the live lineage that were applied (serve) or sent (learn)"
    ),
    "swaps_total": Known(SERVE | LEARN, "whole models that were applied (serve) or sent (learn)"),
    "labels_total": Known(JOIN, "labels read"),
    "examples_total": Known(JOIN, "labelled rows sent to the learner"),
    "joined_total": Known(JOIN, "examples that were joined with a label in time"),
    "defaulted_total": Known(JOIN, "examples that were given the value for a missing label"),
    "unlabelled_total": Known(JOIN, "examples without a label in time, in a task that drops them"),
    "corrected_total": Known(JOIN, "late labels that corrected the value for a missing one"),
    "late_labels_total": Known(JOIN, "late labels that changed nothing"),
    "duplicate_labels_total": Known(JOIN, "further labels of an event that say what the first one says"),
    "contradicting_labels_total": Known(
        JOIN, "further labels of an event that say something else; they are set aside"
    ),
    "orphan_labels_total": Known(JOIN, "labels without an event; they are set aside"),
    "labels_behind_ms": Known(
        JOIN, "how long windows of one partition have been held open for labels on their way"
    ),
    "remembered": Known(JOIN, "event ids that one partition of the join remembers, waiting or decided"),
    "spilled": Known(JOIN, "those of them that are on disk"),
    "trained_total": Known(LEARN, "examples trained on, those that are repeated after a crash too"),
    "champion_work_ms_total": Known(LEARN, "time of the champion's work, as learners/work.py estimates it"),
    "beside_work_ms_total": Known(
        LEARN, "the same by models beside it: challengers, the tuned population, replaced champions"
    ),
    "tuning_work_ms_total": Known(LEARN, "that of the tuned population"),
    "arena_budget": Known(
        LEARN, "share of all that work which models beside the champion may take in the long run"
    ),
    "passed_over_total": Known(
        LEARN, "examples that challengers did not score and learn since the budget had no credit"
    ),
    "damaged_total": Known(
        LEARN, "labelled records that could not be read, or were made for another version of the task file"
    ),
    "alerts_total": Known(LEARN, "drift alerts", "level", _LEVELS),
    "decisions_total": Known(LEARN, "decisions about models, as docs/schemas.md says", "action", _ACTIONS),
    "archived_rows_total": Known(ARCHIVE, "rows inserted into the archive", "table"),
    "not_archived_total": Known(
        ARCHIVE, "records that are not in the archive since they could not be read, or do not fit"
    ),
}

# Names whose values are counted by size: each bucket has those at or below its bound and above the one before.
BUCKETS: Mapping[str, tuple[int, ...]] = dict.fromkeys(
    ("prediction_latency_ms", "update_latency_ms"),
    (5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 60_000),
)


class Sample(NamedTuple):
    """A value of a name; `of` is that of its label, "" where it has none."""

    name: str
    of: str
    value: float

    def __str__(self) -> str:
        return f"{self.name}{{{self.of}}}" if self.of else self.name


class Histogram(NamedTuple):
    """How many values fell into each of the buckets of `name`, and above them all; their sum."""

    name: str
    counts: tuple[int, ...]
    sum: float


class Metrics:
    """Numbers by name, in memory; one object a process, passed to whoever counts, in any thread.

    Names that the lists above do not have, or not so, are errors.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: dict[tuple[str, str], float] = {}
        self._buckets: dict[str, tuple[np.ndarray[Any, Any], float]] = {}
        self._probes: dict[str, Callable[[], float | Mapping[str, float]]] = {}

    def count(self, name: str, by: float = 1, of: str = "") -> None:
        """Add to a counter."""
        if not name.endswith("_total"):
            raise ValueError(f"{name} is no counter")
        key = _known(name, of)
        with self._lock:
            self._values[key] = self._values.get(key, 0) + by

    def note(self, name: str, value: float, of: str = "") -> None:
        """Keep the latest value."""
        if name.endswith("_total") or name in BUCKETS:
            raise ValueError(f"{name} is a {'histogram' if name in BUCKETS else 'counter'}")
        key = _known(name, of)
        with self._lock:
            self._values[key] = value

    def observe(self, name: str, values: Any) -> None:
        """Add numbers, one or an array of them, to a histogram; what is below 0 counts as 0."""
        if name not in BUCKETS:
            raise ValueError(f"{name} is no histogram")
        values = np.maximum(np.atleast_1d(values), 0)
        if not len(values):
            return
        bounds = BUCKETS[name]
        counts = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)
        with self._lock:
            before, total = self._buckets.get(name, (0, 0.0))
            self._buckets[name] = (before + counts, total + float(values.sum()))

    def probe(self, name: str, read: Callable[[], float | Mapping[str, float]]) -> None:
        """Ask for a value, or for those by label, whenever somebody looks: in any thread, and it must not raise."""
        if name.endswith("_total") or name in BUCKETS or name not in NAMES:
            raise ValueError(f"{name} cannot be asked for")
        self._probes[name] = read

    def samples(self) -> list[Sample]:
        """What was counted and noted so far, in the order of NAMES."""
        with self._lock:
            values = dict(self._values)
        for name, read in self._probes.items():
            found = read()
            of = found if isinstance(found, Mapping) else {"": found}
            values |= {(name, label): value for label, value in of.items()}
        order = {name: place for place, name in enumerate(NAMES)}
        return [Sample(*key, values[key]) for key in sorted(values, key=lambda key: (order[key[0]], key[1]))]

    def histograms(self) -> list[Histogram]:
        """What was observed so far, in the order of BUCKETS."""
        with self._lock:
            found = dict(self._buckets)
        return [
            Histogram(name, tuple(found[name][0].tolist()), found[name][1])
            for name in BUCKETS
            if name in found
        ]

    def snapshot(self) -> dict[str, float]:
        """All samples by name, with the label in braces where there is one: "dead_letters_total{malformed}"."""
        return {str(sample): sample.value for sample in self.samples()}


def _known(name: str, of: str) -> tuple[str, str]:
    if name not in NAMES:
        raise ValueError(f"{name} is not in infra.metrics.NAMES")
    if bool(of) != bool(label := NAMES[name].label):
        raise ValueError(f"{name} has {f'the label {label}' if label else 'no label'}")
    return name, of
