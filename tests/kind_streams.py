"""Small streams whose label is no zero or one, for the tests of other kinds of tasks: rides and how long they take."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streams.feed import Item
from streams.task import Task
from streams.task_parse import parse_task

START_MS = 1_700_000_000_000
STEP_MS, DELAY_MS = 1_000, 60_000

RIDES = """
[task]
name = "rides"
kind = "KIND"
METRIC
[event]
id = "ride"
key = "driver"
time = "at"
time_format = "epoch_ms"
[event.fields]
km = { type = "number", min = 0 }
stops = { type = "number" }
zone = { type = "category" }
[entities]
driver = "driver"
[label]
field = "LABEL"
delay = "1m"
window = "10m"
missing = "drop"
[[features]]
entity = "driver"
value = "km"
windows = ["10m"]
aggregates = ["mean"]
[model]
family = "mlp"
hidden = [16]
rows = 256
batch_size = 64
learning_rate = 0.002
[challenger]
learning_rate = 0.02
"""


def rides(more: str = "", metric: str = "mae") -> Task:
    """The task of rides whose label is the minutes that they take; `more` is put at the end of its file."""
    text = (
        RIDES.replace("KIND", "regression")
        .replace("METRIC", f'metric = "{metric}"')
        .replace("LABEL", "minutes")
    )
    return parse_task(text + more, "rides.toml", Path("/somewhere/rides.toml"))


PACES = ("short", "middle", "long")


def paces(more: str = "", metric: str = "accuracy", missing: str = "drop") -> Task:
    """The task of rides whose label is one of three names; `more` is put at the end of its file."""
    text = RIDES.replace("KIND", "multiclass").replace("LABEL", "pace").replace('"drop"', f'"{missing}"')
    text = text.replace("METRIC", f'metric = "{metric}"\nclasses = ["short", "middle", "long"]')
    return parse_task(text + more, "rides.toml", Path("/somewhere/rides.toml"))


def pace(minutes: float) -> str:
    """The name of a ride of so many minutes."""
    return PACES[int(minutes > 16.0) + int(minutes > 24.0)]


@dataclass(frozen=True)
class Rides:
    """Rides as a source of a backtest: minutes follow from distance, stops and zone, otherwise from `change_at` on."""

    events: int
    seed: int = 1
    change_at: float = 1.0  # share of the stream
    named: bool = False  # whether labels are names and not minutes

    @property
    def total(self) -> int:
        """Events and labels."""
        return 2 * self.events

    @property
    def span_ms(self) -> int:
        """From the first event to the last."""
        return self.events * STEP_MS

    def items(self) -> Iterator[Item]:
        """Events and labels in time order."""
        made: list[Item] = []
        for number, event, minutes in self.rides():
            at, ride = START_MS + number * STEP_MS, f"r-{number}"
            made.append(Item(at, "event", event["driver"], {"ride": ride, "at": at, **event}))
            label = {"ride": ride} | (
                {"pace": pace(minutes)} if self.named else {"minutes": round(minutes, 3)}
            )
            made.append(Item(at + DELAY_MS, "label", event["driver"], label))
        yield from sorted(made, key=lambda item: item.time_ms)

    def rides(self) -> Iterator[tuple[int, dict[str, Any], float]]:
        """Number, fields and minutes of each ride."""
        random = np.random.default_rng(self.seed)
        for number in range(self.events):
            km, stops, zone = (
                float(random.gamma(2, 3)),
                int(random.integers(0, 4)),
                int(random.integers(0, 6)),
            )
            changed = number >= self.change_at * self.events
            slow = (zone + 3) % 6 if changed else zone
            minutes = 4.0 + 6.0 * np.log1p(km) * (1.6 if changed else 1.0) + 3.0 * stops + 2.5 * slow
            event = {"km": round(km, 3), "stops": stops, "zone": f"z{zone}", "driver": f"d{number % 40}"}
            yield number, event, float(minutes + random.normal(0, 2.0))


def as_bytes(item: Item) -> bytes:
    """The record's value."""
    return item.value if isinstance(item.value, bytes) else json.dumps(item.value).encode()
