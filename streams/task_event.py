"""The `[event]` and `[entities]` tables of a task file: what an event holds, and what its fields identify."""

import re
from datetime import UTC, datetime
from typing import Any

from streams.task import Entity, EventSpec, Field
from streams.task_toml import REQUIRED, Table, listed, nearest, shown
from streams.times import directives

FIELD = (
    "type", "required", "min", "max", "max_length", "model", "tokens", "split", "items", "height", "width", "channels",
)  # fmt: skip
TYPES = ("number", "category", "text", "list", "image")
SPLITS = ("words", "characters")
# The types that a key is for; all others are for every type.
_KEY_OF = {
    "min": ("number",), "max": ("number",), "max_length": ("category", "text", "list"),
    "tokens": ("text",), "split": ("text",), "items": ("list",),
    "height": ("image",), "width": ("image",), "channels": ("image",),
}  # fmt: skip
LONGEST_TEXT = 4096
"""Characters of a text, where `max_length` does not say."""
TIME_FORMATS = ("iso8601", "epoch_ms", "epoch_s")
# Quotes, backslashes and control characters cannot be in the name of a field that msgspec decodes.
_FIELD_NAME = r'[^\x00-\x1f\x7f"\\]{1,128}'
_FIELD_RULE = "a field name of at most 128 characters without quotes, backslashes or control characters"
_ENTITY_NAME = r"[a-z][a-z0-9_]{0,39}"


def field_name(table: Table, key: str, example: str, default: Any = REQUIRED) -> Any:
    """The field name that `key` gives; `default` where it is absent."""
    return table.text(key, example, default, _FIELD_NAME, _FIELD_RULE)


def parse_entities(root: Table, event: Table) -> tuple[Entity, ...]:
    """The entities in the order of the file; the first is the one that event.key identifies."""
    key = field_name(event, "key", '"user_id"')
    table = root.table("entities", required=f"[entities] with user = {shown(key)}")
    entities: list[Entity] = []
    for name in table.data:
        if not re.fullmatch(_ENTITY_NAME, name):
            fix = "use 1 to 40 of a-z, 0-9 and _, a letter first, for example customer"
            table.fail(name, f"{shown(name)} is not a name for an entity", fix)
        field = field_name(table, name, '"user_id"')
        for other in entities:
            if other.field == field:
                said = f"entities {other.name} and {name} both read {shown(field)}"
                table.fail(name, said, "remove one of the two")
        entities.append(Entity(name, field))
    if key not in [entity.field for entity in entities]:
        fix = f"add a line such as user = {shown(key)} as the first under [entities]"
        event.fail("key", f"event.key is {shown(key)}, and no entity reads that field", fix)
    if entities[0].field != key:
        own = next(entity.name for entity in entities if entity.field == key)
        fix = f"move {own} = {shown(key)} up to be the first under [entities]"
        table.fail(own, f"entity {own} reads event.key and must come first", fix)
    return tuple(entities)


def parse_event(table: Table, entities: tuple[Entity, ...]) -> EventSpec:
    """The event's id, key, time and fields. An entity field that is not declared is kept from the model."""
    event_id, time = field_name(table, "id", '"event_id"'), field_name(table, "time", '"timestamp"')
    uses = _uses(table, event_id, time, entities)
    declared = table.table("fields")
    fields = [_field(declared, name, uses.get(name, "")) for name in declared.data]
    fields += [Field(e.field, "category", model=False) for e in entities if e.field not in declared.data]
    key = next((field for field in fields if field.name == entities[0].field and not field.required), None)
    if key:
        said = f"{key.name} is event.key and cannot be optional"
        declared.source.fail((*declared.path, key.name, "required"), said, "write required = true")
    return EventSpec(event_id, entities[0].field, time, _time_format(table), tuple(fields))


