"""Streams of events and labels, and a slow reference that recomputes every feature from the raw events.

The reference follows docs/features.md and shares no code with the kernels, down to the hash of a sketch.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurestore.spec import Feature, View, parse_views
from featurestore.state import EntityState

VIEW = parse_views(
    ["card"],
    {"amount", "tip"},
    [
        {
            "entity": "card",
            "value": "amount",
            "windows": ["8ms", "80ms", "400ms"],
            "aggregates": ["count", "sum", "mean", "min", "max", "std", "ratio", "distinct"],
            "decay": ["16ms", "1s"],
            "last": 3,
        },
        {"entity": "card", "value": "tip", "windows": ["80ms"], "aggregates": ["mean", "std"]},
        {"entity": "card", "value": "tip", "decay": ["1ms"], "last": 1},
        {"entity": "card", "value": "shop", "windows": ["80ms", "160ms"], "aggregates": ["distinct"]},
        {
            "entity": "card",
            "windows": ["16ms", "80ms"],
            "aggregates": ["count"],
            "time_since_last": True,
            "label_rate": ["40ms", "400ms"],
        },
    ],
    ["shop"],
)["card"]
"""Every aggregate there is."""


@dataclass(frozen=True)
class Event:
    """One event of an entity. `shop` is the hash of a category, 0 where it is missing."""

    key: int
    time: int
    amount: float = math.nan
    tip: float = math.nan
    shop: int = 0
    add: bool = True


@dataclass(frozen=True)
class Label:
    """A label that became known at `known` ms."""

    key: int
    known: int
    label: float


Stream = list[Event | Label]


# ---------------------------------------------------------------- the reference


def held(tiles_seen: Sequence[int], tile: int, now: int, tiles: int) -> bool:
    """Does the window at tile `now` hold an event of `tile`, after events of `tiles_seen` were processed?"""
    in_window = now - tiles < tile <= now
    taken = any(seen > tile and (seen - tile) % tiles == 0 for seen in tiles_seen)
    return in_window and not taken


def expected(
    feature: Feature, view: View, past: Sequence[Event], labels: Sequence[Label], row: Event
) -> float:
    """One feature of a row from all that was processed before it."""
    mine = [event for event in past if event.key == row.key and event.add]
    if feature.aggregate == "time_since_last":
        newest = max((event.time for event in mine), default=None)
        return math.nan if newest is None or newest > row.time else (row.time - newest) / 1000
    if feature.aggregate in ("decayed", "last"):
        known = [(e.time, x) for e in mine if math.isfinite(x := getattr(e, feature.value or ""))]
        return (
            decayed(feature, known, row)
            if feature.aggregate == "decayed"
            else last(view, feature, known, row)
        )
    hop = feature.window_ms // view.tiles
    now = row.time // hop
    if feature.aggregate == "label_rate":
        mine_too = [label for label in labels if label.key == row.key]
        seen = [math.ceil(label.known / hop) for label in mine_too]
        xs = [k.label for k, tile in zip(mine_too, seen, strict=True) if held(seen, tile, now, view.tiles)]
        xs = [x for x in xs if math.isfinite(x)]
        return sum(xs) / len(xs) if xs else math.nan
    seen = [event.time // hop for event in mine]
    inside = [e for e, tile in zip(mine, seen, strict=True) if held(seen, tile, now, view.tiles)]
    if feature.category is not None:
        return distinct([event.shop for event in inside if event.shop])
    if feature.value is None:
        return len(inside)
    xs = [x for x in (getattr(event, feature.value) for event in inside) if math.isfinite(x)]
    return aggregate(feature.aggregate, xs, getattr(row, feature.value))


def aggregate(name: str, xs: list[float], own: float) -> float:
    """One aggregate of the values xs; `own` is the value of the row itself."""
    if name == "distinct":
        return distinct([struct.unpack("<Q", struct.pack("<d", x + 0.0))[0] for x in xs])
    if name in ("count", "sum"):
        return len(xs) if name == "count" else sum(xs)
    if not xs:
        return math.nan
    mean = sum(xs) / len(xs)
    if name == "ratio":
        return own / mean if mean and math.isfinite(own) else math.nan
    if name == "std":
        return math.sqrt(sum((x - mean) ** 2 for x in xs) / len(xs))
    return {"mean": mean, "min": min(xs), "max": max(xs)}[name]


def distinct(values: Sequence[int]) -> float:
    """The estimate of a sketch of whole numbers: the sketch as a set of (level, bit)."""
    sizes, shares = [192, 64, 64, 64, 64, 64], [1, 8, 32, 128, 512, 2048]
    marks = {mark(value) for value in values}
    ones = [sum(1 for level, _ in marks if level == this) for this in range(6)]
    base = next((level for level in range(5) if ones[level] <= 0.95 * sizes[level]), 5)
    levels = list(zip(sizes, ones, strict=True))[base:]
    return round(shares[base] * sum(size * math.log(size / max(size - one, 1)) for size, one in levels))


def mark(value: int) -> tuple[int, int]:
    """The level and the bit of a value."""
    mask = 2**64 - 1
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    zeros = 64 - z.bit_length()
    level = 0 if zeros < 3 else min(1 + (zeros - 3) // 2, 5)
    return level, (z % 2**32) * (64 if level else 192) // 2**32


def decayed(feature: Feature, known: Sequence[tuple[int, float]], row: Event) -> float:
    """The decayed mean, with weights as seen from the newest event that the row may see."""
    oldest_row = min(sorted({time for time, _ in known})[-2:], default=math.inf)
    visible = [(time, x) for time, x in known if time <= row.time]
    if row.time < oldest_row:
        return math.nan
    newest = max(time for time, _ in visible)
    weights = [2.0 ** ((time - newest) / feature.window_ms) for time, _ in visible]
    weighted = [weight * x for weight, (_, x) in zip(weights, visible, strict=True)]
    return math.fsum(weighted) / math.fsum(weights)


def last(view: View, feature: Feature, known: Sequence[tuple[int, float]], row: Event) -> float:
    """The value at the feature's place among the newest ones that the row may see."""
    k = max(f.place for f in view.features if f.value == feature.value)
    order = sorted(enumerate(known), key=lambda entry: (entry[1][0], entry[0]), reverse=True)
    visible = [x for _, (time, x) in order[: k + 1] if time <= row.time]
    return visible[feature.place - 1] if len(visible) >= feature.place else math.nan


