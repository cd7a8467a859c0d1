"""What flows through the learner: the schema of a row, a batch of rows, and the settings of a model.

This file imports no torch, so that the serving and join roles can build batches without paying for it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from infra.errors import UserError
from learners.blocks import Block
from learners.target import BINARY, Target

_ALIKE = np.zeros(0, np.float32)  # stands for weights of 1
_NONE = np.zeros(0, np.bool_)  # stands for no corrections
_UNKNOWN: NDArray[Any] = np.zeros(0, np.int64)  # stands for who it was, or who served it, where nobody knows

# The families whose weights move along a gradient, and those that count, remember or split instead.
SEQUENCE_FAMILIES = ("rnn", "gru", "lstm", "transformer")
TEXT_FAMILIES = ("text_cnn", "text_rnn_cnn")
GRADIENT_FAMILIES = (
    "dcn", "deepfm", "logistic", "mlp", "two_tower", "svm", "rff_svm", *SEQUENCE_FAMILIES, *TEXT_FAMILIES, "image_cnn",
)  # fmt: skip
COUNTING_FAMILIES = ("naive_bayes", "knn", "hoeffding_tree", "adaptive_random_forest")
FAMILIES = GRADIENT_FAMILIES + COUNTING_FAMILIES
MARGIN_FAMILIES = ("svm", "rff_svm")
FOREST_FAMILIES = ("hoeffding_tree", "adaptive_random_forest")
OPTIMISERS = ("adam", "adamw", "adagrad", "rowwise_adagrad", "rmsprop", "sgd", "ftrl")
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "tanh", "sigmoid")
LOSSES = ("auto", "bce", "focal", "hinge", "mse", "mae", "huber")
TABLES = ("hashed", "exact")
REPLAY_KEEPS = ("newest", "reservoir", "since_drift")
PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("constant", "step", "cosine", "inverse_sqrt", "plateau")

# What a family is made for: the kinds of blocks that it reads as they are, and not as a mean of embeddings.
READS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SEQUENCE_FAMILIES, ("series", "codes")),
    **dict.fromkeys(TEXT_FAMILIES, ("text",)),
    "image_cnn": ("image",),
}

LEAST_EXACT = 16  # rows of an exact table, two of which are for ids that have none of their own

# What a number of a `ModelConfig` may be, both ends included; `hidden` is one width of it.
MODEL_BOUNDS: dict[str, tuple[float, float]] = {
    "embedding": (1, 1024),
    "rows": (1, 1 << 26),
    "admit_after": (1, 200),
    "expire_after": (0, 1_000_000_000),
    "hidden": (1, 8192),
    "units": (1, 512),
    "layers": (1, 4),
    "recent_labels": (1, 1_000_000),
    "batch_size": (1, 65536),
    "shards": (1, 64),
    "momentum": (0, 0.999),
    "l1": (0, 1e6),
    "l2": (0, 1e6),
    "positive_weight": (1e-6, 1e6),
    "focal_gamma": (0, 10),
    "schedule_steps": (1, 1_000_000_000),
    "schedule_factor": (0.001, 1),
    "warmup_steps": (0, 1_000_000_000),
    "smallest_batch": (0, 65536),
    "replay": (0, 16),
    "replay_rows": (1, 1_000_000),
    "ewc": (0, 1e9),
    "renew": (0, 0.1),
    "random_features": (1, 16384),
    "kernel_width": (1e-3, 1e3),
    "neighbours": (1, 1024),
    "window": (1, 32768),
    "trees": (1, 64),
    "leaves": (1, 2048),
    "grace": (1, 1_000_000),
    "split_confidence": (1e-30, 0.5),
}


@dataclass(frozen=True)
class Schema:
    """The columns of a row, in order, what is predicted from them, and the hash of everything that gives them meaning.

    `numbers` are float columns (NaN means unknown); `categories` are int64 pseudonyms (0 means missing).
    `blocks` are groups of further columns, images last: all but series have theirs in the int64 matrix, behind the
    categories and in this order. `fingerprint` is the task's schema hash. Two schemas are the same for a model only
    if all of this is equal.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    fingerprint: str
    blocks: tuple[Block, ...] = ()
    target: Target = BINARY

    def __post_init__(self) -> None:
        images = [block.kind == "image" for block in self.blocks]
        if images != sorted(images):
            raise ValueError("images come behind all other blocks")

    @property
    def ids(self) -> int:
        """How many columns the int64 matrix of a row has."""
        return len(self.categories) + sum(block.width for block in self.blocks)

    @property
    def fields(self) -> tuple[str, ...]:
        """What has rows in a model's table, each its own: the categories, then the blocks of ids."""
        return (*self.categories, *(block.name for block in self.blocks if block.embedded))

    def of_kind(self, *kinds: str) -> tuple[Block, ...]:
        """The blocks of these kinds, in their order."""
        return tuple(block for block in self.blocks if block.kind in kinds)

    def columns(self, name: str) -> slice:
        """Where a block's columns are in the int64 matrix. KeyError if there is no block of this name."""
        start = len(self.categories)
        for block in self.blocks:
            if block.name == name:
                return slice(start, start + block.width)
            start += block.width
        raise KeyError(name)

    @property
    def hash(self) -> str:
        """Hex of 16 bytes over columns, their order and the fingerprint: what a model update must agree on."""
        meaning: list[Any] = [list(self.numbers), list(self.categories), self.fingerprint]
        meaning += [block.to_dict() for block in self.blocks]
        meaning += [] if self.target == BINARY else [self.target.to_dict()]
        return hashlib.blake2b(json.dumps(meaning).encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_dict` is its inverse."""
        return {
            "numbers": list(self.numbers),
            "categories": list(self.categories),
            "fingerprint": self.fingerprint,
            "blocks": [block.to_dict() for block in self.blocks],
            "target": self.target.to_dict(),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        blocks = tuple(Block.from_dict(block) for block in raw.get("blocks", ()))
        target = Target.from_dict(raw["target"])
        return cls(tuple(raw["numbers"]), tuple(raw["categories"]), str(raw["fingerprint"]), blocks, target)


@dataclass(frozen=True)
class Batch:
    """`n` labelled rows, features exactly as they were served.

    Shapes: `event_ids` n strings, `event_ms` and `known_ms` int64 [n] (milliseconds UTC; `known_ms`:
    when the label became known), `numbers` float32 [n, N], `categories` int64 [n, I] (`Schema.ids`), `served` float32
    [n] or [n, K] (the served score, NaN where none was), `label` float32 [n] (`Target` says what both are). Columns
    are in schema order.
    `weight` float32 [n], finite and above 0: how many rows each counts for in learning; 1 each if not given.
    `corrects` bool [n]: the row was here before with the value for a missing label, and comes again because its
    label came late after all. It is learned, and not measured, tested or watched a second time.
    `entity` int64 [n]: the pseudonym of the event's key; 0, as everywhere if not given, where it is not known.
    `arm` int32 [n]: which arm of a canary served it (`learners.canary.arm_code`); 0 each if not given.
    `lineage` int32 [n]: which lineage served it (`lineage_number`); 0 where that is not known, and if not given.
    `refresh` int32 [n]: which version of that lineage (`refresh_number`); 0 where it is not known, and if not given.
    """

    event_ids: list[str]
    event_ms: NDArray[np.int64]
    known_ms: NDArray[np.int64]
    numbers: NDArray[np.float32]
    categories: NDArray[np.int64]
    served: NDArray[np.float32]
    label: NDArray[np.float32]
    weight: NDArray[np.float32] = field(default_factory=lambda: _ALIKE)
    corrects: NDArray[np.bool_] = field(default_factory=lambda: _NONE)
    entity: NDArray[np.int64] = field(default_factory=lambda: _UNKNOWN)
    arm: NDArray[np.int32] = field(default_factory=lambda: _UNKNOWN)
    lineage: NDArray[np.int32] = field(default_factory=lambda: _UNKNOWN)
    refresh: NDArray[np.int32] = field(default_factory=lambda: _UNKNOWN)

    def __post_init__(self) -> None:
        n = len(self.event_ids)
        if self.weight is _ALIKE:
            object.__setattr__(self, "weight", np.ones(n, np.float32))
        if self.corrects is _NONE:
            object.__setattr__(self, "corrects", np.zeros(n, np.bool_))
        for name in ("entity", "arm", "lineage", "refresh"):
            if getattr(self, name) is _UNKNOWN:
                object.__setattr__(self, name, np.zeros(n, np.int64 if name == "entity" else np.int32))
        columns = [getattr(self, name) for name in BATCH_ARRAYS]
        if any(len(column) != n for column in columns) or self.numbers.ndim != 2 or self.categories.ndim != 2:
            shapes = [column.shape for column in columns]
            raise ValueError(f"a batch of {n} ids has columns of shapes {shapes}")

    def __len__(self) -> int:
        return len(self.event_ids)

    def slice(self, start: int, stop: int) -> "Batch":
        """Rows `start` to `stop` (a view: no copy of the arrays)."""
        part = np.s_[start:stop]
        return Batch(self.event_ids[part], *(getattr(self, name)[part] for name in BATCH_ARRAYS))

    def take(self, rows: NDArray[Any]) -> "Batch":
        """The rows of a boolean mask [n] or an index array, in that order (a copy)."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        ids = [self.event_ids[row] for row in index]
        return Batch(ids, *(getattr(self, name)[index] for name in BATCH_ARRAYS))

    @classmethod
    def concat(cls, batches: Sequence["Batch"]) -> "Batch":
        """One batch of all rows in order, of at least one batch (an empty list has no column count)."""
        if len(batches) == 1:
            return batches[0]
        ids = [event_id for batch in batches for event_id in batch.event_ids]
        columns = (np.concatenate([getattr(batch, name) for batch in batches]) for name in BATCH_ARRAYS)
        return cls(ids, *columns)

    @classmethod
    def empty(cls, schema: Schema) -> "Batch":
        """Zero rows with the schema's column counts."""
        return cls(
            [],
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros((0, len(schema.numbers)), np.float32),
            np.zeros((0, schema.ids), np.int64),
            schema.target.unknown(0),
            np.zeros(0, np.float32),
        )


BATCH_ARRAYS = (
    "event_ms", "known_ms", "numbers", "categories", "served", "label", "weight", "corrects", "entity", "arm",
    "lineage", "refresh",
)  # fmt: skip
"""The arrays of a `Batch`, all of length n, in the order of its fields."""


def lineage_number(version: str) -> int:
    """The number of the lineage that a version is of: 2 of "L2.41", and of "L2"; 0 of "", which is of none."""
    return int(version[1:].partition(".")[0] or 0)


def refresh_number(version: str) -> int:
    """The number of the refresh in its lineage: 41 of "L2.41"; 0 of "L2" and of "", which say nothing of it."""
    return int(version.partition(".")[2] or 0)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides how a model is built and trained, except the seed.

    `rows` is the number of hashed rows for each category; `embedding` is the width of a row. `clip_norm` is
    the largest L2 norm of the whole gradient of one step (dense and embedding rows together). For an embedding
    row, `weight_decay` acts in steps that touch it. A family passes over the settings that it does not use.
    """

    family: str = "dcn"
    embedding: int = 8
    rows: int = 16384
    table: str = "hashed"  # or "exact": an id has a row of its own, or none
    admit_after: int = 2  # times that an id comes before it has one
    expire_after: int = 0  # examples without it after which it has none; 0: only to make room
    hidden: tuple[int, ...] = field(default=(64, 32))
    activation: str = "relu"
    tower: tuple[str, ...] = ()  # columns of the second tower
    recent_labels: tuple[
        int, ...
    ] = ()  # half-lives, in labels learned, of running means of them that are inputs
    optimiser: str = "adam"
    learning_rate: float = 0.002
    batch_size: int = 256
    smallest_batch: int = 0  # above 0: steps start this small and grow to batch_size
    shards: int = 1  # of a step, whose gradients are added: as many ranks can share it
    spread_table: bool = False  # each rank has a part of the table, and of the optimiser's memory of it
    precision: str = "float32"  # of what a step computes; weights and scores are always float32
    replay: int = 0  # how many rows are learned again for each new one ...
    replay_rows: int = 200_000  # ... of so many that are kept ...
    replay_keep: str = "newest"  # ... which are these
    ewc: float = 0.0  # how strongly weights are held that mattered before a drift
    renew: float = 0.0  # share of the hidden units that is made new in a step
    weight_decay: float = 0.0
    clip_norm: float = 5.0
    momentum: float = 0.0
    nesterov: bool = False
    l1: float = 0.0
    l2: float = 0.0
    loss: str = "auto"  # hinge for the margin families, else by the target (`losses.loss_of`)
    positive_weight: float = 1.0
    class_weights: tuple[float, ...] = ()  # of several classes, in their order
    focal_gamma: float = 2.0
    schedule: str = "constant"
    schedule_steps: int = 10_000
    schedule_factor: float = 0.3
    warmup_steps: int = 0
    units: int = 32  # of what reads a sequence, a text or an image
    layers: int = 1
    random_features: int = 256
    kernel_width: float = 1.0
    neighbours: int = 15
    window: int = 2000
    trees: int = 10
    leaves: int = 128
    grace: int = 200
    split_confidence: float = 1e-6

    def __post_init__(self) -> None:
        _check_choice("family", self.family, FAMILIES)
        _check_choice("optimiser", self.optimiser, OPTIMISERS)
        _check_choice("table", self.table, TABLES)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("replay_keep", self.replay_keep, REPLAY_KEEPS)
        _check_choice("precision", self.precision, PRECISIONS)
        for name, (low, high) in MODEL_BOUNDS.items():
            if name not in ("hidden", "recent_labels") and not low <= getattr(self, name) <= high:
                value = getattr(self, name)
                raise UserError(f"model {name} is {value}", f"give a {name} from {low:g} to {high:g}")
        low, high = MODEL_BOUNDS["hidden"]
        if any(not low <= width <= high for width in self.hidden):
            fix = f"give every layer a width from {low:g} to {high:g}"
            raise UserError(f"model hidden is {list(self.hidden)}", fix)
        low, high = MODEL_BOUNDS["recent_labels"]
        if any(not low <= life <= high for life in self.recent_labels):
            fix = f"give every half-life from {low:g} to {high:g} labels"
            raise UserError(f"model recent_labels is {list(self.recent_labels)}", fix)
        if self.table == "exact" and self.rows < LEAST_EXACT:
            raise UserError(
                f"model rows is {self.rows} with an exact table", f"give at least {LEAST_EXACT} rows"
            )
        if not self.learning_rate > 0 or not self.clip_norm > 0 or not self.weight_decay >= 0:
            raise UserError(
                f"model learning_rate {self.learning_rate}, clip_norm {self.clip_norm}, "
                f"weight_decay {self.weight_decay}",
                "the first two must be above 0 and the last at least 0",
            )
        _check_together(self)
        if self.nesterov and not self.momentum:
            raise UserError("model nesterov is true without momentum", "give a momentum too, such as 0.9")
        margin = self.family in MARGIN_FAMILIES
        if self.loss != "auto" and (self.loss == "hinge") != margin:
            names = " and ".join(MARGIN_FAMILIES)
            fix = f'hinge is the loss of {names}, which have no other; write loss = "auto"'
            raise UserError(f"model loss {self.loss!r} does not go with family {self.family!r}", fix)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_dict` is its inverse."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; missing keys take their defaults, unknown ones raise UserError."""
        unknown = sorted(set(raw) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise UserError(f"unknown model setting {unknown[0]!r}", f"use one of {known}")
        values = dict(raw)
        for name in ("hidden", "recent_labels"):
            if name in values:
                values[name] = tuple(int(number) for number in values[name])
        if "class_weights" in values:
            values["class_weights"] = tuple(float(weight) for weight in values["class_weights"])
        if "tower" in values:
            values["tower"] = tuple(str(name) for name in values["tower"])
        return cls(**values)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"unknown model {name} {value!r}", f"use one of {', '.join(choices)}")


def _check_together(config: ModelConfig) -> None:
    """What keeps a model from forgetting, or from setting, and does not go with another setting."""
    if config.replay and config.recent_labels:
        fix = "leave one of them out: rows that come again would count as recent"
        raise UserError("model replay does not go with recent_labels", fix)
    for name in ("ewc", "renew"):
        if getattr(config, name) and config.optimiser == "ftrl":
            fix = "leave one of them out: ftrl makes every weight anew of the sums that it remembers"
            raise UserError(f"model {name} does not go with ftrl", fix)
    if config.ewc and config.spread_table:
        fix = "leave one of them out: what ewc holds on to is a whole table more"
        raise UserError("model ewc does not go with spread_table", fix)
    if config.ewc and config.renew:
        raise UserError(
            "model ewc and renew do not go together", "leave one out: ewc holds what renew makes new"
        )
    if config.renew and not config.hidden:
        raise UserError("model renew makes hidden units new, and hidden is []", "give hidden some widths")
