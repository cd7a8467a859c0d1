"""From the TOML of a task file to a checked `Task`: one function for each table, in the order of the file."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from featurestore.spec import SpecError, View, parse_views
from infra.errors import UserError
from learners.batch import (
    ACTIVATIONS,
    FAMILIES,
    LOSSES,
    MODEL_BOUNDS,
    OPTIMISERS,
    PRECISIONS,
    REPLAY_KEEPS,
    SCHEDULES,
    TABLES,
    ModelConfig,
)
from learners.budget import ArenaConfig
from learners.drift import POLICIES, DriftConfig
from learners.rollback import GuardConfig
from learners.target import KINDS, Target
from learners.trust import TrustConfig
from streams.exploration import Exploration, fault
from streams.task import CALENDAR, Entity, EventSpec, LabelSpec, Privacy, Serving, Task, TopicNames
from streams.task_event import field_name, parse_entities, parse_event
from streams.task_kind import (
    check_guard,
    check_rates,
    check_settings,
    parse_bounds,
    parse_classes,
    parse_metric,
    parse_missing,
    parse_weights,
)
from streams.task_model import check_blocks, check_rivals, check_used, with_tower
from streams.task_size import LARGEST_MODEL, decisive_keys, fitting_rows, memory, whole_model_bytes
from streams.task_toml import REQUIRED, Source, Table, listed, nearest, parse_text, shown
from streams.task_tuning import parse_tuning
from streams.topics import Topics

Config = TypeVar("Config", ModelConfig, DriftConfig, GuardConfig, ArenaConfig, TrustConfig, Exploration)

TOP = (
    "task",
    "event",
    "entities",
    "label",
    "features",
    "privacy",
    "model",
    "challenger",
    "arena",
    "tuning",
    "drift",
    "guard",
    "trust",
    "exploration",
    "serving",
    "topics",
)
TASK = ("name", "kind", "classes", "metric", "calendar", "segments")
EVENT = ("id", "key", "time", "time_format", "fields")
LABEL = ("field", "id", "time", "delay", "window", "missing", "late", "late_for", "in_memory", "min", "max")
FEATURES = ("entity", "value", "windows", "aggregates", "time_since_last", "label_rate", "decay", "last")
PRIVACY = ("pseudonymise",)
SERVING = (
    "guarantee", "max_event_bytes", "allowed_lateness", "late", "max_future", "dedup",
    "snapshot_every", "refresh_every", "commit_every",
    "order", "idle",
)  # fmt: skip

TOPICS = ("events", "labels", "predictions", "drift_alerts", "dead_letters")

CHOICES = {
    "family": FAMILIES,
    "table": TABLES,
    "activation": ACTIVATIONS,
    "optimiser": OPTIMISERS,
    "loss": LOSSES,
    "schedule": SCHEDULES,
    "replay_keep": REPLAY_KEEPS,
    "precision": PRECISIONS,
    "policy": POLICIES,
}
_WHOLE_NUMBERS = {"hidden": ("layer sizes", "[64, 32]"), "recent_labels": ("half-lives", "[4, 24, 96]")}
_BOUNDS: dict[str, tuple[float, float]] = {
    **MODEL_BOUNDS, "learning_rate": (1e-9, 10), "weight_decay": (0, 1), "clip_norm": (1e-6, 1e6),
}  # fmt: skip


def parse_task(text: str, name: str, path: Path) -> Task:
    """A `Task` from the text of a task file. `name` is what messages call the file. Raises UserError."""
    data, source = parse_text(text, name)
    return build_task(data, source, path, text)


def build_task(data: Mapping[str, Any], source: Source, path: Path, text: str = "") -> Task:
    """A `Task` from parsed TOML. Raises UserError at the first thing that is wrong."""
    root = Table(source, (), data, TOP)
    task = root.table("task", TASK, required='[task] with name = "my-stream"')
    name = task.text(
        "name", '"my-stream"', REQUIRED, r"[a-z][a-z0-9-]{0,49}", "1 to 50 of a-z, 0-9 and -, a letter first"
    )
    kind = task.choice("kind", KINDS, "binary")
    classes, metric = parse_classes(task, kind), parse_metric(task, kind)
    calendar = task.flag("calendar", False)
    event_table = root.table(
        "event", EVENT, required='[event] with id = "event_id", key = "user_id", time = "timestamp"'
    )
    entities = parse_entities(root, event_table)
    event = parse_event(event_table, entities)
    label = _label(root, event, Target(kind, classes))
    views = _views(root, entities, event)
    first, rivals = root.table("model"), root.tables("challenger")
    model = _settings(first, ModelConfig())
    challenger, *others = [_settings(rival, _usual_challenger(model)) for rival in rivals]
    made = Task(
        name, kind, metric, calendar, event, entities, label, views, _privacy(root, event), model, challenger,
        _drift(root, views), _settings(root.table("guard"), GuardConfig()),
        _serving(root), _topic_names(root), path, text, classes,
        task.strings("segments", (), '["country"]'), tuple(others),
        _settings(root.table("arena"), ArenaConfig()),
        trust=_trust(root),
        exploration=_settings(root.table("exploration"), Exploration()),
    )  # fmt: skip
    _check_columns(root, made)
    _check_topics(root.table("topics"), Topics.of(made))
    check_guard(root.table("guard"), made)
    check_rates(root, made)
    explored = root.table("exploration")
    if wrong := fault(made.exploration, explored.data, made.kind, made.classes):
        explored.fail(wrong[0] if wrong[0] in explored.data else "share", *wrong[1:])
    check_rivals(rivals, (challenger, *others))
    model = _fitted(first, model, made)
    challenger, *others = [
        _fitted(rival, config, made) for rival, config in zip(rivals, (challenger, *others), strict=True)
    ]
    made = replace(made, model=model, challenger=challenger, others=tuple(others))
    return replace(made, tuning=parse_tuning(root, made, _setting))


def _usual_challenger(model: ModelConfig) -> ModelConfig:
    """The champion's settings, learning three times as fast: a copy that learns alike could not be better."""
    return replace(model, learning_rate=min(3 * model.learning_rate, _BOUNDS["learning_rate"][1]))


