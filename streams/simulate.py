"""Streams made up from a seed: `simulate` gives the events and labels of a built-in task, with drift on a
schedule.

Transactions follow the Fraud Detection Handbook (simulate_transactions.py). Clicks are drawn from
probabilities that only the generator knows (simulate_clicks.py), so that regret can be computed. Equal
arguments give equal streams.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import UserError
from streams.feed import Item

CONCEPT_KINDS = ("sudden", "gradual", "recurring")
KINDS = (*CONCEPT_KINDS, "pattern", "unit")
START_MS = 1_704_067_200_000  # 2024-01-01, a Monday
_MIX = 0.2  # how long a gradual change takes when no end is given, as a share of the stream
_CHUNK = 8192


@dataclass(frozen=True)
class Change:
    """One drift: it begins at the fraction `at` of the stream's time and may end at `until`.

    sudden     the concept changes at once (and changes back at `until`)
    gradual    each event follows the new concept with a probability that rises from 0 at `at` to 1 at `until`
    recurring  the new and the old concept take turns, from `at` up to `until`
    pattern    something new appears: a kind of fraud, or a group of items
    unit       the unit of a number field changes upstream; what is true does not change
    """

    kind: str
    at: float
    until: float | None = None

    def active(self, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability float64 [n] that an event at `fraction` [n] of the stream is under this change."""
        end = np.inf if self.until is None else self.until
        if self.kind == "gradual":
            end = min(1.0, self.at + _MIX) if self.until is None else self.until
            return np.clip((fraction - self.at) / (end - self.at), 0.0, 1.0)
        inside = (fraction >= self.at) & (fraction < end)
        if self.kind == "recurring":
            phase = min(self.at, (1.0 - self.at) / 3)  # short enough for new, old and new again
            inside &= np.floor((fraction - self.at) / phase) % 2 == 0
        return inside.astype(np.float64)

    def __str__(self) -> str:
        return f"{self.kind}@{self.at:g}" + ("" if self.until is None else f":{self.until:g}")


def parse_change(text: str) -> Change:
    """The change that "kind@fraction" or "kind@fraction:until" says, such as "gradual@0.4:0.6". Raises
    UserError.
    """
    kind, _, place = text.partition("@")
    try:
        numbers = [float(part) for part in place.split(":")]
    except ValueError:
        numbers = []
    increasing = all(a < b for a, b in zip([0.0, *numbers], [*numbers, 1.0 + 1e-9], strict=True))
    if kind not in KINDS or len(numbers) not in (1, 2) or not increasing or numbers[0] >= 1.0:
        raise UserError(
            f"{text!r} is no drift",
            f'write KIND@FRACTION or KIND@FRACTION:UNTIL, such as "sudden@0.5", with fractions of the stream '
            f"between 0 and 1; kinds are {', '.join(KINDS)}",
        )
    return Change(kind, *numbers)


