"""Which features an entity has: parsed from the `[[features]]` tables of a task file.

This module only describes; `windows` and `state` compute. It imports nothing heavy: reading a task file must
be quick.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW_AGGREGATES = ("count", "sum", "mean", "min", "max", "std", "ratio", "distinct")
"""Aggregates a user can list. All but `count` need a value; that of `distinct` may be a category."""

TILES = 8
"""Tiles a window is cut into: the window slides in steps of its length / TILES."""

LONGEST_WINDOW_MS = 3660 * 86_400_000

MOST_LAST = 32
"""Longest sequence of last values."""

_RECIPES = {"distinct": 1, "decayed": 1, "last": 1}
# How these are kept and computed: raise the number with a change, and older snapshots and models are refused.

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)")
_KEYS = ("entity", "value", "windows", "aggregates", "time_since_last", "label_rate", "decay", "last")

KeyPath = tuple[str | int, ...]


class SpecError(ValueError):
    """A `[[features]]` table that cannot be used.

    `path` leads to the offending key from the root of the task file, such as ("features", 2, "windows", 0),
    where list positions count from 0. `fix` says what to write instead.
    """

    def __init__(self, message: str, path: KeyPath, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.fix = fix


@dataclass(frozen=True)
class Feature:
    """One column. `value` is the number field that it reads, or `category` the category; mostly one or none.

    For `last`, `value` may be a category too: a number stands for it, which the caller makes.

    `window_ms` is the half-life of a `decayed` mean, and 0 for `time_since_last` and `last`. `place` is 1 for the
    newest of the `last` values, 2 for the one before, and 0 for all other features.
    """

    name: str
    aggregate: str
    value: str | None
    window_ms: int
    category: str | None = None
    place: int = 0

    @property
    def windowed(self) -> bool:
        """Whether the feature is built from the tiles of a window."""
        return self.aggregate in WINDOW_AGGREGATES or self.aggregate == "label_rate"


@dataclass(frozen=True)
class View:
    """All features of one entity, in the order of their columns."""

    entity: str
    features: tuple[Feature, ...]
    tiles: int = TILES

    @property
    def columns(self) -> tuple[str, ...]:
        """Feature names in column order."""
        return tuple(feature.name for feature in self.features)

    @property
    def values(self) -> tuple[str, ...]:
        """The fields the features read as numbers, each once, in the order of first use."""
        return tuple(dict.fromkeys(f.value for f in self.features if f.value is not None))

    @property
    def hashed(self) -> tuple[str, ...]:
        """The categories the features read, each once, in the order of first use; all for `distinct`."""
        return tuple(dict.fromkeys(f.category for f in self.features if f.category is not None))

    @property
    def sketched(self) -> tuple[str, ...]:
        """What `distinct` counts, each once, in the order of first use: some of `values`, all of `hashed`."""
        read = [f.category or f.value for f in self.features if f.aggregate == "distinct"]
        return tuple(dict.fromkeys(name for name in read if name is not None))

    @property
    def needs_labels(self) -> bool:
        """Whether any feature is built from labels, so that the labels must be re-keyed by this entity."""
        return any(feature.aggregate == "label_rate" for feature in self.features)

    @property
    def longest_ms(self) -> int:
        """The longest window: an entity untouched for this long has only empty windows."""
        return max((feature.window_ms for feature in self.features if feature.windowed), default=0)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change whenever the meaning of a row or of the stored state changes."""
        meaning = [
            self.entity,
            self.tiles,
            [_meaning(feature) for feature in self.features],
        ]
        return hashlib.blake2b(json.dumps(meaning).encode(), digest_size=16).hexdigest()


def _meaning(feature: Feature) -> list[str | int | None]:
    meaning = [feature.name, feature.aggregate, feature.value, feature.window_ms]
    if feature.aggregate in _RECIPES:
        meaning += [feature.category, feature.place, _RECIPES[feature.aggregate]]
    return meaning