def _fitted(table: Table, config: ModelConfig, task: Task) -> ModelConfig:
    """The settings as the rest of the file lets them be."""
    check_settings(table, config, task)
    check_used(table, config)
    check_blocks(table, config, task)
    return _sized(table, with_tower(table, config, task), task)


def _label(root: Table, event: EventSpec, target: Target) -> LabelSpec:
    table = root.table(
        "label", LABEL, required='[label] with field = "clicked", delay = "1h", window = "2h", missing = 0'
    )
    field = field_name(table, "field", '"clicked"')
    if field in (event.id, event.time, *(f.name for f in event.fields)):
        fix = "the label comes later, on the labels topic; remove it from the event's fields"
        said = f"label.field {shown(field)} is also read from the event, so the model would see the answer"
        table.fail("field", said, fix)
    label_id = field_name(table, "id", shown(event.id), event.id)
    time = field_name(table, "time", '"known_at"', None)
    if field in (label_id, time) or label_id == time:
        said = "label.field, label.id and label.time must be three different fields"
        table.fail("field", said, "rename one of them")
    delay = table.duration("delay", "1h", required=True)
    window = table.duration("window", "2h", low="1ms", required=True)
    if window < delay:
        fix = f"write window = {shown(table.data['delay'])} or longer"
        got, least = shown(table.data["window"]), shown(table.data["delay"])
        table.fail("window", f"label.window {got} closes before labels are due (label.delay {least})", fix)
    low, high = parse_bounds(table, target.kind)
    missing = parse_missing(table, target, low, high)
    return LabelSpec(
        field,
        label_id,
        time,
        delay,
        window,
        missing,
        table.choice("late", ("correct", "ignore"), "correct"),
        table.duration("late_for", table.data["window"]),
        table.integer("in_memory", 200_000, 100, 100_000_000),
        low,
        high,
    )


