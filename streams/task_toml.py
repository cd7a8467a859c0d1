"""Typed getters for the tables of a TOML file, so that every complaint names the file, the line and the fix.

Each getter says what it expected, what it got and what to write instead.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from infra.errors import UserError
from streams.toml_lines import KeyPath, key_lines

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
LONGEST_MS = 3650 * UNITS_MS["d"]
LARGEST_FILE = 1 << 20
_DURATION = re.compile(r"(\d{1,12})(ms|s|m|h|d)")


def duration_ms(text: str) -> int | None:
    """Milliseconds of a duration such as "500ms", "30s", "10m", "24h" or "7d"; None if it is not one."""
    found = _DURATION.fullmatch(text)
    return int(found[1]) * UNITS_MS[found[2]] if found else None


@dataclass(frozen=True)
class Source:
    """What messages call the file, and the line of each of its keys (none for data without text)."""

    name: str
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest thing above it that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def fail(self, path: KeyPath, message: str, fix: str) -> NoReturn:
        """Raise the UserError that points at `path`."""
        raise UserError(f"{self.name}:{self.line(path)}: {message}", fix)


def parse_text(text: str, name: str) -> tuple[dict[str, Any], Source]:
    """TOML text as a dict and its Source. Raises UserError on a syntax error, with its line."""
    try:
        data = tomllib.loads(text)
        return data, Source(name, key_lines(text))
    except tomllib.TOMLDecodeError as error:
        said = str(error)
        found = re.search(r" \(at line (\d+), column (\d+)\)$", said)
        line = int(found[1]) if found else text.count("\n") + 1
        said = said[: found.start()] if found else said.removesuffix(" (at end of document)")
        fix = "write it as TOML: name = value, text in double quotes, [table] headers on a line of their own"
        raise UserError(f"{name}:{line}: this is not valid TOML: {said}", fix) from None
    except RecursionError:
        raise UserError(
            f"{name}:1: the values are nested too deeply", "a task file has at most three levels"
        ) from None


def nearest(word: str, known: Collection[str]) -> str:
    """`did you mean "x"? ` for the known word closest to `word`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"? ' if close else ""


def listed(words: Collection[str]) -> str:
    """The words as a sentence names them."""
    return ", ".join(words)


def shown(value: Any) -> str:
    """A value as a short piece of TOML for a message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else "a table" if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Table:
    """One table of a task file. A getter returns a key's value, its default when absent, or raises UserError.

    With `known` given, any other key is an error that suggests the nearest known one.
    """

    def __init__(
        self, source: Source, path: KeyPath, data: Mapping[str, Any], known: Collection[str] | None = None
    ):
        self.source, self.path, self.data = source, path, data
        if known is None:
            return
        for key in data:
            if key not in known:
                self.fail(
                    key,
                    f"unknown key {self.name(key)}",
                    f"{nearest(key, known)}keys here are {listed(known)}",
                )

    def name(self, key: str | None = None) -> str:
        """The dotted name of a key, as a person would say it: no index of the array it is in."""
        return ".".join(str(part) for part in (*self.path, *([key] if key else [])) if isinstance(part, str))

    def fail(self, key: str | None, message: str, fix: str) -> NoReturn:
        """Raise the UserError that points at `key` of this table, or at the table itself."""
        self.source.fail((*self.path, key) if key else self.path, message, fix)

    def _wrong(self, key: str, expected: str, example: str) -> NoReturn:
        got = shown(self.data[key])
        self.fail(key, f"{self.name(key)} must be {expected}, not {got}", f"for example {key} = {example}")

    def _get(self, key: str, default: Any, example: str) -> Any:
        if key in self.data:
            return self.data[key]
        if default is REQUIRED:
            self.fail(
                None,
                f"{self.name(key)} is missing",
                f"add a line such as {key} = {example} under [{self.name()}]",
            )
        return default

    def text(self, key: str, example: str, default: Any = None, pattern: str = "", rule: str = "") -> Any:
        """Text that is not empty; `pattern` must match all of it, `rule` says that pattern in words."""
        value = self._get(key, default, example)
        if key in self.data:
            if not isinstance(value, str) or not value:
                self._wrong(key, "text", example)
            if pattern and not re.fullmatch(pattern, value):
                self._wrong(key, rule, example)
        return value

    def choice(self, key: str, options: Sequence[str], default: Any) -> str:
        """One of a few words."""
        value = self._get(key, default, f'"{options[0]}"')
        if value not in options or not isinstance(value, str):
            hint = nearest(value, options) if isinstance(value, str) else ""
            self.fail(key, f"{self.name(key)} is {shown(value)}", f"{hint}use one of {listed(options)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false; no number and no word will do."""
        value = self._get(key, default, "true")
        if not isinstance(value, bool):
            self._wrong(key, "true or false", "true")
        return value

    def number(
        self, key: str, default: Any, low: float = -math.inf, high: float = math.inf, example: str = "0.5"
    ) -> Any:
        """A finite number from `low` to `high`, both included, as a float."""
        value = self._get(key, default, example)
        if key not in self.data:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong(key, "a number", example)
        if abs(value) > 1e300 or math.isnan(value):
            self._wrong(key, "a finite number", example)
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            self._wrong(key, bounds, example)
        return float(value)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        value = self._get(key, default, str(default))
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, "a whole number", str(default))
        if not low <= value <= high:
            self._wrong(key, f"from {low} to {high}", str(default))
        return value

    def duration(self, key: str, default: str, low: str = "0s", required: bool = False) -> int:
        """Milliseconds of a duration, `low` to ten years. A required one has `default` as its example."""
        value = self._get(key, REQUIRED if required else default, f'"{default}"')
        ms = duration_ms(value) if isinstance(value, str) else None
        if ms is None:
            self._wrong(key, 'a duration such as "500ms", "30s", "10m", "24h" or "7d"', f'"{default}"')
        if not (duration_ms(low) or 0) <= ms <= LONGEST_MS:
            self._wrong(key, f"from {low} to 3650d", f'"{default}"')
        return ms

    def strings(self, key: str, default: Sequence[str], example: str) -> tuple[str, ...]:
        """A list of texts, none of them empty."""
        value = self._get(key, default, example)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            self._wrong(key, "a list of texts", example)
        return tuple(value)

    def table(self, key: str, known: Collection[str] | None = None, required: str = "") -> "Table":
        """The table `key`; an absent one is empty, unless `required` holds an example of it."""
        if required and key not in self.data:
            self.fail(None, f"the table [{self.name(key)}] is missing", f"add it, for example: {required}")
        value = self.data.get(key, {})
        if not isinstance(value, dict):
            self.fail(
                key,
                f"{self.name(key)} must be a table, not {shown(value)}",
                f"write [{self.name(key)}] on its own line",
            )
        return Table(self.source, (*self.path, key), value, known)

    def tables(self, key: str) -> list["Table"]:
        """The tables of `key`, whether it is written [key] or several times [[key]]; an absent one is one, empty."""
        value = self.data.get(key, {})
        if not isinstance(value, list):
            return [self.table(key)]
        if not value or not all(isinstance(each, dict) for each in value):
            said = f"{self.name(key)} must be a table, or tables in double brackets"
            self.fail(key, said, f"write [{self.name(key)}] on its own line")
        return [Table(self.source, (*self.path, key, index), each) for index, each in enumerate(value)]


REQUIRED: Any = object()  # the default of a key that has none