@dataclass(frozen=True)
class _Known:
    """What a table may name."""

    entities: Sequence[str]
    numbers: Collection[str]
    categories: Collection[str]


def parse_views(
    entities: Sequence[str],
    number_fields: Collection[str],
    raw: Sequence[Mapping[str, Any]],
    category_fields: Collection[str] = (),
) -> dict[str, View]:
    """One View for every entity that has features, in the order of `entities`.

    `raw` is the parsed `[[features]]` list; `category_fields` are the categories that `distinct` may count and `last`
    keep.
    Tables of the same entity are put together, in their order.
    Raises SpecError at the first key that is unknown, of the wrong type or impossible.
    """
    known = _Known(entities, number_fields, category_fields)
    found: dict[str, list[Feature]] = {entity: [] for entity in entities}
    taken: set[str] = set()
    for position, table in enumerate(raw):
        path: KeyPath = ("features", position)
        entity, features = _table(table, path, known)
        for feature in features:
            if feature.name in taken:
                raise SpecError(
                    f"the feature {feature.name} is asked for twice", path, "remove one of the two"
                )
            taken.add(feature.name)
        found[entity] += features
    return {entity: View(entity, tuple(features)) for entity, features in found.items() if features}


def _table(table: Mapping[str, Any], path: KeyPath, known: _Known) -> tuple[str, list[Feature]]:
    if not isinstance(table, Mapping):
        raise SpecError("features must be a list of tables", path, "write [[features]] above its keys")
    for key in table:
        if key not in _KEYS:
            raise SpecError(
                f'unknown key "{key}" in [[features]]', (*path, key), f"known keys: {', '.join(_KEYS)}"
            )
    entity = table.get("entity")
    if not isinstance(entity, str) or entity not in known.entities:
        where: KeyPath = (*path, "entity") if "entity" in table else path
        fix = f"known entities: {', '.join(known.entities) or 'none'}"
        raise SpecError(f"features need the name of an entity, not {entity!r}", where, fix)
    value = _value(table, path, known)
    features = _windowed(table, path, entity, value, known)
    if _flag(table, "time_since_last", path):
        features.append(Feature(f"{entity}_time_since_last", "time_since_last", None, 0))
    for text, at in _list(table, "label_rate", path):
        text, length = _window(text, at)
        features.append(Feature(f"{entity}_label_rate_{text}", "label_rate", None, length))
    features += _recent(table, path, entity, value, known)
    if not features:
        raise SpecError("this table asks for no feature", path, "add windows and aggregates, or label_rate")
    return entity, features


def _windowed(
    table: Mapping[str, Any], path: KeyPath, entity: str, value: str | None, known: _Known
) -> list[Feature]:
    """Every aggregate over every window."""
    windows = [_window(text, at) for text, at in _list(table, "windows", path)]
    aggregates = [_aggregate(name, value, at, known) for name, at in _list(table, "aggregates", path)]
    if bool(windows) != bool(aggregates):
        have, lack = ("windows", "aggregates") if windows else ("aggregates", "windows")
        raise SpecError(f"{have} without {lack}", path, f"add {lack}, for example {_EXAMPLES[lack]}")
    number, category = (None, value) if value in known.categories else (value, None)
    return [
        Feature(
            "_".join(part for part in (entity, value, name, text) if part), name, number, length, category
        )
        for text, length in windows
        for name in aggregates
    ]