def _views(root: Table, entities: tuple[Entity, ...], event: EventSpec) -> dict[str, View]:
    raw = root.data.get("features", [])
    if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
        fix = "write [[features]], in double brackets, above each"
        root.fail("features", "features must be a list of tables", fix)
    for index, table in enumerate(raw):
        Table(root.source, ("features", index), table, FEATURES)
    numbers = {field.name for field in event.fields if field.type == "number"}
    names, fields = [entity.name for entity in entities], {entity.field for entity in entities}
    # Other categories with model = false are checked and then dropped: no row has them.
    carried = {f.name for f in event.fields if f.type == "category" and (f.model or f.name in fields)}
    try:
        return parse_views(names, numbers, raw, carried)
    except SpecError as error:
        key = error.path[2] if len(error.path) > 2 else ""
        value = raw[int(error.path[1])].get(key) if len(error.path) > 1 else None
        known = {"entity": names, "value": sorted(numbers | carried)}.get(str(key), [])
        hint = nearest(value, known) if isinstance(value, str) else ""
        root.source.fail(error.path, error.message, hint + (error.fix or "see docs/task-file.md"))


def _drift(root: Table, views: Mapping[str, View]) -> DriftConfig:
    """The settings of the detectors; label rates are no inputs to watch, unless the file has a list of its own.

    They move when labels come sooner or later, which is no drift, and what labels say the losses tell.
    """
    rates = [each.name for view in views.values() for each in view.features if each.aggregate == "label_rate"]
    usual = DriftConfig()
    return _settings(root.table("drift"), replace(usual, ignore=(*usual.ignore, *rates)))


def _privacy(root: Table, event: EventSpec) -> Privacy:
    table = root.table("privacy", PRIVACY)
    categories = [f.name for f in event.fields if f.type in ("category", "text", "list")]
    listed_fields = table.strings("pseudonymise", (), '["user_id"]')
    for name in listed_fields:
        if name not in (event.id, *categories):
            fix = f"{nearest(name, [event.id, *categories])}it may list {listed([event.id, *categories])}"
            said = f"privacy.pseudonymise lists {shown(name)}, which is no category and no event.id"
            table.fail("pseudonymise", said, fix)
    return Privacy(frozenset(categories) | frozenset(listed_fields))


def _settings(table: Table, base: Config) -> Config:
    """`base` with the keys of `table` laid over it. Keys and types are those of the dataclass itself."""
    defaults = {field.name: getattr(base, field.name) for field in fields(base)}
    table = Table(table.source, table.path, table.data, tuple(defaults))
    changes = {key: _setting(table, key, defaults[key]) for key in table.data}
    try:
        return replace(base, **changes)
    except (ValueError, UserError) as error:
        # The dataclass knows limits of its own; the first key that its message names is the culprit.
        said, fix = (error.message, error.fix) if isinstance(error, UserError) else (str(error), "")
        key = next((word for word in re.findall(r"\w+", said) if word in table.data), None)
        table.fail(key, f"{table.name()}: {said}", fix or "choose a value within that limit")


def _setting(table: Table, key: str, default: Any) -> Any:
    low, high = _BOUNDS.get(key, (0, 1_000_000_000))
    if key in CHOICES:
        return table.choice(key, CHOICES[key], default)
    if isinstance(default, bool):
        return table.flag(key, default)
    if isinstance(default, int):
        return table.integer(key, default, int(low), int(high))
    if isinstance(default, float):
        return table.number(key, default, low, high, example=f"{default:g}")
    if isinstance(default, str):
        return table.text(key, shown(default))
    if key == "class_weights":
        return parse_weights(table, key)
    if key not in _WHOLE_NUMBERS:
        return table.strings(key, default, '["a_column"]')
    what, example = _WHOLE_NUMBERS[key]
    sizes = table.data[key]
    whole = isinstance(sizes, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in sizes)
    if not whole or len(sizes) > 16 or not all(low <= size <= high for size in sizes):
        said = f"{table.name(key)} must be a list of at most 16 {what} from {low:g} to {high:g}"
        table.fail(key, said, f"for example {key} = {example}")
    return tuple(sizes)


def _trust(root: Table) -> TrustConfig:
    table = root.table("trust")
    config = _settings(table, TrustConfig())
    for key, other in (("window", "cap"), ("holdout_alpha", "holdout")):
        if key in table.data and not getattr(config, other):
            example = {"cap": "cap = 50", "holdout": "holdout = 0.1"}[other]
            table.fail(
                key, f"trust.{key} has no effect without {other}", f"add {example}, or remove this line"
            )
    return config