# ---------------------------------------------------------------- folding


def fold(state: EntityState, events: Sequence[Event]) -> NDArray[np.float32]:
    """The rows of the events, in one batch."""
    return state.update(
        np.array([e.key for e in events], np.int64),
        np.array([e.time for e in events], np.int64),
        {name: np.array([getattr(e, name) for e in events], np.float64) for name in ("amount", "tip")},
        np.array([e.add for e in events], np.bool_),
        {"shop": np.array([e.shop for e in events], np.int64)},
    )


def fold_labels(state: EntityState, labels: Sequence[Label]) -> None:
    """Adds the labels, in one batch."""
    state.add_labels(
        np.array([label.key for label in labels], np.int64),
        np.array([label.known for label in labels], np.int64),
        np.array([label.label for label in labels], np.float64),
    )


def fold_stream(state: EntityState, stream: Sequence[Event | Label]) -> NDArray[np.float32]:
    """The rows of all events; what stands side by side in the stream is one batch."""
    rows = [np.empty((0, len(VIEW.features)), np.float32)]
    for _, run in groupby(stream, key=type):
        items = list(run)
        events = [item for item in items if isinstance(item, Event)]
        if events:
            rows.append(fold(state, events))
        else:
            fold_labels(state, [item for item in items if isinstance(item, Label)])
    return np.concatenate(rows)


def assert_equal_snapshots(a: EntityState, b: EntityState) -> None:
    """The two states are the same to the last bit."""
    one, other = a.snapshot(), b.snapshot()
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


# ---------------------------------------------------------------- streams

# Eighths add up without rounding, so that the reference may add in any order and still agree to the last bit.
AMOUNTS = st.integers(-4000, 4000).map(lambda n: n / 8) | st.sampled_from(
    [math.nan, math.inf, 0.0, -0.0, 0.125]
)
KEYS = st.sampled_from([0, -1, 7, 2**62])
SHOPS = st.sampled_from([0, 0, 1, 2, -1, -(2**63), 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
JUMPS = st.sampled_from([500, -500, 10_000, -10_000, 10**11, -(10**11)])


@st.composite
def streams(draw: st.DrawFn, longest: int = 40) -> Stream:
    """Mostly small steps forward; also equal times, late rows, repetitions, and jumps of the clock."""
    now, stream = draw(st.sampled_from([0, -50, 1_543_000_000_000])), Stream()
    for _ in range(draw(st.integers(1, longest))):
        kind = draw(st.sampled_from(["step", "step", "step", "equal", "late", "ahead", "jump", "again"]))
        if kind == "again" and stream:
            stream.append(draw(st.sampled_from(stream)))
            continue
        if kind in ("step", "jump"):
            now += draw(st.integers(0, 30) if kind == "step" else JUMPS)
        time = now
        if kind == "late":
            time -= draw(st.integers(0, 600))
        elif kind == "ahead":  # one wrong clock, while the others go on
            time += draw(st.sampled_from([50, 700, 10**9]))
        stream.append(draw(items(time)))
    return stream


@st.composite
def items(draw: st.DrawFn, time: int) -> Event | Label:
    """An event, or less often a label, at a time."""
    if not draw(st.integers(0, 3)):
        return Label(draw(KEYS), time, draw(st.sampled_from([0.0, 1.0, 0.5, math.nan])))
    event = Event(draw(KEYS), time, draw(AMOUNTS), shop=draw(SHOPS), add=draw(st.integers(0, 5)) > 0)
    return replace(event, tip=draw(AMOUNTS))