def _recent(
    table: Mapping[str, Any], path: KeyPath, entity: str, value: str | None, known: _Known
) -> list[Feature]:
    """Decayed means and last values, which have no window."""
    halves = [_half_life(text, at) for text, at in _list(table, "decay", path)]
    last = table.get("last")
    if last is not None and (type(last) is not int or not 1 <= last <= MOST_LAST):
        fix = "say how many values to keep, for example last = 5"
        raise SpecError(f"last must be a whole number from 1 to {MOST_LAST}", (*path, "last"), fix)
    if halves and value not in known.numbers:
        raise SpecError("decay needs a number field as value", (*path, "decay"), _NUMBER)
    if last and value is None:
        said = "last needs a number field or a category as value"
        raise SpecError(said, (*path, "last"), 'add value = "<a field>"')
    decayed = [Feature(f"{entity}_{value}_decayed_{text}", "decayed", value, ms) for text, ms in halves]
    places = range(1, (last or 0) + 1)
    return decayed + [Feature(f"{entity}_{value}_last_{i}", "last", value, 0, place=i) for i in places]


_NUMBER = 'add value = "<a number field>"'
_EXAMPLES = {"windows": 'windows = ["1d", "7d"]', "aggregates": 'aggregates = ["count", "mean"]'}


def _value(table: Mapping[str, Any], path: KeyPath, known: _Known) -> str | None:
    value = table.get("value")
    if value is None:
        return None
    if isinstance(value, str) and (value in known.numbers or value in known.categories):
        return value
    fix = f"number fields: {', '.join(sorted(known.numbers)) or 'none'}"
    if known.categories:
        fix += f"; for distinct and last also {', '.join(sorted(known.categories))}"
    raise SpecError(f"{value!r} is not a number field of the event", (*path, "value"), fix)


def _aggregate(name: Any, value: str | None, path: KeyPath, known: _Known) -> str:
    if not isinstance(name, str) or name not in WINDOW_AGGREGATES:
        raise SpecError(f"unknown aggregate {name!r}", path, f"known: {', '.join(WINDOW_AGGREGATES)}")
    if value is None and name != "count":
        raise SpecError(f'the aggregate "{name}" needs a value', path, _NUMBER)
    if value in known.categories and name != "distinct":
        said = f'the aggregate "{name}" needs a number field, and {value} is a category'
        raise SpecError(
            said, path, "of a category use distinct or last; count stands in a table without value"
        )
    return name


def _window(text: Any, path: KeyPath) -> tuple[str, int]:
    text, length = _duration(text, path, "a window")
    if length == 0 or length % TILES:
        raise SpecError(
            f'a window of "{text}" cannot be cut into {TILES} equal tiles of whole milliseconds',
            path,
            f'use "{max(TILES, length - length % TILES)}ms" or any whole number of seconds',
        )
    return text, length


def _half_life(text: Any, path: KeyPath) -> tuple[str, int]:
    text, length = _duration(text, path, "a half-life")
    if length == 0:
        raise SpecError(f'a half-life of "{text}" is no time at all', path, 'use "1ms" or longer')
    return text, length


def _duration(text: Any, path: KeyPath, what: str) -> tuple[str, int]:
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise SpecError(
            f"{text!r} is not a duration", path, 'write a number and ms, s, m, h or d, such as "30s" or "7d"'
        )
    length = int(match[1]) * _UNITS_MS[match[2]]
    if length > LONGEST_WINDOW_MS:
        raise SpecError(f'{what} of "{text}" is longer than ten years', path, "use a shorter one")
    return match[0], length


def _flag(table: Mapping[str, Any], key: str, path: KeyPath) -> bool:
    flag = table.get(key, False)
    if not isinstance(flag, bool):
        raise SpecError(f"{key} must be true or false", (*path, key), f"write {key} = true")
    return flag


def _list(table: Mapping[str, Any], key: str, path: KeyPath) -> list[tuple[Any, KeyPath]]:
    entries = table.get(key, [])
    if not isinstance(entries, list):
        raise SpecError(
            f"{key} must be a list", (*path, key), f"write {key} = [{json.dumps(entries, default=str)}]"
        )
    for place, entry in enumerate(entries):
        if entry in entries[:place]:
            raise SpecError(
                f"{entry!r} is listed twice in {key}", (*path, key, place), "remove one of the two"
            )
    return [(entry, (*path, key, place)) for place, entry in enumerate(entries)]