def _serving(root: Table) -> Serving:
    table, usual = root.table("serving", SERVING), Serving()
    return Serving(
        table.choice("guarantee", ("exactly_once", "at_least_once"), usual.guarantee),
        table.integer("max_event_bytes", usual.max_event_bytes, 64, 16_000_000),
        table.duration("allowed_lateness", "1h"),
        table.choice("late", ("score", "dead_letter"), usual.late),
        table.duration("max_future", "1d"),
        table.duration("dedup", "24h", low="1s"),
        table.duration("snapshot_every", "10s", low="100ms"),
        table.duration("refresh_every", "1s", low="50ms"),
        table.duration("commit_every", "1ms", low="1ms"),
        table.choice("order", ("arrival", "event_time"), usual.order),
        table.duration("idle", "1s", low="10ms"),
    )


def _topic_names(root: Table) -> TopicNames:
    table = root.table("topics", TOPICS)
    rule = "1 to 249 of a-z, A-Z, 0-9, dot, underscore and minus"
    names = {key: table.text(key, f'"my-{key}"', None, r"[a-zA-Z0-9._-]{1,249}", rule) for key in TOPICS}
    for key, name in names.items():
        if name in (".", ".."):
            table.fail(key, f"topics.{key} is {shown(name)}, which Kafka refuses", "give the name of a topic")
    return TopicNames(**names)


def _check_topics(table: Table, topics: Topics) -> None:
    """No topic has two uses: what one step writes, another would take for its own input."""
    uses = dict.fromkeys(topics.internal, "Driftline's own")
    # Names that are given come last: a clash with one that Driftline gives is their fault.
    for key in sorted(TOPICS, key=lambda key: key in table.data):
        name = getattr(topics, key)
        if name in uses:
            fix = "give each its own topic; one that is left out gets a name of its own"
            table.fail(key, f"topics.{key} is {shown(name)}, which is {uses[name]} already", fix)
        uses[name] = f"topics.{key}"


def _sized(table: Table, config: ModelConfig, task: Task) -> ModelConfig:
    """A model that a machine can hold some of."""
    size, rows = whole_model_bytes(config, task.schema), fitting_rows(config, task.schema)
    if size <= LARGEST_MODEL:
        return config
    keys = decisive_keys(config)
    fix = f"lower {' or '.join(keys) or 'rows'}, or give the model fewer columns"
    if rows:
        fix = f"lower rows (now {config.rows}) to {rows} or less"
        fix += f", or embedding (now {config.embedding})" if "embedding" in keys else ""
    key = next((key for key in ("rows", *keys) if key in table.data), None)
    needs = memory(task.schema, config, (), 0)
    said = f"a whole model can take {size / 2**30:.1f} GiB, more than {LARGEST_MODEL >> 30} GiB: "
    said += f"a serve worker would need {needs['serve'] / 2**30:.0f} GiB for it, the learner "
    said += f"{needs['learn'] / 2**30:.0f}"
    table.fail(key, f"{table.name()}: {said}", fix)


def _check_columns(root: Table, task: Task) -> None:
    """The model has columns, and no two have the same name; lists of columns name such that there are."""
    if not task.numbers and not task.schema.ids:
        fix = "declare a field under [event.fields], or add [[features]]"
        root.fail("event", "the model has nothing to look at: no field, no feature, no calendar", fix)
    columns, drift = (*task.numbers, *task.categories), root.table("drift")
    for name in drift.data.get("ignore", ()):
        if name not in (*columns, *CALENDAR):
            fix = f"{nearest(name, columns)}columns are {listed(columns)}"
            drift.fail("ignore", f"drift.ignore lists {shown(name)}, which is no column of the model", fix)
    for name in task.segments:
        if name not in task.categories:
            fix = f"{nearest(name, task.categories)}categories that the model sees are {listed(task.categories)}"
            said = f"task.segments lists {shown(name)}, which is no category that the model sees"
            root.table("task").fail("segments", said, fix)
    for key in ("segment_share", "max_segment_harm"):
        if key in drift.data and not task.segments:
            fix = f"remove this line, or name a category in task.segments, one of {listed(task.categories)}"
            drift.fail(key, f"drift.{key} has no effect without task.segments", fix)
    seen: set[str] = set()
    for name in (*columns, *(block.name for block in task.blocks)):
        if name in seen:
            fix = (
                "rename the field, or set calendar = false"
                if name in CALENDAR
                else "rename the field or the entity"
            )
            root.source.fail(("event", "fields", name), f"two model columns are called {shown(name)}", fix)
        seen.add(name)