def _uses(table: Table, event_id: str, time: str, entities: tuple[Entity, ...]) -> dict[str, str]:
    """Field name → what it is for, such as "event.time" or "entities.user"; no field is for two things."""
    uses = {event_id: "event.id"}
    for field, use in [(time, "event.time"), *((e.field, f"entities.{e.name}") for e in entities)]:
        if field in uses:
            key = "id" if uses[field] == "event.id" else "time"
            said = f"{uses[field]} and {use} both read {shown(field)}"
            table.fail(
                key, said, "name a field that differs from event to event as id, and one for each other use"
            )
        uses[field] = use
    return uses


def _field(declared: Table, name: str, use: str) -> Field:
    """One declared field. `use` says what else it is for, if anything."""
    _check_place(declared, name, use)
    table = declared.table(name, FIELD)
    kind = table.choice("type", TYPES, REQUIRED)
    if use and kind != "category":
        said = f"{name} is {use} and cannot be {_a(kind)}"
        table.fail("type", said, 'write type = "category"')
    for key, kinds in _KEY_OF.items():
        if key in table.data and kind not in kinds:
            fix = f"remove it, or write type = {shown(kinds[0])}"
            table.fail(key, f"{table.name(key)} has no meaning for {_a(kind)}", fix)
    low, high = table.number("min", None, example="0"), table.number("max", None, example="100")
    if low is not None and high is not None and low > high:
        table.fail("max", f"{table.name('max')} = {high:g} is below min = {low:g}", "swap the two")
    usual = Field(name, kind)
    channels = table.integer("channels", usual.channels, 1, 3)
    if channels == 2:
        table.fail("channels", f"{table.name('channels')} is 2", "write 1 (grey) or 3 (red, green, blue)")
    return Field(
        name, kind, table.flag("required", True), low, high,
        table.integer("max_length", LONGEST_TEXT if kind == "text" else usual.max_length, 1, 65536),
        table.flag("model", True),
        table.integer("tokens", usual.tokens, 1, 256),
        table.choice("split", SPLITS, usual.split),
        table.integer("items", usual.items, 1, 64),
        table.integer("height", usual.height, 4, 32),
        table.integer("width", usual.width, 4, 32),
        channels,
    )  # fmt: skip


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"


def _check_place(declared: Table, name: str, use: str) -> None:
    if not re.fullmatch(_FIELD_NAME, name):
        declared.fail(name, f"{shown(name)} is not {_FIELD_RULE}", "rename the field at the producer")
    if use in ("event.id", "event.time"):
        hint = (
            "; calendar = true under [task] gives the model hour and weekday" if use == "event.time" else ""
        )
        declared.fail(name, f"{name} is {use} and cannot be a model field as well", f"remove this line{hint}")
    if not isinstance(declared.data[name], dict):
        said = f"{declared.name(name)} must be a table, not {shown(declared.data[name])}"
        declared.fail(name, said, f'for example {name} = {{ type = "number" }}')


def _time_format(table: Table) -> str:
    value: str = table.text("time_format", '"iso8601"', "iso8601")
    if value in TIME_FORMATS:
        return value
    use = f"use {listed(TIME_FORMATS)} or a strptime pattern such as %d/%m/%Y %H:%M:%S"
    if "%" not in value:
        table.fail("time_format", f"event.time_format is {shown(value)}", nearest(value, TIME_FORMATS) + use)
    if "Z" in directives(value):
        fix = "use %z, an offset such as +02:00, or send UTC and leave the zone out"
        table.fail(
            "time_format", f"event.time_format {shown(value)} has %Z, and names of zones are not unique", fix
        )
    # A day and an hour above 12, so that no two parts can be taken for each other.
    sample = datetime(2023, 11, 29, 13, 47, 58, tzinfo=UTC)
    try:
        same = datetime.strptime(sample.strftime(value), value).replace(tzinfo=UTC)
    except (ValueError, re.error) as error:
        table.fail("time_format", f"event.time_format is {shown(value)}: {error}", use)
    if same.date() != sample.date():
        fix = "a pattern needs year, month and day, such as %Y-%m-%d"
        table.fail("time_format", f"event.time_format {shown(value)} does not say which day it is", fix)
    return value
