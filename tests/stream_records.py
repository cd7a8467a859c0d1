"""Kafka records as the consumers hand them out, and a small task, for the tests of streams/."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streams import wire
from streams.gate import label_mark
from streams.privacy import Pseudonymiser
from streams.task import Task
from streams.task_parse import parse_task

NOW_MS = 1_700_000_000_000
MINUTE = 60_000
HOUR = 60 * MINUTE
HIDDEN = Pseudonymiser(b"k" * 32)

TRIPS = """
[task]
name = "trips"
calendar = true
[event]
id = "trip"
key = "driver"
time = "at"
time_format = "epoch_ms"
[event.fields]
fare = { type = "number", min = -1000, max = 1000 }
tip = { type = "number", required = false, model = false }
city = { type = "category", required = false, max_length = 8 }
[entities]
driver = "driver"
zone = "zone"
[label]
field = "bad"
delay = "1m"
window = "10m"
missing = 0
[[features]]
entity = "driver"
value = "fare"
windows = ["8m"]
aggregates = ["count", "mean"]
label_rate = ["8m"]
[[features]]
entity = "zone"
value = "tip"
windows = ["16m"]
aggregates = ["sum"]
time_since_last = true
[serving]
allowed_lateness = "5m"
max_future = "1h"
dedup = "20m"
"""


def task(more: str = "", **changes: str) -> Task:
    """The small task with the lines of some keys replaced, or added under [serving]; `more` is put at its end."""
    text = TRIPS
    for key, value in changes.items():
        old = next((line for line in text.splitlines() if line.startswith(f"{key} = ")), None)
        text = text.replace(old, f"{key} = {value}") if old else text + f"{key} = {value}\n"
    return parse_task(text + more, "trips.toml", Path("/somewhere/trips.toml"))


@dataclass(frozen=True)
class Record:
    """What the steps read of a Kafka record."""

    value: bytes | None
    offset: int = 0
    timestamp: int = NOW_MS
    partition: int = 0
    topic: str = "trips.events"
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def event(**changes: Any) -> dict[str, Any]:
    """A good event of the small task; a key given as None is left out."""
    fields = {"trip": "t-1", "at": NOW_MS, "fare": 7.5, "tip": 1, "city": "Ulm", "driver": "Anna", "zone": 4}
    return {name: value for name, value in (fields | changes).items() if value is not None}


def sent(fields: dict[str, Any], **place: Any) -> Record:
    """The record of an event or a label."""
    return Record(json.dumps(fields).encode(), **place)


def labels(
    ids: list[str],
    values: list[float],
    known_ms: list[int] | None = None,
    mark: tuple[int, int, int] | None = None,
    **place: Any,
) -> Record:
    """A record of labels in the examples topic, and a `label_mark` (partition, of how many, come to)."""
    known, count = np.array(known_ms or [-1] * len(ids), np.int64), len(ids)
    made = wire.Labels(
        ids, np.array(values, np.float32), known, np.full(count, 3, np.int32), np.arange(count) + 70
    )
    headers = ((wire.KIND, wire.LABELS), *(label_mark(*mark) if mark else ()))
    return Record(wire.encode_labels(made), topic="trips.examples", headers=headers, **place)
