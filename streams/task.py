"""The task file: one TOML file says everything that Driftline knows about a stream.

`load_task` reads a built-in task by name or any file by path into one frozen `Task`. Whatever is wrong with
the file is a `UserError` that names file, line and fix. `docs/task-file.md` is the reference for writers.

Start-up of every role passes here, so nothing heavy (torch, feast) may be imported by this module.
"""

import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from featurestore.spec import View
from infra.errors import UserError
from learners.batch import ModelConfig, Schema
from learners.blocks import Block
from learners.budget import USUAL_ARENA, ArenaConfig
from learners.drift import DriftConfig
from learners.rollback import GuardConfig
from learners.space import TuningConfig
from learners.target import Target
from learners.trust import FULL_TRUST, TrustConfig
from streams.exploration import NONE, Exploration

BUILT_IN = Path(__file__).parent / "tasks"
ROWS_FORMAT = 3  # of the columns besides those of the task: rows that were written otherwise are not read
CALENDAR = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")


@dataclass(frozen=True)
class Field:
    """One field of the event's JSON. `model` says whether the model sees it or only checks and features do.

    `min` and `max` bound a number (both included, None for no bound); `max_length` bounds the text of a category, of a
    text, or of one value of a list. The rest says what the model sees: at most so many `tokens` of a text and how they
    are `split`, at most so many `items` of a list, the `height`, `width` and `channels` that an image is brought to.
    """

    name: str
    type: str  # "number", "category", "text", "list" or "image"
    required: bool = True
    min: float | None = None
    max: float | None = None
    max_length: int = 256
    model: bool = True
    tokens: int = 32
    split: str = "words"  # or "characters"
    items: int = 16
    height: int = 16
    width: int = 16
    channels: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image as the model sees it."""
        return self.height, self.width, self.channels

    @property
    def block(self) -> Block | None:
        """What the model reads of it as one thing, if it is a text, a list or an image."""
        if self.type == "text":
            return Block(self.name, "text", self.tokens)
        if self.type == "list":
            return Block(self.name, "list", self.items)
        if self.type == "image":
            return Block(self.name, "image", math.prod(self.shape), shape=self.shape)
        return None


@dataclass(frozen=True)
class EventSpec:
    """Field names of an event. `fields` has the declared fields, then those that entities imply.

    `time_format` is "iso8601", "epoch_ms", "epoch_s" or a `strptime` pattern.
    """

    id: str
    key: str
    time: str
    time_format: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Entity:
    """A thing that features are kept for, and the event field that identifies it."""

    name: str
    field: str


@dataclass(frozen=True)
class LabelSpec:
    """Where the truth comes from and when.

    `id` and `field` are fields of a label record; `time`, if any, says when the label became known. A label
    is expected `delay_ms` after its event; once `window_ms` has passed without one, the event gets the label `missing`
    (of several classes the number of one), or none at all where `missing` is None (written "drop"). What was
    decided is remembered for `late_for_ms` more: a label that comes in that time corrects the missing value, or not
    (`late`). Each partition keeps so many events that wait or are remembered `in_memory`, and more of them on disk.
    `min` and `max` bound a value (both included, None for no bound).
    """

    field: str
    id: str
    time: str | None
    delay_ms: int
    window_ms: int
    missing: float | None
    late: str = "correct"  # or "ignore"
    late_for_ms: int = 0
    in_memory: int = 200_000
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Privacy:
    """`pseudonymise` names every field that is kept as a keyed pseudonym only; it may hold the event id."""

    pseudonymise: frozenset[str]


@dataclass(frozen=True)
class Serving:
    """Guarantee and limits of serving. `late` says what becomes of an event beyond the allowed lateness."""

    guarantee: str = "exactly_once"  # or "at_least_once"
    max_event_bytes: int = 1_048_576
    allowed_lateness_ms: int = 3_600_000
    late: str = "score"  # or "dead_letter"
    max_future_ms: int = 86_400_000
    dedup_ms: int = 86_400_000
    snapshot_every_ms: int = 10_000
    refresh_every_ms: int = 1_000
    commit_every_ms: int = 1
    order: str = "arrival"  # or "event_time"
    idle_ms: int = 1_000


@dataclass(frozen=True)
class TopicNames:
    """Kafka topics that the task file names; None for one that Driftline names itself (see `streams.topics`)."""

    events: str | None = None
    labels: str | None = None
    predictions: str | None = None
    drift_alerts: str | None = None
    dead_letters: str | None = None


@dataclass(frozen=True)
class Task:
    """Everything a task file says, checked. `views` maps an entity's name to its features, if it has any.

    The first of `entities` is the one whose field is the event's key.
    """

    name: str
    kind: str  # one of `learners.target.KINDS`
    metric: str  # one of `streams.task_kind.METRICS` for that kind
    calendar: bool
    event: EventSpec
    entities: tuple[Entity, ...]
    label: LabelSpec
    views: dict[str, View]
    privacy: Privacy
    model: ModelConfig
    challenger: ModelConfig
    drift: DriftConfig
    guard: GuardConfig
    serving: Serving
    topics: TopicNames
    path: Path  # absolute
    text: str  # the file as it was read
    classes: tuple[str, ...] = ()  # names, of a multi-class task
    segments: tuple[str, ...] = ()  # categories by whose values metrics are kept as well
    others: tuple[ModelConfig, ...] = ()  # further challengers, where there are several [[challenger]]
    arena: ArenaConfig = USUAL_ARENA
    tuning: TuningConfig | None = None
    trust: TrustConfig = FULL_TRUST
    exploration: Exploration = NONE

    @cached_property
    def number_fields(self) -> tuple[str, ...]:
        """Every number field in the order of the file, also those that the model does not see."""
        return tuple(field.name for field in self.event.fields if field.type == "number")

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The model's number columns in order: number fields, calendar, then features entity by entity.

        The last categories of an entity are features, but no numbers; see `blocks`.
        """
        fields = [field.name for field in self.event.fields if field.type == "number" and field.model]
        calendar = CALENDAR if self.calendar else ()
        features = [
            feature.name
            for view in self.views.values()
            for feature in view.features
            if feature.value is None or feature.value in self.number_fields
        ]
        return (*fields, *calendar, *features)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The model's category columns in order."""
        return tuple(field.name for field in self.event.fields if field.type == "category" and field.model)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What the model reads as one: the last values of an entity, entity by entity; texts, lists; then images."""
        last = [
            (view.entity, feature.value, feature.place)
            for view in self.views.values()
            for feature in view.features
            if feature.aggregate == "last" and feature.value is not None
        ]
        lengths = {(entity, value): place for entity, value, place in last}  # the last place is the length
        blocks = [
            Block(f"{entity}_{value}", "series" if value in self.number_fields else "codes", length, entity)
            for (entity, value), length in lengths.items()
        ]
        blocks += [field.block for field in self.event.fields if field.block is not None and field.model]
        return tuple(sorted(blocks, key=lambda block: block.kind == "image"))

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """The allow-list: the only fields of an event that are ever read, each once."""
        event = self.event
        return tuple(dict.fromkeys([event.id, event.time, *(field.name for field in event.fields)]))

    @cached_property
    def schema_hash(self) -> str:
        """32 hex digits that change with everything that gives a row of numbers and categories its meaning.

        A model serves only rows of the hash that it was trained on. Limits, models, drift and serving are not
        part of it; the label is, where a feature is built from labels.
        """
        label = self.label
        rated = any(
            feature.aggregate == "label_rate" for view in self.views.values() for feature in view.features
        )
        meaning = {
            "kind": [self.kind, *self.classes] if self.classes else self.kind,
            "numbers": self.numbers,
            "categories": self.categories,
            "entities": [[entity.name, entity.field] for entity in self.entities],
            "time": [self.event.time, self.event.time_format],
            "views": [view.fingerprint for view in self.views.values()],
            "blocks": [block.to_dict() for block in self.blocks],
            "split": [field.split for field in self.event.fields if field.type == "text" and field.model],
            "label": [label.field, label.time, label.delay_ms, label.window_ms, label.missing]
            if rated
            else None,
        }
        return hashlib.blake2b(json.dumps(meaning).encode(), digest_size=16).hexdigest()

    @cached_property
    def rows_hash(self) -> str:
        """32 hex digits that change with everything that the rows between two steps are made of.

        That is the schema, and the number fields that no model and no feature sees but that have a column in a row.
        """
        text = json.dumps([ROWS_FORMAT, self.schema_hash, self.number_fields])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def trained(self) -> tuple[ModelConfig, ...]:
        """Settings of all models that may learn here: one of each kind that a population can have."""
        tuned = self.tuning.kinds(self.model) if self.tuning else ()
        return (self.model, self.challenger, *self.others, *tuned)

    @property
    def seed(self) -> int:
        """Seed of the first lineage: made of the name, so that every process starts from the same weights."""
        return zlib.crc32(self.name.encode())

    @cached_property
    def schema(self) -> Schema:
        """The columns of a row, for the learner."""
        return Schema(
            self.numbers, self.categories, self.schema_hash, self.blocks, Target(self.kind, self.classes)
        )


def built_in_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with Driftline."""
    return tuple(sorted(path.stem for path in BUILT_IN.glob("*.toml")))


def load_task(name_or_path: str | Path) -> Task:
    """The task of a built-in name ("clicks") or of a file.

    Raises UserError ("clicks.toml:12: what is wrong", with a fix) for a file that cannot be read or used.
    """
    from streams.task_parse import parse_task  # it builds the classes above

    given = str(name_or_path)
    path, name = (
        (BUILT_IN / f"{given}.toml", f"{given}.toml") if given in built_in_tasks() else (Path(given), given)
    )
    return parse_task(_read(path, name), name, path.absolute())


def _read(path: Path, name: str) -> str:
    from streams.task_toml import LARGEST_FILE, listed, nearest

    built_in = built_in_tasks()
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{name} is larger than {LARGEST_FILE} bytes", "give the path of a task file")
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        fix = f"{nearest(name, built_in)}built-in tasks are {listed(built_in)}; or give a .toml file's path"
        raise UserError(f'there is no task "{name}"', fix) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{name}:{line}: this is not UTF-8 text", "save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{name} cannot be read: {reason}", "give the path of a readable .toml file"
        ) from None