def concepts(
    changes: Sequence[Change], fraction: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Number int64 [n] of the concept that each event follows: 0 is the first; the i-th change (from 1)
    brings i.

    Of several concept changes that are active the later in the list counts.
    """
    found = np.zeros(len(fraction), np.int64)
    for number, change in enumerate((c for c in changes if c.kind in CONCEPT_KINDS), start=1):
        found[rng.random(len(fraction)) < change.active(fraction)] = number
    return found


def under(changes: Sequence[Change], kind: str, fraction: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which events bool [n] are under any change of `kind` (one that starts at once: "pattern" or "unit")."""
    active = [change.active(fraction) > 0 for change in changes if change.kind == kind]
    return np.any(active, axis=0) if active else np.zeros(len(fraction), np.bool_)


@dataclass(frozen=True)
class Stream:
    """What a generator makes: n events in time order and m labels, as columns.

    times_ms int64 [n]; columns: field → values [n] (numbers or str); key: the column that keys a record;
    labelled int64 [m]: the event that each label is for; known_ms int64 [m], not sorted; labels int64 [m] of
    0 and 1; truth float64 [n]: each event's true probability of a 1. `schedule_ms` is the event time from the start
    that fraction 1 of the schedule of changes stands for.
    """

    id_field: str
    id_prefix: str
    time_field: str
    label_field: str
    key: str
    times_ms: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    labelled: NDArray[np.int64]
    known_ms: NDArray[np.int64]
    labels: NDArray[np.int64]
    truth: NDArray[np.float64]
    schedule_ms: int

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Event ids of `rows`."""
        return [f"{self.id_prefix}-{row}" for row in rows.tolist()]


@dataclass(frozen=True)
class Simulation:
    """A stream ready to be fed: `items()` may be called again and gives the same every time."""

    name: str
    seed: int
    changes: tuple[Change, ...]
    start_ms: int
    stream: Stream

    @property
    def events(self) -> int:
        """How many events there are."""
        return len(self.stream.times_ms)

    @property
    def total(self) -> int:
        """How many items there are: events and labels."""
        return self.events + len(self.stream.known_ms)

    @property
    def span_ms(self) -> int:
        """Event time from the start to the last event, in milliseconds."""
        return int(self.stream.times_ms[-1]) - self.start_ms

    def onset_ms(self, change: Change) -> int:
        """Event time at which `change` begins."""
        return self.start_ms + round(self.stream.schedule_ms * change.at)

    @property
    def identity(self) -> str:
        """Text that differs between streams that differ; `feed` keeps it beside a position."""
        drift = ",".join(map(str, self.changes))
        return (
            f"simulate {self.name} seed={self.seed} events={self.events} start={self.start_ms} drift={drift}"
        )

    def truth(self) -> NDArray[np.float64]:
        """True probability of a positive label, float64 [events]; entry n belongs to the event whose id ends
        in n.
        """
        return self.stream.truth

    def items(self) -> Iterator[Item]:
        """Events, and labels when they become known, merged in time order."""
        stream = self.stream
        order = np.argsort(np.concatenate([stream.times_ms, stream.known_ms]), kind="stable")
        for start in range(0, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            is_label = chunk >= self.events
            events = iter(self._events(chunk[~is_label]))
            labels = iter(self._labels(chunk[is_label] - self.events))
            for label in is_label.tolist():
                yield next(labels if label else events)

    def _events(self, rows: NDArray[np.int64]) -> list[Item]:
        stream = self.stream
        times = stream.times_ms[rows]
        stamps = [f"{text}Z" for text in np.datetime_as_string(times.astype("datetime64[ms]")).tolist()]
        names = (stream.id_field, stream.time_field, *stream.columns)
        columns = [column[rows].tolist() for column in stream.columns.values()]
        values = zip(stream.ids(rows), stamps, *columns, strict=True)
        keys = map(str, stream.columns[stream.key][rows].tolist())
        return [
            Item(time_ms, "event", key, dict(zip(names, value, strict=True)))
            for time_ms, key, value in zip(times.tolist(), keys, values, strict=True)
        ]

    def _labels(self, numbers: NDArray[np.int64]) -> list[Item]:
        stream = self.stream
        rows = stream.labelled[numbers]
        keys = map(str, stream.columns[stream.key][rows].tolist())
        known, labels = stream.known_ms[numbers].tolist(), stream.labels[numbers].tolist()
        return [
            Item(time_ms, "label", key, {stream.id_field: event_id, stream.label_field: label})
            for time_ms, key, event_id, label in zip(known, keys, stream.ids(rows), labels, strict=True)
        ]


def simulate(
    name: str, *, seed: int, events: int, changes: Sequence[Change] = (), start_ms: int = START_MS
) -> Simulation:
    """The stream of the built-in task `name` ("transactions" or "clicks") with `events` events.

    Transactions span about 90 days (fewer below some 9,000 events), clicks 24 hours; `start_ms` is when the
    span begins. Events number from 0 in time order: ids are "tx-<seed>-<n>" and "imp-<seed>-<n>". Raises
    UserError.
    """
    from streams import simulate_clicks, simulate_transactions  # they build on the classes above

    generators: dict[str, Callable[[int, int, Sequence[Change], int], Stream]] = {
        "clicks": simulate_clicks.generate,
        "transactions": simulate_transactions.generate,
    }
    if name not in generators:
        raise UserError(
            f"there is no simulator for {name!r}",
            f"simulators are {', '.join(generators)}; replay a file instead",
        )
    if events < 1 or seed < 0:
        raise UserError(
            f"{events} events with seed {seed} cannot be made", "give at least one event and a seed from 0 up"
        )
    return Simulation(name, seed, tuple(changes), start_ms, generators[name](seed, events, changes, start_ms))
