"""A proposed task before it is text, and the text: TOML with comments on what was guessed and left out."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streams.guess import words


@dataclass(frozen=True)
class Answers:
    """What a person said; what is empty is to be guessed. `entities` are fields besides the key.

    `missing` is "0", "1" or "drop"; `delay` and `window` are durations such as "7d".
    """

    name: str = ""
    id: str = ""
    time: str = ""
    time_format: str = ""
    key: str = ""
    label: str = ""
    delay: str = ""
    window: str = ""
    missing: str = ""
    metric: str = ""
    entities: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """Answers without gaps, and what the file's comments and tables need besides.

    `notes` are comments by the attribute of the answer; `left_out` pairs a field with a reason; `values` are
    the number fields that windows are built of.
    """

    answers: Answers
    windows: Sequence[str]
    values: Sequence[str] = ()
    optional: Collection[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[tuple[str, str]] = ()
    source: str = "answers"

    @property
    def entities(self) -> dict[str, str]:
        """Names of entities and their fields, the key's first: {"customer": "CUSTOMER_ID"}."""
        found: dict[str, str] = {}
        for name in (self.answers.key, *self.answers.entities):
            short = "_".join(w for w in words(name) if w not in ("id", "key", "uuid", "guid"))[:36].strip("_")
            short = short if re.match(r"[a-z]", short) else "entity"
            number = 2
            while short in found:
                short = f"{short.rstrip('_0123456789')}_{number}"
                number += 1
            found[short] = name
        return found

    @property
    def features(self) -> list[dict[str, Any]]:
        """The `[[features]]` tables: counts and label rates for all, windows over values for the key's."""
        tables: list[dict[str, Any]] = []
        for place, entity in enumerate(self.entities):
            spans = {"entity": entity, "windows": [*self.windows]}
            rates = {"time_since_last": True, "label_rate": [self.windows[-1]]}
            tables.append({**spans, "aggregates": ["count"], **rates})
            values = self.values if place == 0 else ()
            tables += [{**spans, "value": value, "aggregates": ["mean", "ratio"]} for value in values]
        return tables


def write(draft: Draft) -> str:
    """The draft as the text of a task file."""
    answers, note = draft.answers, draft.notes
    lines = [
        f"# Proposed by `driftline task new` from {_comment(draft.source)}.",
        "# Read it before you use it: names and numbers cannot tell what things mean. docs/task-file.md has",
        "# every key; `driftline task check FILE` checks what you change.",
        "[task]",
        f"name = {_text(answers.name)}",
        f"metric = {_text(answers.metric)}",
        "calendar = true  # the model sees the hour and the weekday",
        "",
        "[event]",
        _pair("id", answers.id, note),
        _pair("key", answers.key, note),
        _pair("time", answers.time, note),
        f"time_format = {_text(answers.time_format)}",
        "",
        "# Only these fields are read, and the ones named above and under [entities].",
        "[event.fields]",
        *(_field(name, "number", draft.optional) for name in answers.numbers),
        *(_field(name, "category", draft.optional) for name in answers.categories),
        *(f"# left out: {_comment(name)} ({reason})" for name, reason in draft.left_out),
        "",
        "[entities]",
        *(f"{name} = {_text(field_name)}" for name, field_name in draft.entities.items()),
        "",
        "[label]",
        _pair("field", answers.label, note, "label"),
        _pair("delay", answers.delay, note),
        f"window = {_text(answers.window)}",
        f"missing = {answers.missing if answers.missing in ('0', '1') else _text(answers.missing)}",
    ]
    for table in draft.features:
        lines += ["", "[[features]]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return "true" if value is True else _text(value)


def _pair(key: str, value: str, notes: Mapping[str, str], note: str = "") -> str:
    said = notes.get(note or key)
    return f"{key} = {_text(value)}" + (f"  # {said}" if said else "")


def _field(name: str, kind: str, optional: Collection[str]) -> str:
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)
    return f'{key} = {{ type = "{kind}"{", required = false" if name in optional else ""} }}'


def _text(value: str) -> str:
    """TOML text. JSON's escapes are TOML's, but for the delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(value: str) -> str:
    """Text that is safe in a comment."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "?", value)
